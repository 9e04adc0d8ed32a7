"""The order of training examples: a function of (seed, epoch), so that nothing of it has to be saved."""

from __future__ import annotations

import numpy as np

from foundation.randomness import permutation


class DataOrder:
    """The order of examples as a pure function of (seed, epoch); a position is the number of samples consumed.

    Args:
        n_examples: size of the data.
        seed: of the shuffling.
    """

    def __init__(self, n_examples: int, seed: int) -> None:
        self.n_examples, self.seed = n_examples, seed
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of the samples at ``positions`` (B,) of the endless sequence."""
        epochs = positions // self.n_examples
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[positions[here] % self.n_examples]
        return indices, epochs

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._cached[0] != epoch:
            self._cached = (epoch, permutation(self.n_examples, self.seed, "order", epoch))
        return self._cached[1]
