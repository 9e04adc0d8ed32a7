"""Lengths of a training: up to which step two of them are the same training, and what continuing with another means.

A length acts alone through the learning rate, and what else falls with the steps: functions of the step and the length.
A schedule with a plateau can be extended exactly: from the plateau's end, before the rate falls (Hägele et al. 2024,
arXiv:2405.18392).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from foundation.training.config import Falling, OptimConfig
from foundation.training.optim import learning_rate


@dataclass(frozen=True)
class Rates:
    """The learning rates of one optimizer.

    Attributes:
        optim: its settings.
        start: the training's step that is its first.
        share: of a training's steps, after which it stops.
    """

    optim: OptimConfig
    start: int = 0
    share: float = 1.0

    def stop(self, n_steps: int) -> int:
        """The step of a training of ``n_steps`` at which it stops."""
        return round(self.share * n_steps)

    @property
    def has_plateau(self) -> bool:
        """Whether the rate is constant after its warm-up for some time: wsd's and constant's are, cosine's is not."""
        return self.optim.schedule != "cosine"

    def at(self, step: int, n_steps: int) -> float:
        """The learning rate at a step of a training of ``n_steps``, as if it did not stop; 0 before its first."""
        return learning_rate(self.optim, step - self.start, n_steps - self.start) if step >= self.start else 0.0


@dataclass(frozen=True)
class Schedule:
    """Length of a training, and the optimizers whose learning rates depend on it.

    Attributes:
        n_steps: optimizer steps in all.
        optims: of every optimizer, and what else depends on the length.
    """

    n_steps: int
    optims: tuple[Rates | Falling, ...] = ()

    @property
    def has_plateau(self) -> bool:
        """Whether everything that depends on the length is constant for some time."""
        return all(each.has_plateau for each in self.optims)

    @property
    def plateau_end(self) -> int:
        """How many steps a longer training has in common with this one; 0 without a plateau."""
        return self.shared_steps(2 * self.n_steps) if self.has_plateau else 0

    def shared_steps(self, other: int) -> int:
        """How many of the first steps have the learning rates that they have in a training of ``other`` steps."""
        rates = [each for each in self.optims if isinstance(each, Rates)]
        stops = [(each.stop(self.n_steps), each.stop(other)) for each in rates]
        shared = range(min([self.n_steps, other, *(min(pair) for pair in stops if pair[0] != pair[1])]))

        def differ(step: int) -> bool:  # at every later step too, once they do
            return any(each.at(step, self.n_steps) != each.at(step, other) for each in self.optims)

        return bisect_left(shared, True, key=differ)

    def rates(self, step: int) -> tuple[float, ...]:
        """The learning rate of each optimizer at a step (from 0)."""
        return tuple(each.at(min(step, self.n_steps - 1), self.n_steps) for each in self.optims)

    def note(self, step: int, old: int) -> str:
        """What happens to a training of ``old`` steps that continues at ``step`` with this length, in a sentence."""
        before = Schedule(old, self.optims)
        if step <= before.shared_steps(self.n_steps):
            return (
                f"extended from {old:,} to {self.n_steps:,} steps at step {step:,}, where the learning rate has not"
                f" begun to fall: like one training of {self.n_steps:,} steps"
            )
        was, now = before.rates(step - 1)[0], self.rates(step)[0]
        change = "rises" if now > was else "falls" if now < was else "stays"
        values = f"from {was:.3g} to {now:.3g}" if now != was else f"at {now:.3g}"
        why = "no checkpoint from before the learning rate fell is left"
        if any(isinstance(each, Rates) and not each.has_plateau for each in self.optims):
            why = "the schedule cosine has no plateau (wsd has one)"
        elif not self.has_plateau:
            why = "the noise in contexts falls from the first step on"
        return (
            f"continued with {self.n_steps:,} steps instead of {old:,} at step {step:,}: the learning rate {change}"
            f" {values} there, unlike in one training of {self.n_steps:,} steps; {why}"
        )
