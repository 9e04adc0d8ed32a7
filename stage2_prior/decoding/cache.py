"""Key-value cache: memory for the keys and values of all inputs of some rows, in all blocks."""

from __future__ import annotations

import torch

from foundation.hardware import free_memory
from stage2_prior.block import LayerCache
from stage2_prior.prior import PriorModel

_SHARE = 0.25
"""of the free memory, which sampling may fill"""
_MOST_IMAGES = {"cpu": 64, "other": 256}
"""larger batches are no faster per image"""


class KVCache:
    """Keys and values of up to T inputs of R rows.

    >>> cache = KVCache(torch.empty(1, 2, 4, 2, 3, 4))
    >>> cache.n_rows, cache.rows(0, 2).kv.shape
    (4, torch.Size([1, 2, 2, 2, 3, 4]))

    Args:
        kv: (L, 2, R, N, T, K): of each block, keys, then values.
        filled: inputs held.
    """

    def __init__(self, kv: torch.Tensor, filled: int = 0) -> None:
        self.kv, self.filled, self.n_rows = kv, filled, kv.shape[2]
        self._kv_SRNTK = kv.flatten(0, 1)  # S = 2 L

    @classmethod
    def for_prior(cls, prior: PriorModel, n_rows: int, n_probes: int = 0) -> KVCache:
        """Empty, for whole images and some probes; in float32 on a CPU, in the type of the weights elsewhere."""
        (n_layers, n_heads, _), weight = prior.config.shape, prior.head.weight
        dtype = torch.float32 if weight.device.type == "cpu" and weight.dtype.itemsize < 4 else weight.dtype
        shape = (n_layers, 2, n_rows, n_heads, prior.n_steps + n_probes, prior.config.d_head)
        return cls(torch.empty(shape, device=weight.device, dtype=dtype))

    def rows(self, first: int, last: int) -> KVCache:
        """Rows ``first:last``: the same memory, with its own ``filled``."""
        return KVCache(self.kv[:, :, first:last], self.filled)

    def append(self, n_inputs: int, n_probes: int = 0) -> list[LayerCache]:
        """For each block, where new inputs go, each of which attends to all before it and itself.

        Args:
            n_inputs: that the cache keeps.
            n_probes: inputs after them, each instead of the last one, whose memory the next inputs take.
        """
        first, n_new = self.filled, n_inputs + n_probes
        end, self.filled = first + n_new, first + n_inputs
        causal = first == 0 and n_probes == 0 and n_new > 1
        mask = None if causal or n_new == 1 else self._mask(first, n_inputs, n_probes)
        seen, into = self._kv_SRNTK.narrow(3, 0, end).unbind(0), self.kv.narrow(4, first, n_new).unbind(0)
        return [LayerCache(k, v, new, mask, causal) for k, v, new in zip(seen[::2], seen[1::2], into, strict=True)]

    def _mask(self, first: int, n_inputs: int, n_probes: int) -> torch.Tensor:
        """Which of the earlier and new inputs each new one attends to, bool."""
        size = n_inputs + n_probes, first + n_inputs + n_probes
        mask = torch.ones(size, dtype=torch.bool, device=self.kv.device).tril_(first)
        if n_probes:
            mask[n_inputs:, first + n_inputs - 1 :] = torch.eye(n_probes + 1, dtype=torch.bool, device=mask.device)[1:]
        return mask

    def insert(self, at_Q: torch.Tensor, length: int) -> list[LayerCache]:
        """For each block, room for inputs at positions that are a tensor, among the first ``length``."""
        mask_QT = torch.arange(length, device=at_Q.device) <= at_Q.unsqueeze(1)
        seen = self._kv_SRNTK[:, :, :, :length].unbind(0)
        return [LayerCache(k, v, at_Q, mask_QT, False) for k, v in zip(seen[::2], seen[1::2], strict=True)]


class CodesCache:
    """The class and codes of R rows, for a prior that computes all features again at each step.

    Args:
        labels_R, tokens_RT: memory, int64.
        filled: inputs held, of which the class is the first.
    """

    def __init__(self, labels_R: torch.Tensor, tokens_RT: torch.Tensor, filled: int = 0) -> None:
        self.labels_R, self.tokens_RT, self.filled, self.n_rows = labels_R, tokens_RT, filled, len(labels_R)

    def rows(self, first: int, last: int) -> CodesCache:
        """Rows ``first:last``: the same memory, with its own ``filled``."""
        return CodesCache(self.labels_R[first:last], self.tokens_RT[first:last], self.filled)


Cache = KVCache | CodesCache


def images_that_fit(prior: PriorModel, rows_per_image: int) -> int:
    """Images whose cache, activations and probabilities take a quarter of the free memory; 1 or more, and no more
    than are faster at once.

    Args:
        prior: to be sampled from.
        rows_per_image: 2 with guidance, else 1.
    """
    device = prior.head.weight.device
    fitting = int(free_bytes(device) * _SHARE // bytes_per_image(prior, rows_per_image))
    return min(max(1, fitting), _MOST_IMAGES["cpu" if device.type == "cpu" else "other"])


def bytes_per_image(prior: PriorModel, rows_per_image: int) -> int:
    """Memory that one image takes during sampling."""
    n_layers, _, d_model = prior.config.shape
    cache = 2 * n_layers * prior.n_steps * d_model * 4
    logits, filters = 4 * prior.vocab_size, 32 * prior.vocab_size
    return rows_per_image * (cache + logits + 64 * d_model) + filters


def free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()
