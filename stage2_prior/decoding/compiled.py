"""Compiled decoding engine: a step of fixed shapes, for ``torch.compile`` and, on a GPU, CUDA graphs.

A step of the plain engine is some 25 calls per layer. Where each takes longer to launch than to compute, as on a GPU,
the compiled step fuses the operations between the products and is launched at once. On a CPU the plain engine is
faster: its products keep their weights in oneDNN's order, which a compiled program cannot read.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch

from stage2_prior.decoding.engine import DecodingEngine, KVCache
from stage2_prior.decoding.weights import InferenceWeights
from stage2_prior.prior import PriorModel, require_length

Step = Callable[..., torch.Tensor]
_PARTS = 4
"""Programs are made for attention over this many lengths of the cache: a quarter of it, a half and so on."""
_MOST_PROGRAMS = 256
"""of one function, for all engines of a process; beyond them the step runs uncompiled"""


class CompiledEngine(DecodingEngine):
    """As ``DecodingEngine``, equal up to rounding; the first image takes tens of seconds more.

    Args:
        prior, grid, shared: see ``DecodingEngine``.
    """

    compiled = True

    def __init__(self, prior: PriorModel, grid: int = 0, shared: InferenceWeights | None = None) -> None:
        super().__init__(prior, grid, shared)
        for each in self._constants():
            torch._dynamo.mark_static_address(each)
        self._idle: dict[int, list[torch.Tensor]] = {}  # number of rows => memory of caches that are gone
        self._programs: set[tuple[int, int]] = set()
        self._refused: set[tuple[int, int]] = set()
        self._step = self._compiled(self._one_token)
        self._head = self._compiled(self._all_logits)

    def batch_for(self, n_images: int) -> int:
        """1, 2, 3, 4, 6, 8, 12, 16 and so on: few shapes to compile and to keep memory for."""
        power = 1 << (n_images - 1).bit_length()
        return 3 * power // 4 if power >= 4 and n_images <= 3 * power // 4 else power

    @torch.inference_mode()
    def new_cache(self, n_rows: int) -> KVCache:
        """See ``DecodingEngine``."""
        idle = self._idle.setdefault(n_rows, [])
        cache = KVCache(idle.pop(), self.weights.n_heads) if idle else super().new_cache(n_rows)
        cache.kv.zero_()  # steps read beyond what is filled, and 0 times a NaN that lay in memory would be NaN
        weakref.finalize(cache, idle.append, cache.kv)  # a CUDA graph is recorded for one address
        return cache

    @torch.inference_mode()
    def decode_one(self, tokens_R: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """See ``DecodingEngine``."""
        t = cache.filled
        require_length(self.n_codes, t + 1)
        part = -(-self.n_codes // _PARTS)
        length = min(self.n_codes, -(-(t + 1) // part) * part)
        torch._dynamo.mark_static_address(cache.kv, guard=False)
        torch.compiler.cudagraph_mark_step_begin()
        arguments = (tokens_R, torch.full((1,), t, device=tokens_R.device), cache.kv, cache.n_heads, length)
        x_RE = self._run(self._step, self._one_token, (len(tokens_R), length), *arguments)
        cache.filled = t + 1
        return x_RE

    @torch.inference_mode()
    def logits(self, x_RE: torch.Tensor, position: int) -> torch.Tensor:
        """See ``DecodingEngine``."""
        return self._run(self._head, self._all_logits, (len(x_RE), 0), x_RE)[:, : self._sizes[position]]

    def _one_token(
        self, tokens_R: torch.Tensor, t_1: torch.Tensor, kv: torch.Tensor, n_heads: int, length: int
    ) -> torch.Tensor:
        """``decode_one`` at position t_1, which attends to the first ``length`` positions of the cache up to t_1."""
        weights, n_rows = self.weights, len(tokens_R)
        x_RE = self._embed(tokens_R, t_1)
        cos, sin = (each.index_select(-2, t_1).squeeze(-2) for each in (weights.cos, weights.sin))
        later_T = torch.arange(length, device=t_1.device) > t_1
        for i, layer in enumerate(weights.layers):
            qkv_3RNK = layer.qkv(self._normalize(x_RE)).view(n_rows, 3, n_heads, -1).transpose(0, 1)
            rotated_3RNK = self._rotated(qkv_3RNK, cos[i], sin[i]).flatten(1, 2)
            kv[i].index_copy_(2, t_1, rotated_3RNK[1:].unsqueeze(2).to(kv.dtype))
            keys_XTK, values_XTK = kv[i, 0, :, :length], kv[i, 1, :, :length]
            scores_X1T = torch.bmm(rotated_3RNK[0].unsqueeze(1).to(kv.dtype), keys_XTK.transpose(1, 2)).float()
            shares_X1T = scores_X1T.masked_fill(later_T, -torch.inf).softmax(-1)
            attended_X1K = torch.bmm(shares_X1T.to(kv.dtype), values_XTK).float()
            x_RE = layer.out.add_to(x_RE, attended_X1K.view(x_RE.shape))
            x_RE = layer.down.add_to(x_RE, self._activate(layer.gate_up(self._normalize(x_RE))))
        return x_RE

    def _all_logits(self, x_RE: torch.Tensor) -> torch.Tensor:
        return self.weights.head(self._normalize(x_RE))

    def _compiled(self, function: Step) -> Step:
        mode = "reduce-overhead" if self.weights.device.type == "cuda" else "default"
        return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)

    def _run(self, compiled: Step, plain: Step, shape: tuple[int, int], *arguments: object) -> torch.Tensor:
        """Call a program that is made at the first call of each shape; torch's limit of a few is for programs whose
        number grows with the data, as that of these hardly does.
        """
        if shape in self._refused:
            return plain(*arguments)
        if shape in self._programs:
            return compiled(*arguments)
        try:
            with torch._dynamo.config.patch(recompile_limit=_MOST_PROGRAMS):
                result = compiled(*arguments)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            self._refused.add(shape)
            return plain(*arguments)
        self._programs.add(shape)
        return result

    def _constants(self) -> list[torch.Tensor]:
        weights = self.weights
        linears = [linear for layer in weights.layers for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        held = [tensor for linear in (*linears, weights.head) for tensor in vars(linear).values()]
        held += [weights.cos, weights.sin, weights.code_SE, weights.offset_T, weights.position_TE, weights.eps_E]
        return [each for each in (*held, weights.eps_K) if isinstance(each, torch.Tensor)]
