"""Time and memory of the quantizers alone, forward and backward, beside those of ``vector_quantize_pytorch``.

python scripts/bench_quantizers.py [--quick] [--json FILE]

Time: both in turn in one process, medians. Memory: each in a fresh process, the peak resident set above that before
the step, after a small step that loads what every step needs. The step of a codebook learned by averages includes its
update. Layouts are each library's own: (B, C, H, W) for ours, (B, N, C) for the reference.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bench_report import (
    Row,
    bench_parser,
    compare,
    in_fresh_process,
    matmul_peak,
    peak_memory_mib,
    report,
    time_in_turn,
)

from stage1_tokenizer.quantizers.config import FSQConfig, LFQConfig, QuantizerConfig, VQConfig

REFERENCE = "vector_quantize_pytorch"
MISSING = f"the reference is not installed; run: pip install {REFERENCE.replace('_', '-')}"


@dataclass(frozen=True)
class Workload:
    """One comparison: ``ours`` beside the reference's class with ``options``, on ``n_vectors`` latents."""

    name: str
    ours: QuantizerConfig
    reference: str
    options: dict[str, Any]
    n_vectors: int = 16_384
    matmul_flops: float | None = None  # that any exact search must do


def workloads(quick: bool) -> list[Workload]:
    small = 2048 if quick else 16_384
    rows = [_vq(small, 1024)] if quick else [_vq(small, 16_384), _vq(small, 1024)]
    for levels in ((4,) * 7, (8, 5, 5, 5)):
        name = f"FSQ {'4^7' if len(levels) == 7 else '8x5x5x5'}, N={small}"
        rows.append(Workload(name, FSQConfig(levels=levels), "FSQ", {"levels": list(levels)}, small))
    lfq = LFQConfig(width=10, entropy_weight=0.1)
    options = {"dim": 10, "codebook_size": 1024, "entropy_loss_weight": 0.1}
    rows.append(Workload(f"LFQ 10 bits with entropy, N={small}", lfq, "LFQ", options, small))
    return rows


def _vq(n_vectors: int, size: int) -> Workload:
    ours = VQConfig(codebook_size=size, width=8)
    options = {"dim": 8, "codebook_size": size}
    name = f"VQ (averages) V={size} width 8, N={n_vectors}"
    return Workload(name, ours, "VectorQuantize", options, n_vectors, 2.0 * n_vectors * size * 8)


def our_step(work: Workload, n_vectors: int) -> Callable[[], object]:
    torch.manual_seed(0)
    quantizer = work.ours.build().train()
    latents = torch.randn(16, quantizer.latent_width, n_vectors // 16, 1, requires_grad=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        latents.grad = None
        out = quantizer(latents)
        (out.latents_BCHW.sum() + sum(out.losses.values())).backward()
        quantizer.update(0, generator)

    return step


def reference_step(work: Workload, n_vectors: int) -> Callable[[], object]:
    import vector_quantize_pytorch as reference

    torch.manual_seed(0)
    quantizer = getattr(reference, work.reference)(**work.options).train()
    width = work.options.get("dim") or len(work.options["levels"])
    latents = torch.randn(16, n_vectors // 16, width, requires_grad=True)

    def step() -> None:
        latents.grad = None
        out = quantizer(latents)
        loss = out[0].sum()
        if len(out) > 2:
            loss = loss + out[2].sum()
        loss.backward()

    return step


def peak_mib(work: Workload, build: Callable[[Workload, int], Callable[[], object]], threads: int) -> float:
    torch.set_num_threads(threads)
    build(work, 64)()
    return peak_memory_mib(build(work, work.n_vectors))


def measure(work: Workload, seconds: float, threads: int, peak_flops: float) -> list[Row]:
    """Time and memory; quick steps are timed more often, each case for ``seconds`` or so, at least 3 times."""
    cases = {"ours": our_step(work, work.n_vectors), "reference": reference_step(work, work.n_vectors)}
    once = sum(each.median for each in time_in_turn(cases, repeats=1, warm_up=1).values())
    repeats = min(300, max(3, int(seconds / once)))
    timing = time_in_turn(cases, repeats=repeats, warm_up=0 if once > seconds else 2)
    name = f"{REFERENCE}.{work.reference}"
    config = {"n_vectors": work.n_vectors, "threads": threads, "repeats": repeats, "reference_options": work.options}
    floor = None if work.matmul_flops is None else work.matmul_flops / peak_flops * 1e3
    spreads = {f"spread_{case}": each.spread for case, each in timing.items()}
    ours_ms, reference_ms = (timing[case].median * 1e3 for case in cases)
    ours_mib, reference_mib = (in_fresh_process(peak_mib, work, build, threads) for build in (our_step, reference_step))
    return [
        compare(work.name, "ms", ours_ms, reference_ms, name, floor=floor, config={**config, **spreads}),
        compare(work.name, "MiB", ours_mib, reference_mib, name, config=config),
    ]


def main() -> None:
    parser = bench_parser(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, help="of timing each comparison; default 10, with --quick 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    arguments = parser.parse_args()
    if importlib.util.find_spec(REFERENCE) is None:
        sys.exit(MISSING)
    torch.set_num_threads(arguments.threads)
    seconds = arguments.seconds or (1.0 if arguments.quick else 10.0)
    peak_flops = matmul_peak()
    rows = [row for work in workloads(arguments.quick) for row in measure(work, seconds, arguments.threads, peak_flops)]
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
