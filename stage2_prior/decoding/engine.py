"""Decoding engine: the modules of a prior, run input by input over a key-value cache.

It computes what ``PriorModel.forward`` does, up to rounding, by the modules' own forward functions: changed weights,
hooks, adapters and other modules act as they do there. Without any of these ``plain_blocks.py`` does the same on a CPU
with fewer calls. ``prior.compile_decoding()`` compiles a step of fixed shapes with ``torch.compile`` and, on a GPU,
CUDA graphs: where each operation takes longer to launch than to compute, the whole step is launched at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch

from foundation.errors import ConfigError
from stage2_prior.block import Attention, LayerCache, RMSNorm
from stage2_prior.decoding.cache import Cache, CodesCache, KVCache
from stage2_prior.decoding.plain_blocks import PlainBlock, plain_blocks
from stage2_prior.positions import Positions
from stage2_prior.prior import PriorModel, require_length
from stage2_prior.transformer import TransformerPrior

Step = Callable[..., torch.Tensor]
_MOST_TOKENS = 4096
"""inputs that go through a block at once"""
_PARTS = 4
"""Programs are made for attention over this many lengths of the cache: a quarter of it, a half and so on."""
_MOST_PROGRAMS = 256
"""of one function, for all engines of a process; beyond them the step runs uncompiled"""


class DecodingEngine:
    """Runs inputs of a prior over a key-value cache.

    Args:
        prior: in evaluation mode.
        grid: of the images, an index into ``spec.grids``.

    Attributes:
        prior, grid: as given.

    Raises:
        ConfigError: the prior is in training mode, or has a hook that its forward pass would not call.
    """

    def __init__(self, prior: PriorModel, grid: int = 0) -> None:
        require_ready(prior)
        self.prior, self.grid = prior, grid
        self._blocks: list[PlainBlock] | None = None

    def batch_for(self, n_images: int) -> int:
        """The batch that is computed for ``n_images``: as many, or a few more."""
        return n_images

    @torch.inference_mode()
    def new_cache(self, n_rows: int, n_probes: int = 0) -> Cache:
        """An empty cache for whole images, and for as many probes at a time. Modules act as they are now."""
        self._blocks = plain_blocks(self.prior) if isinstance(self.prior, TransformerPrior) else None
        return KVCache.for_prior(self.prior, n_rows, n_probes)

    @torch.inference_mode()
    def extend(
        self,
        tokens_RQ: torch.Tensor,
        positions: Positions,
        cache: Cache,
        labels_R: torch.Tensor | None = None,
        n_probes: int = 0,
        n_outputs: int = 1,
        share: float = 1.0,
    ) -> torch.Tensor:
        """Append inputs to the cache.

        Args:
            tokens_RQ: codes, int64, of all inputs but the class.
            positions: of all inputs, alike for all rows or by row.
            cache: of R rows.
            labels_R: class numbers, int64, where the cache is empty: the class is the first input.
            n_probes: see ``KVCache.append``: the last inputs, which the cache does not keep.
            n_outputs: N, the last inputs that are kept whose hidden states are wanted.
            share: 1 / guidance scale, of a prior with ``guidance_input``.

        Returns:
            (R, N + ``n_probes``, E), of the last inputs that are kept and of the probes; see ``logits``.

        Raises:
            DataError: more inputs than an image has.
        """
        assert isinstance(cache, KVCache)
        n_inputs = tokens_RQ.shape[1] + (labels_R is not None) - n_probes
        require_length(self.prior.n_steps, cache.filled + n_inputs)
        rows = max(1, _MOST_TOKENS // (n_inputs + n_probes))
        if rows >= len(tokens_RQ):
            hidden_RQE = self._extend(tokens_RQ, positions, cache.append(n_inputs, n_probes), labels_R, share)
            return hidden_RQE[:, n_inputs - n_outputs :]
        parts = []
        for first in range(0, len(tokens_RQ), rows):
            part, some = slice(first, first + rows), cache.rows(first, first + rows)
            labels = None if labels_R is None else labels_R[part]
            of_part = positions.rows(first, first + rows)
            parts.append(self.extend(tokens_RQ[part], of_part, some, labels, n_probes, n_outputs, share))
        cache.filled = some.filled
        return torch.cat(parts)

    def _extend(
        self,
        tokens_RQ: torch.Tensor,
        positions: Positions,
        caches: list[LayerCache],
        labels_R: torch.Tensor | None,
        share: float,
    ) -> torch.Tensor:
        several = labels_R is not None and self.prior.n_grids > 1
        grids = torch.full_like(labels_R, self.grid) if several else None  # type: ignore[arg-type]
        assert isinstance(self.prior, TransformerPrior)
        guided = labels_R is not None and share != 1
        shares = torch.where(labels_R != self.prior.null_class, share, 1.0) if guided else None  # type: ignore[arg-type]
        plain = self._blocks is not None and not torch.is_autocast_enabled("cpu")
        blocks = {"blocks": self._blocks} if plain else {}
        return self.prior.extend(tokens_RQ, positions, caches, labels_R, grids, shares, **blocks)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., E) => (..., V) float32."""
        return self.prior.head(hidden).float()


