"""Decoding engine: the transformer of a prior as plain tensor functions over a key-value cache.

It computes what ``PriorModel.forward`` does, up to rounding, on a copy of the weights that is merged and laid out for
few rows (``weights.py``), without modules, hooks or gradients. One token takes about 25 calls per layer; at a batch of
one, their number is the time. ``images_that_fit`` says how large a batch may be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from foundation.hardware import free_memory
from stage2_prior.decoding.weights import InferenceWeights
from stage2_prior.prior import PriorModel, require_length

_PREFILL_TOKENS = 4096
"""tokens that go through a layer at once"""
_ONE_THREAD = 32767
"""numbers up to which torch computes an elementwise function with one thread"""
_SHARE = 0.25
"""of the free memory, which sampling may fill"""
_MOST_IMAGES = {"cpu": 64, "other": 256}
"""larger batches are no faster per image"""


class KVCache:
    """Keys and values of all T inputs of R rows, all layers in one tensor, and memory for one step's results.

    >>> cache = KVCache(torch.empty(1, 2, 4 * 2, 3, 4), n_heads=2)
    >>> cache.n_rows, cache.rows(0, 2).kv.shape
    (4, torch.Size([1, 2, 4, 3, 4]))

    Args:
        kv: (L, 2, R * N, T, K): keys, then values.
        n_heads: N.
        filled: tokens held.

    Attributes:
        rotated_3RNK: float32 memory for one token's queries, keys and values of a layer; ``q`` and ``kv_new`` are views
            of it.
        lengths_3RN1: float32 memory for the lengths of queries, keys and values.
        divisors_3RN1: their divisors; 1 for values.
    """

    def __init__(self, kv: torch.Tensor, n_heads: int, filled: int = 0) -> None:
        self.kv, self.n_heads, self.filled = kv, n_heads, filled
        self.n_rows, d_head = kv.shape[2] // n_heads, kv.shape[4]
        self.rotated_3RNK = kv.new_empty(3, self.n_rows, n_heads, d_head, dtype=torch.float32)
        self.q = self.rotated_3RNK[0].view(-1, 1, d_head)  # (R * N, 1, K)
        self.kv_new = self.rotated_3RNK[1:].view(2, -1, d_head)  # (2, R * N, K)
        self.lengths_3RN1 = kv.new_empty(3, self.n_rows, n_heads, 1, dtype=torch.float32)
        self.divisors_3RN1 = torch.ones_like(self.lengths_3RN1)

    def rows(self, first: int, last: int) -> KVCache:
        """Rows ``first:last``: the same memory, with its own ``filled``."""
        return KVCache(self.kv[:, :, first * self.n_heads : last * self.n_heads], self.n_heads, self.filled)


class DecodingEngine:
    """Prefill and single steps of a prior.

    On a CPU with oneDNN a row's results do not depend on the other rows, to the last bit, as long as there are at
    least ``weights.MIN_ROWS``.

    Args:
        prior: the model; its parameters are copied and cast to the ``weight_type`` of their dtype. Later changes do not
            reach the copy; hooks and wrapped modules have no effect.
        grid: of the images, an index into ``spec.grids``.
        shared: the weights of an engine of the same prior for another grid, which are then not copied again.

    Attributes:
        weights: the copy.
        n_codes: T.
        null_class: the label of no class.
        vocab_size: V, the size of the largest codebook.
        compiled: whether its steps are compiled.
    """

    compiled = False

    def __init__(self, prior: PriorModel, grid: int = 0, shared: InferenceWeights | None = None) -> None:
        with torch.inference_mode():
            if shared is None:
                self.weights = InferenceWeights(prior, packed=not self.compiled, grid=grid)
            else:
                self.weights = shared.with_grid(prior, grid)
        self._activate = _gelu if self.weights.gpt else _swiglu
        self.n_codes, self._sizes = prior.n_codes, prior.position_tables.size_T.tolist()
        self.null_class, self.vocab_size = prior.null_class, prior.vocab_size

    def batch_for(self, n_images: int) -> int:
        """The batch that is computed for ``n_images``: as many, or a few more."""
        return n_images

    @torch.inference_mode()
    def new_cache(self, n_rows: int) -> KVCache:
        """An empty cache for whole images."""
        weights = self.weights
        dtype = torch.float32 if weights.device.type == "cpu" else weights.dtype
        shape = (len(weights.layers), 2, n_rows * weights.n_heads, self.n_codes, weights.d_head)
        return KVCache(torch.empty(shape, device=weights.device, dtype=dtype), weights.n_heads)

    @torch.inference_mode()
    def prefill(self, labels_R: torch.Tensor, tokens_RP: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Put the class and P known codes (P may be 0) into an empty cache.

        Args:
            labels_R: class numbers, int64.
            tokens_RP: codes, int64.
            cache: of R rows; overwritten.

        Returns:
            (R, E), which ``logits`` turns into code P's logits.

        Raises:
            DataError: P codes or more make an image.
        """
        length = tokens_RP.shape[1] + 1
        require_length(self.n_codes, length)
        rows = max(1, _PREFILL_TOKENS // length)
        parts = [
            self._prefill(labels_R[i : i + rows], tokens_RP[i : i + rows], cache.kv[:, :, i * cache.n_heads :])
            for i in range(0, len(labels_R), rows)
        ]
        cache.filled = length
        return torch.cat(parts)

    @torch.inference_mode()
    def decode_one(self, tokens_R: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Append one code per row to the cache.

        Returns:
            (R, E), which ``logits`` turns into the next code's logits.

        Raises:
            DataError: the cache holds a whole image.
        """
        t, weights = cache.filled, self.weights
        require_length(self.n_codes, t + 1)
        x_RE = self._embed(tokens_R, slice(t, t + 1))
        rotations = zip(weights.cos[..., t, :].unbind(0), weights.sin[..., t, :].unbind(0), strict=True)
        slots = cache.kv[:, :, :, t].unbind(0)
        keys = cache.kv[:, 0, :, : t + 1].transpose(2, 3).unbind(0)
        values = cache.kv[:, 1, :, : t + 1].unbind(0)
        for layer, rotation, slot, k, v in zip(weights.layers, rotations, slots, keys, values, strict=True):
            qkv_RF = layer.qkv(self._normalize(x_RE))
            self._rotate_into(qkv_RF.view(cache.n_rows, 3, cache.n_heads, -1).transpose(0, 1), rotation, cache)
            slot.copy_(cache.kv_new)
            x_RE = layer.out.add_to(x_RE, _attention(cache.q, k, v).view(x_RE.shape))
            x_RE = layer.down.add_to(x_RE, self._activate(layer.gate_up(self._normalize(x_RE))))
        cache.filled = t + 1
        return x_RE

    @torch.inference_mode()
    def logits(self, x_RE: torch.Tensor, position: int) -> torch.Tensor:
        """The logits of the codes that may stand at a position: (R, size of its codebook) float32."""
        return self.weights.head(self._normalize(x_RE))[:, : self._sizes[position]]

    def _embed(self, tokens: torch.Tensor, inputs: slice | torch.Tensor) -> torch.Tensor:
        """Codes that are these inputs, (R,) or (R, P) => (R, E) or (R, P, E)."""
        weights = self.weights
        if weights.offset_T is not None:
            tokens = tokens + weights.offset_T[inputs]
        x = F.embedding(tokens, weights.code_SE)
        return x if weights.position_TE is None else x.add_(weights.position_TE[inputs])

    def _normalize(self, x_RE: torch.Tensor) -> torch.Tensor:
        """RMSNorm, or LayerNorm, without the constants that the next weight holds."""
        if self.weights.gpt:
            x_RE = x_RE - x_RE.mean(1, keepdim=True)
        return x_RE / torch.linalg.vector_norm(x_RE, dim=1, keepdim=True).hypot_(self.weights.eps_E)

    def _rotated(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Normalise and rotate queries and keys, (3, ..., K); values stay as they are."""
        rotated = (qkv * cos).addcmul_(qkv.roll(self.weights.d_head // 2, -1), sin)
        if self.weights.normalized_heads:
            rotated[:2].div_(torch.linalg.vector_norm(qkv[:2], dim=-1, keepdim=True).hypot_(self.weights.eps_K))
        return rotated

    def _rotate_into(self, qkv_3RNK: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], cache: KVCache) -> None:
        """As ``_rotated``, into the cache's memory."""
        rotated = torch.mul(qkv_3RNK, rotation[0], out=cache.rotated_3RNK)
        rotated.addcmul_(qkv_3RNK.roll(rotated.shape[-1] // 2, -1), rotation[1])
        if self.weights.normalized_heads:
            torch.linalg.vector_norm(qkv_3RNK, dim=-1, keepdim=True, out=cache.lengths_3RN1)
            torch.hypot(cache.lengths_3RN1[:2], self.weights.eps_K, out=cache.divisors_3RN1[:2])
            rotated.div_(cache.divisors_3RN1)

    def _prefill(self, labels_R: torch.Tensor, tokens_RP: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """As ``prefill``, for the first R rows of a cache's memory, all layers and tokens at once."""
        weights, (n_rows, length) = self.weights, (len(labels_R), tokens_RP.shape[1] + 1)
        class_R1E = F.embedding(labels_R.unsqueeze(1), weights.class_CE)
        if weights.position_TE is not None:
            class_R1E.add_(weights.position_TE[:1])
        x_XE = torch.cat([class_R1E, self._embed(tokens_RP, slice(1, length))], 1).flatten(0, 1)  # X = R * T
        kv_LSRNTK = kv[:, :, : n_rows * weights.n_heads, :length].unflatten(2, (n_rows, weights.n_heads))
        cos, sin = weights.cos[..., :length, :], weights.sin[..., :length, :]
        for i, layer in enumerate(weights.layers):
            qkv_XF = layer.qkv(self._normalize(x_XE))
            qkv = qkv_XF.view(n_rows, length, 3, weights.n_heads, -1).permute(2, 0, 3, 1, 4)  # (3, R, N, T, K)
            rotated = self._rotated(qkv, cos[i], sin[i])
            kv_LSRNTK[i].copy_(rotated[1:])
            attended_RNTK = _causal_attention(rotated[0], *kv_LSRNTK[i])
            x_XE = layer.out.add_to(x_XE, attended_RNTK.transpose(1, 2).reshape(x_XE.shape))
            x_XE = layer.down.add_to(x_XE, self._activate(layer.gate_up(self._normalize(x_XE))))
        return x_XE.view(n_rows, length, -1)[:, -1]


def _causal_attention(q_RNTK: torch.Tensor, k_RNTK: torch.Tensor, v_RNTK: torch.Tensor) -> torch.Tensor:
    """All queries of a prefill over the cache.

    On a CPU one after another, by the calls of a step, so that it makes no difference to the last bit whether codes
    were sampled or given; the products around it take longer. Elsewhere, where calls cost more, all at once.
    """
    if q_RNTK.device.type != "cpu":
        q = q_RNTK.to(k_RNTK.dtype)
        return F.scaled_dot_product_attention(q, k_RNTK, v_RNTK, is_causal=True, scale=1.0).float()
    attended_RNTK = torch.empty_like(q_RNTK)
    keys_XKT, values_XTK = k_RNTK.flatten(0, 1).transpose(1, 2), v_RNTK.flatten(0, 1)
    for t in range(q_RNTK.shape[2]):
        q_X1K = q_RNTK[:, :, t].flatten(0, 1).unsqueeze(1)
        attended_X1K = _attention(q_X1K, keys_XKT[:, :, : t + 1], values_XTK[:, : t + 1])
        attended_RNTK[:, :, t] = attended_X1K.view(attended_RNTK[:, :, t].shape)
    return attended_RNTK


def _attention(q_X1K: torch.Tensor, keys_XKT: torch.Tensor, values_XTK: torch.Tensor) -> torch.Tensor:
    """One query per row and head, X = R * N, (X, 1, K)."""
    if keys_XKT.dtype == torch.float32:
        return torch.bmm(torch.bmm(q_X1K, keys_XKT).softmax(-1), values_XTK)
    scores = torch.bmm(q_X1K.to(keys_XKT.dtype), keys_XKT).float()
    return torch.bmm(scores.softmax(-1).to(keys_XKT.dtype), values_XTK).float()


def _swiglu(gate_up_RF: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, in the gate's memory."""
    gate_RG, up_RG = gate_up_RF.chunk(2, 1)
    for part in _parts(gate_RG):
        F.silu(part, inplace=True)
    return gate_RG.mul_(up_RG)


def _gelu(x_RG: torch.Tensor) -> torch.Tensor:
    """The exact GELU, x * Phi(x), in the memory of x."""
    for part in _parts(x_RG):
        torch.ops.aten.gelu_(part)
    return x_RG


def _parts(x_RG: torch.Tensor) -> Sequence[torch.Tensor]:
    """Rows that one thread computes, on a CPU: where a part is cut between threads, the numbers next to the cut are
    computed by another formula for exp than the rest, and a row would depend on where it stands.
    """
    whole = x_RG.numel() < _ONE_THREAD or x_RG.device.type != "cpu"
    return (x_RG,) if whole else x_RG.split(max(1, _ONE_THREAD // x_RG.shape[1]))


def images_that_fit(engine: DecodingEngine, rows_per_image: int) -> int:
    """Images whose cache, activations and probabilities take a quarter of the free memory; 1 or more, and no more
    than are faster at once.

    Args:
        engine: of the prior.
        rows_per_image: 2 with guidance, else 1.
    """
    device = engine.weights.device
    fitting = int(free_bytes(device) * _SHARE // bytes_per_image(engine, rows_per_image))
    return min(max(1, fitting), _MOST_IMAGES["cpu" if device.type == "cpu" else "other"])


def bytes_per_image(engine: DecodingEngine, rows_per_image: int) -> int:
    """Memory that one image takes during sampling."""
    weights = engine.weights
    cache = 2 * len(weights.layers) * engine.n_codes * weights.d_model * 4
    logits, filters = 4 * engine.vocab_size, 32 * engine.vocab_size
    return rows_per_image * (cache + logits + 64 * weights.d_model) + filters


def free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()
