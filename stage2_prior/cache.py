"""Keys and values of the tokens so far, for drawing one code at a time."""

from __future__ import annotations

import torch


class KVCache:
    """Room for the keys and values of all T inputs of R rows, all layers in one tensor, and for one step's results.

    >>> cache = KVCache(torch.empty(1, 2, 4 * 2, 3, 4), n_heads=2)
    >>> cache.n_rows, cache.rows(0, 2).kv.shape
    (4, torch.Size([1, 2, 4, 3, 4]))

    Args:
        kv: (L, 2, R * N, T, K): keys, then values.
        n_heads: N.
        filled: tokens held.

    Attributes:
        turned_3RNK: float32 room for one token's queries, keys and values of a layer; ``q`` and ``kv_new`` are views
            of it.
        lengths_3RN1: float32 room for the lengths of queries, keys and values.
        divisors_3RN1: what they are divided by; stays 1 for values.
    """

    def __init__(self, kv: torch.Tensor, n_heads: int, filled: int = 0) -> None:
        self.kv, self.n_heads, self.filled = kv, n_heads, filled
        self.n_rows, d_head = kv.shape[2] // n_heads, kv.shape[4]
        self.turned_3RNK = kv.new_empty(3, self.n_rows, n_heads, d_head, dtype=torch.float32)
        self.q = self.turned_3RNK[0].view(-1, 1, d_head)  # (R * N, 1, K)
        self.kv_new = self.turned_3RNK[1:].view(2, -1, d_head)  # (2, R * N, K)
        self.lengths_3RN1 = kv.new_empty(3, self.n_rows, n_heads, 1, dtype=torch.float32)
        self.divisors_3RN1 = torch.ones_like(self.lengths_3RN1)

    def rows(self, first: int, last: int) -> KVCache:
        """The part of rows ``first:last``: the same memory, a count of its own."""
        return KVCache(self.kv[:, :, first * self.n_heads : last * self.n_heads], self.n_heads, self.filled)
