"""Is the codebook in good health? Plain words from the held-out evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WASTED = 0.5
FALL = 3.0
RECENT = 3
"""evaluations that a fall is measured against"""


def codebook_health(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong at the last evaluation, one sentence each with its remedy; empty when all is well.

    The evaluation before the first step is left out: no codebook has been placed then. Usage is compared with what
    the held-out set could use at most, so that a small set raises no alarm.

    Args:
        evaluations: rows of held-out metrics in order, each with ``step``, as ``foundation.log.read_metrics`` gives.
    """
    rows = [row for row in evaluations if row["step"] > 0 and row.get("code_usage") is not None]
    if not rows:
        return []
    last, recent = rows[-1], rows[-1 - RECENT : -1]
    alarms = []
    used, possible = last["code_usage"], last.get("code_usage_possible", 1.0)
    if used < WASTED * possible:
        alarms.append(
            f"most of the codebook is wasted: {used:.1%} of the codes are in use on the held-out images, "
            f"{possible:.1%} could be; if it stays so, use fewer codes, and for a learned codebook k-means "
            "initialisation (initial: latents), revival (revive_below) or a smaller width"
        )
    best = max((row["code_perplexity"] for row in recent), default=0.0)
    if last["code_perplexity"] * FALL < best:
        alarms.append(
            f"the use of the codebook has fallen suddenly: perplexity {last['code_perplexity']:,.1f}, it was "
            f"{best:,.1f}; lower the learning rate, or keep more checkpoints to go back to an earlier one"
        )
    return alarms
