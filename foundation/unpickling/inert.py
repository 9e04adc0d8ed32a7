"""What stands in for everything in a pickle that is not a tensor or a plain container: records that do nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names. It is never looked up.

    Attributes:
        path: module and name, e.g. ``torch.nn.modules.container.Sequential``.
    """

    path: str


@dataclass(eq=False)
class Inert:
    """An object that a pickle wants made by calling something. Nothing is called; what it was given is recorded.

    Attributes:
        maker: what would have been called, mostly a ``Name``.
        arguments: what it would have been called with.
        state: what would have been set on the object.
        items, pairs: what would have been appended to it or set in it.
    """

    maker: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def __repr__(self) -> str:  # without what it holds, which may be nested without end
        return f"<inert {self.maker.path if isinstance(self.maker, Name) else 'object'}>"

    @property
    def attributes(self) -> dict[str, Any]:
        """The state if it is a dictionary, as that of a module is; else nothing."""
        return self.state if isinstance(self.state, dict) else {}