class RecomputingEngine(DecodingEngine):
    """Steps of a prior without a cache of features: each computes the features of all codes so far."""

    @torch.inference_mode()
    def new_cache(self, n_rows: int, n_probes: int = 0) -> Cache:
        """See ``DecodingEngine``."""
        device = self.prior.head.weight.device
        memory = torch.zeros(n_rows, 1 + self.prior.n_codes, dtype=torch.int64, device=device)
        return CodesCache(memory[:, 0], memory[:, 1:])

    @torch.inference_mode()
    def extend(
        self,
        tokens_RQ: torch.Tensor,
        positions: Positions,
        cache: Cache,
        labels_R: torch.Tensor | None = None,
        n_probes: int = 0,
        n_outputs: int = 1,
        share: float = 1.0,
    ) -> torch.Tensor:
        """See ``DecodingEngine``; there are no probes."""
        assert isinstance(cache, CodesCache) and n_probes == 0
        first, n_new = max(0, cache.filled - 1), tokens_RQ.shape[1]
        require_length(self.prior.n_codes, first + n_new + 1)
        cache.tokens_RT[:, first : first + n_new] = tokens_RQ
        if labels_R is not None:
            cache.labels_R.copy_(labels_R)
        cache.filled = first + n_new + 1
        return self.prior.hidden(cache.tokens_RT[:, : cache.filled], cache.labels_R)[:, -n_outputs:]


