"""Wall-clock budgets as text: 20m, 2h, 1h30m, or 10m+30m for the two stages."""

from __future__ import annotations

import re
from dataclasses import dataclass

from foundation.config import require

_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_ONE = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
EXPECTED = "a time such as 20m, 2h, 1h30m or 1d, or 10m+30m for the two stages"
SHORTEST = 30.0
"""seconds: less is gone before a model is built"""


@dataclass(frozen=True)
class Budget:
    """Seconds that a run may take.

    Attributes:
        total: of everything, from the start of the command to the report.
        first_stage: of it, up to the end of the tokenizer's training; None lets the machine's speed decide.
    """

    total: float
    first_stage: float | None = None

    @classmethod
    def parse(cls, text: str, field: str = "budget") -> Budget:
        """Read a budget.

        Raises:
            ConfigError: no time, or one of less than half a minute.
        """
        parts = [_seconds(each) for each in text.replace(" ", "").split("+")]
        sound = len(parts) in (1, 2) and all(each is not None for each in parts)
        require(sound, field, text, EXPECTED)
        seconds = [each for each in parts if each is not None]
        require(sum(seconds) >= SHORTEST, field, text, f"at least {SHORTEST:.0f} seconds")
        return cls(sum(seconds), seconds[0] if len(seconds) == 2 else None)


def _seconds(text: str) -> float | None:
    found = _ONE.fullmatch(text)
    if not found or not text:
        return None
    return sum(float(each) * unit for each, unit in zip(found.groups(), _UNITS.values(), strict=True) if each)


def duration(seconds: float) -> str:
    """A time in words: 45 s, 12.5 min, 3.2 h, 2.1 days."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit == 1 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} days"
