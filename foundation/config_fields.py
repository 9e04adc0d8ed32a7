"""Configuration fields that came after the first models were saved.

A model's fingerprint covers its settings. A field that is added later must not change the fingerprints of models that
were saved without it: at its default, which is what those models mean, it is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from foundation.config import Choice, to_dict

T = TypeVar("T")
_MARK = "later"


def later(default: T) -> T:
    """Declare a dataclass field with a plain default that ``settled`` leaves out at that default."""
    return dataclasses.field(default=default, metadata={_MARK: True})  # type: ignore[no-any-return]


def settled(config: Any) -> Any:
    """``to_dict`` without the later fields that are at their defaults."""
    if isinstance(config, Mapping):
        return {str(key): settled(value) for key, value in config.items()}
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return to_dict(config)
    kept = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if not (each.metadata.get(_MARK) and value == each.default):
            kept[each.name] = settled(value)
    return {"type": config.type_name, **kept} if isinstance(config, Choice) else kept
