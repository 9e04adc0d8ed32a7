"""The order of training examples: a function of (seed, epoch), so that nothing of it has to be saved or held."""

from __future__ import annotations

import numpy as np

from foundation.randomness import permuted

ORDER_VERSION = 2
"""part of a training's identity: a checkpoint from before the order changed could not be continued in the middle of an
epoch"""


class DataOrder:
    """The order of examples as a pure function of (seed, epoch); a position is the number of samples consumed.

    Every epoch is a permutation of its own that is computed where it is asked for: a hundred million examples need no
    more memory than a thousand.

    Args:
        n_examples: size of the data.
        seed: of the shuffling.
    """

    def __init__(self, n_examples: int, seed: int) -> None:
        self.n_examples, self.seed = n_examples, seed

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of the samples at ``positions`` (B,) of the endless sequence."""
        epochs = positions // self.n_examples
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            places = positions[here] % self.n_examples
            indices[here] = permuted(places, self.n_examples, self.seed, "order", int(epoch))
        return indices, epochs
