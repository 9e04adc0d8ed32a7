"""Alarms from logged metrics: codebook collapse, posterior collapse of a Gaussian latent, an unbalanced adversary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stage1_tokenizer.losses.adversary import MAX_ADAPTIVE_WEIGHT

Row = Mapping[str, Any]
Rows = Sequence[Row]
WASTED = 0.5
FALL = 3.0
RECENT = 3
"""evaluations that a fall is measured against, and logged rows for which a latent must have been silent"""
PATIENCE_STEPS = 500
_WINNING = 0.99
_CLAMPED = (
    "the adaptive weight sits at its limit: the discriminator gives the decoder next to no gradient; "
    "lower adversarial.optim.learning_rate, or set adversarial.adaptive to false"
)
_WON = (
    "the discriminator tells every reconstruction from its image: its gradient teaches the decoder little; set "
    "adversarial.lecam_weight to 0.001, lower adversarial.optim.learning_rate, or raise adversarial.start_step"
)


def codebook_health(evaluations: Rows, suggestions: str, slot_names: Sequence[str] = ("",)) -> list[str]:
    """Alarms at the last evaluation, one sentence each with what to change; empty when all is well.

    Codebooks are judged separately: if one of two collapses to a single code, half of all codes are still in use. The
    evaluation before the first step does not count: codebooks are initialised in that step. Usage is compared with what
    the validation set could use at most, so that a small set raises no alarm.

    Args:
        evaluations: rows of validation metrics in order, each with ``step``, see ``training.log.read_metrics``.
        suggestions: what to change if codes are wasted, from ``QuantizerConfig.suggestions``.
        slot_names: of the codebooks, as in ``CodeSpec.slot_names``.
    """
    rows = [row for row in evaluations if row["step"] > 0]
    alarms = []
    for i, name in enumerate(slot_names):
        suffix = f"_{i}" if len(slot_names) > 1 else ""
        codebook = f"the codebook of the {name}" if name else "the codebook"
        of_codebook = [row for row in rows if row.get(f"code_usage{suffix}") is not None]
        alarms += _alarms(of_codebook, suffix, codebook, suggestions)
    return alarms


def latent_health(training: Rows, width: int) -> list[str]:
    """Whether a Gaussian latent says anything: a KL that outweighs the reconstruction silences its channels.

    Args:
        training: rows of training metrics in order.
        width: channels of the latent.
    """
    active = [row["active_channels"] for row in training if row["step"] > 0 and "active_channels" in row][-RECENT:]
    if len(active) < RECENT or max(active) >= WASTED * width:
        return []
    return [
        f"most of the latent is silent: the means of {width - max(active):.0f} of {width} channels no longer depend on "
        "the image; lower the quantizer's weight, or let it rise over anneal_steps"
    ]


def gan_health(history: Rows) -> list[str]:
    """Alarms, one sentence each with what to change; empty when all is well or nothing adversarial was logged.

    An alarm means that a condition held in every logged row of the last 500 optimizer steps or more.

    Args:
        history: rows of training metrics in order, each with ``step`` (``foundation.training.log.read_metrics``).
    """
    rows = [row for row in history if "discriminator_loss" in row]
    alarms = []
    for holds, sentence in ((_is_clamped, _CLAMPED), (_is_won, _WON)):
        steps = _held_for(rows, holds)
        if steps >= PATIENCE_STEPS:
            alarms.append(f"for {steps} steps {sentence}")
    return alarms


def _alarms(rows: Rows, suffix: str, codebook: str, suggestions: str) -> list[str]:
    if not rows:
        return []
    last, recent = rows[-1], rows[-1 - RECENT : -1]
    alarms = []
    used, possible = last[f"code_usage{suffix}"], last.get(f"code_usage_possible{suffix}", 1.0)
    if used < WASTED * possible:
        alarms.append(
            f"most of {codebook} is wasted: {used:.1%} of the codes are in use on the validation images, "
            f"{possible:.1%} could be; if it stays so, set {suggestions}"
        )
    now, *before = (row.get(f"code_perplexity{suffix}", 0.0) for row in (last, *recent))
    best = max(before, default=0.0)
    if now * FALL < best:
        alarms.append(
            f"the use of {codebook} has fallen suddenly: perplexity {now:,.1f}, it was {best:,.1f}; "
            "lower the learning rate, or keep more checkpoints to go back to an earlier one"
        )
    return alarms


def _held_for(rows: Rows, holds: Callable[[Row], bool]) -> int:
    """Optimizer steps from the first to the last row of the run of rows at the end in which ``holds`` is true."""
    first = len(rows)
    while first > 0 and holds(rows[first - 1]):
        first -= 1
    return rows[-1]["step"] - rows[first]["step"] if first < len(rows) else 0


def _is_clamped(row: Row) -> bool:
    weight = row.get("adaptive_weight")  # absent when not adaptive, None when it was not finite
    return weight is not None and weight >= 0.999 * MAX_ADAPTIVE_WEIGHT


def _is_won(row: Row) -> bool:
    accuracies = (row.get("discriminator_accuracy_real"), row.get("discriminator_accuracy_fake"))
    return all(each is not None and each >= _WINNING for each in accuracies)
