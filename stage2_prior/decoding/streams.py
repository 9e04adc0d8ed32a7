"""Random streams of images: what is drawn for an image depends on its seed and the place of the draw alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foundation.randomness import derive_seed


def stream(purpose: str, *key: int) -> torch.Generator:
    """A generator of its own for a purpose and a key."""
    return torch.Generator().manual_seed(derive_seed(purpose, *key))


class GumbelStreams:
    """Exponential numbers of each image, position and code, whose negative logarithms are Gumbel numbers.

    A code drawn as the largest of log p + Gumbel, or the least of exponential / p, mostly stays what it is where the
    probabilities change a little; a code drawn by the inverse of their cumulative sum may change with any of them.
    Source: Maddison, Tarlow and Minka 2014, "A* sampling", arXiv:1411.0030, section 2.

    Args:
        seeds: of the images.
        n_codes: V, numbers of each position.
    """

    def __init__(self, seeds: Sequence[int], n_codes: int) -> None:
        self._seeds, self._n_codes = seeds, n_codes
        self._kept: dict[tuple[int, int], torch.Tensor] = {}

    def at(self, positions_BK: torch.Tensor) -> torch.Tensor:
        """(B * K, V) float32, above 0; the latest numbers are kept, as windows ask for them again."""
        keys = [(image, position) for image, row in enumerate(positions_BK.tolist()) for position in row]
        self._kept = {key: self._kept[key] if key in self._kept else self._drawn(*key) for key in keys}
        return torch.stack(list(self._kept.values()))

    def _drawn(self, image: int, position: int) -> torch.Tensor:
        generator = stream("gumbel", self._seeds[image], position)
        return torch.empty(self._n_codes).exponential_(generator=generator)


class LatentStreams:
    """Random numbers of each image and position of a latent.

    Args:
        seeds: of the images.
        n_candidates: M, values of which guidance chooses one.
        n_channels: C.
    """

    def __init__(self, seeds: Sequence[int], n_candidates: int, n_channels: int) -> None:
        self._seeds, self._size = seeds, (n_candidates, 1 + n_channels)

    def at(self, cells_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers for the candidates, (B * K, M, 1 + C), and for the choice, (B * K,); float64 in [0, 1)."""
        n_candidates, width = self._size
        size = 1 + n_candidates * width
        rows = [
            torch.rand(size, dtype=torch.float64, generator=stream("sample a latent", seed, cell))
            for seed, cells in zip(self._seeds, cells_BK.tolist(), strict=True)
            for cell in cells
        ]
        numbers = torch.stack(rows)
        return numbers[:, 1:].unflatten(1, self._size), numbers[:, 0].contiguous()


class PassStreams:
    """Random numbers of each image, pass by pass.

    Args:
        seeds: of the images.
        n_codes: T.
    """

    def __init__(self, seeds: Sequence[int], n_codes: int) -> None:
        self._generators = [stream("sample in passes", seed) for seed in seeds]
        self._n_codes = n_codes

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers for codes and for confidence, (B, T) float64 in [0, 1) each."""
        size = 2, self._n_codes
        both = [torch.rand(size, dtype=torch.float64, generator=each) for each in self._generators]
        codes, noise = torch.stack(both, 1)
        return codes, noise