class CompiledEngine(DecodingEngine):
    """As ``DecodingEngine``, equal up to rounding; the first image takes tens of seconds more.

    Args:
        prior, grid: see ``DecodingEngine``.
    """

    def __init__(self, prior: PriorModel, grid: int = 0) -> None:
        super().__init__(prior, grid)
        self._positions = prior.position_tables.of_grid(prior.head.weight.device, grid)
        self._idle: dict[int, list[torch.Tensor]] = {}  # number of rows => memory of caches that are gone
        self._programs: set[tuple[int, int, int]] = set()
        self._refused: set[tuple[int, int, int]] = set()
        self._step = self._compiled(self._new_codes)

    def batch_for(self, n_images: int) -> int:
        """1, 2, 3, 4, 6, 8, 12, 16 and so on: few shapes to compile and to keep memory for."""
        power = 1 << (n_images - 1).bit_length()
        return 3 * power // 4 if power >= 4 and n_images <= 3 * power // 4 else power

    @torch.inference_mode()
    def new_cache(self, n_rows: int, n_probes: int = 0) -> Cache:
        """See ``DecodingEngine``."""
        if n_probes:
            return KVCache.for_prior(self.prior, n_rows, n_probes)
        idle = self._idle.setdefault(n_rows, [])
        cache = KVCache(idle.pop()) if idle else KVCache.for_prior(self.prior, n_rows)
        cache.kv.zero_()  # steps read beyond what is filled, and 0 times a NaN that lay in memory would be NaN
        weakref.finalize(cache, idle.append, cache.kv)  # a CUDA graph is recorded for one address
        return cache

    @torch.inference_mode()
    def extend(
        self,
        tokens_RQ: torch.Tensor,
        positions: Positions,
        cache: Cache,
        labels_R: torch.Tensor | None = None,
        n_probes: int = 0,
        n_outputs: int = 1,
        share: float = 1.0,
    ) -> torch.Tensor:
        """See ``DecodingEngine``: new codes of raster order go through the program, all else uncompiled."""
        assert isinstance(cache, KVCache)
        n_new = tokens_RQ.shape[1]
        if n_new != n_outputs or labels_R is not None or n_probes or positions.own_T.ndim > 1:
            return super().extend(tokens_RQ, positions, cache, labels_R, n_probes, n_outputs, share)
        end, n_steps = cache.filled + n_new, self.prior.n_steps
        require_length(n_steps, end)
        part = -(-n_steps // _PARTS)
        length = min(n_steps, -(-end // part) * part)
        torch._dynamo.mark_static_address(cache.kv, guard=False)
        torch.compiler.cudagraph_mark_step_begin()
        at_Q = torch.arange(cache.filled, end, device=tokens_RQ.device)
        hidden_RQE = self._run((len(tokens_RQ), n_new, length), tokens_RQ, at_Q, cache.kv, length)
        cache.filled = end
        return hidden_RQE

    def _new_codes(self, tokens_RQ: torch.Tensor, at_Q: torch.Tensor, kv: torch.Tensor, length: int) -> torch.Tensor:
        """Inputs ``at_Q``, which attend to the first ``length`` inputs of the cache up to each: (R, Q, E)."""
        assert isinstance(self.prior, TransformerPrior)
        return self.prior.extend(tokens_RQ, self._positions.at(at_Q), KVCache(kv).insert(at_Q, length))

    def _compiled(self, function: Step) -> Step:
        mode = "reduce-overhead" if self.prior.head.weight.device.type == "cuda" else "default"
        return torch.compile(function, dynamic=False, mode=mode)

    def _run(self, shape: tuple[int, int, int], *arguments: object) -> torch.Tensor:
        """Call the program that is made at the first call of each shape; torch's limit of a few is for programs whose
        number grows with the data, as that of these hardly does.
        """
        if shape in self._refused:
            return self._new_codes(*arguments)  # type: ignore[arg-type]
        if shape in self._programs:
            return self._step(*arguments)
        try:
            with torch._dynamo.config.patch(recompile_limit=_MOST_PROGRAMS, fail_on_recompile_limit_hit=True):
                result = self._step(*arguments)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            self._refused.add(shape)
            return self._new_codes(*arguments)  # type: ignore[arg-type]
        self._programs.add(shape)
        return result


def require_ready(prior: PriorModel) -> None:
    """Refuse a prior whose drawing would not be what its forward pass computes.

    Raises:
        ConfigError: training mode, or a hook or another module where a forward pass reads the weight alone.
    """
    fix = "call prior.eval() first"
    ConfigError.unless(not prior.training, "is in training mode", field="prior", expected="evaluation mode", fix=fix)
    for name, module in prior.named_modules():
        if not isinstance(module, Attention):
            continue
        for part, norm in (("q_norm", module.q_norm), ("k_norm", module.k_norm)):
            plain = norm is None or (type(norm) is RMSNorm and not (norm._forward_hooks or norm._forward_pre_hooks))
            what, expected = "has a hook, or is another module", "a plain RMSNorm: attention reads its weight alone"
            found, fix = type(norm).__name__, "put the hook on the attention"
            ConfigError.unless(plain, what, field=f"prior.{name}.{part}", found=found, expected=expected, fix=fix)
