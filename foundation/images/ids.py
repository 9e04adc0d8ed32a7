"""Ids of many images, in Arrow arrays: about 20 bytes an image, made into text when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa


class Ids(Sequence[str]):
    """Texts in chunks, each chunk with a start of its own: ``prefix + text``.

    Args:
        chunks: (prefix, texts) of each chunk.
    """

    def __init__(self, chunks: Sequence[tuple[str, pa.Array]]) -> None:
        self._chunks = [(prefix, texts) for prefix, texts in chunks if len(texts)]
        self._ends = np.cumsum([len(texts) for _, texts in self._chunks], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = int(index)
        index += len(self) if index < 0 else 0
        if not 0 <= index < len(self):
            raise IndexError(index)
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        prefix, texts = self._chunks[chunk]
        return f"{prefix}{texts[index - int(self._ends[chunk]) + len(texts)].as_py()}"

    def __iter__(self) -> Iterator[str]:
        for prefix, texts in self._chunks:
            for text in texts.to_pylist():
                yield f"{prefix}{text}"

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Ids([{shown}{', ...' if len(self) > 3 else ''}], {len(self):,} of them)"
