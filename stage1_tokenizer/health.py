"""Is the codebook, or the Gaussian latent, in good health? Plain words from the logged metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WASTED = 0.5
FALL = 3.0
RECENT = 3
"""evaluations that a fall is measured against, and logged rows for which a latent must have been silent"""

Rows = Sequence[Mapping[str, Any]]


def codebook_health(evaluations: Rows, remedies: str, slot_names: Sequence[str] = ("",)) -> list[str]:
    """What is wrong at the last evaluation, one sentence each with its remedy; empty when all is well.

    Each codebook is looked at by itself: of two equal ones, one that is down to a single code still leaves half of all
    codes in use. The evaluation before the first step is left out: no codebook has been placed then. Usage is compared
    with what the held-out set could use at most, so that a small set raises no alarm.

    Args:
        evaluations: rows of held-out metrics in order, each with ``step`` (``foundation.training.log.read_metrics``).
        remedies: what to change if codes are wasted, as ``quantizers.remedies`` says it.
        slot_names: of the codebooks, as in ``CodeSpec.slot_names``.
    """
    rows = [row for row in evaluations if row["step"] > 0]
    alarms = []
    for i, name in enumerate(slot_names):
        suffix = f"_{i}" if len(slot_names) > 1 else ""
        codebook = f"the codebook of the {name}" if name else "the codebook"
        alarms += _alarms(
            [row for row in rows if row.get(f"code_usage{suffix}") is not None], suffix, codebook, remedies
        )
    return alarms


def _alarms(rows: Rows, suffix: str, codebook: str, remedies: str) -> list[str]:
    if not rows:
        return []
    last, recent = rows[-1], rows[-1 - RECENT : -1]
    alarms = []
    used, possible = last[f"code_usage{suffix}"], last.get(f"code_usage_possible{suffix}", 1.0)
    if used < WASTED * possible:
        alarms.append(
            f"most of {codebook} is wasted: {used:.1%} of the codes are in use on the held-out images, "
            f"{possible:.1%} could be; if it stays so, set {remedies}"
        )
    now, *before = (row.get(f"code_perplexity{suffix}", 0.0) for row in (last, *recent))
    best = max(before, default=0.0)
    if now * FALL < best:
        alarms.append(
            f"the use of {codebook} has fallen suddenly: perplexity {now:,.1f}, it was {best:,.1f}; "
            "lower the learning rate, or keep more checkpoints to go back to an earlier one"
        )
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
