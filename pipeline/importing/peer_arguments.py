"""``--config FILE``: what a system's own configuration says about a checkpoint, by the system's own argument names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from foundation.errors import ConfigError, nearest

_OF_OTHER_THINGS = {"lossconfig", "data", "lightning", "optimizer", "scheduler_config", "tensors", "notes", "wrapper"}


@dataclass(frozen=True)
class PeerArguments:
    """Arguments in a JSON or YAML file, wherever in its tree they stand.

    Attributes:
        values: the file's tree; empty without a file.
        source: the file, for messages.
        defaults: what holds where the file says nothing: what is known of a published model.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def find(self, name: str, default: Any = None) -> Any:
        """The value of an argument; of those that stand at different depths, the one nearest the root.

        Raises:
            ConfigError: two values at one depth that differ.
        """
        level = [self.values]
        while level:
            found = [each[name] for each in level if name in each]
            if found:
                if any(each != found[0] for each in found):
                    raise ConfigError("is said twice, with different values", field=f"{self.source}: {name}",
                                      found=found)  # fmt: skip
                return found[0]
            level = [inner for each in level for key, inner in each.items()
                     if isinstance(inner, Mapping) and key not in _OF_OTHER_THINGS]  # fmt: skip
        return self.defaults.get(name, default)

    def require(self, name: str, of: str) -> Any:
        """The value of an argument that the tensors' shapes cannot tell.

        Raises:
            ConfigError: it is not said.
        """
        value = self.find(name)
        if value is None:
            lacking = f"{self.source} does not say it" if self.source else "no --config"
            raise ConfigError(f"must be known: the shapes of {of} cannot tell it, and no published model has them",
                              field=name, found=lacking, fix=f"give --config FILE that says {name}")  # fmt: skip
        return value

    def require_agreement(self, told: Mapping[str, Any]) -> None:
        """Refuse a file that belongs to another model.

        Args:
            told: argument -> what the tensors' shapes say it is.

        Raises:
            ConfigError: naming the argument and both values, or that the file has none of these arguments.
        """
        known = 0
        for name, value in told.items():
            found = PeerArguments(self.values, self.source).find(name)
            found = list(found) if isinstance(found, (list, tuple)) else found
            if found is not None and found != value:
                raise ConfigError("does not fit the tensors", field=f"{self.source}: {name}", found=found,
                                  expected=value, fix="give the configuration of this checkpoint")  # fmt: skip
            known += found is not None
        if self.values and not known:
            raise ConfigError("says nothing about this format's models", field=self.source,
                              expected=f"arguments such as {', '.join(list(told)[:4])}",
                              fix=nearest(next(iter(self.values)), told))  # fmt: skip


def read_arguments(path: Path | None) -> PeerArguments:
    """Read a configuration file, JSON or YAML.

    Raises:
        ConfigError: missing, unreadable or not a mapping.
    """
    if path is None:
        return PeerArguments()
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {str(error)[:300]}", field=f"--config {path}",
                          fix="give the system's own JSON or YAML file") from error  # fmt: skip
    if not isinstance(values, dict):
        raise ConfigError("holds no arguments", field=f"--config {path}", found=type(values).__name__)
    return PeerArguments(values, str(path))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)  # to YAML, 1e-05 would be a text
    except json.JSONDecodeError:
        return yaml.safe_load(text)
