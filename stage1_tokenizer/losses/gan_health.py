"""Is adversarial training going well? Plain words from the logged metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stage1_tokenizer.losses.adversarial import MAX_ADAPTIVE_WEIGHT

PATIENCE_STEPS = 500
_WINNING = 0.99

Row = Mapping[str, Any]


def gan_health(history: Sequence[Row]) -> list[str]:
    """Alarms, one sentence each with its remedy; empty when all is well or nothing adversarial was logged.

    An alarm means that a condition held in every logged row of the last 500 optimizer steps or more.

    Args:
        history: rows of training metrics in order, each with ``step`` (``foundation.training.log.read_metrics``).
    """
    rows = [row for row in history if "discriminator_loss" in row]
    alarms = []
    for holds, sentence in (
        (_is_clamped, "the adaptive weight sits at its limit: the discriminator gives the decoder next to no gradient; "
                      "lower adversarial.optim.learning_rate, or set adversarial.adaptive to false"),
        (_is_won, "the discriminator tells every reconstruction from its image: its gradient teaches the decoder "
                  "little; set adversarial.lecam_weight to 0.001, lower adversarial.optim.learning_rate, or raise "
                  "adversarial.start_step"),
    ):  # fmt: skip
        steps = _held_for(rows, holds)
        if steps >= PATIENCE_STEPS:
            alarms.append(f"for {steps} steps {sentence}")
    return alarms


def _held_for(rows: Sequence[Row], holds: Callable[[Row], bool]) -> int:
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
