"""YAML in which no key may stand twice: by default the last one wins, in silence."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in lines:
                raise ComposerError(None, None, f"{name!r} stands in line {lines[name]} and again in line {line}")
            lines[name] = line
        return node


def read_yaml(text: str) -> Any:
    """The values of one YAML document.

    Raises:
        yaml.YAMLError: not YAML, or a key that stands twice in one mapping.
    """
    return yaml.load(text, _Loader)
