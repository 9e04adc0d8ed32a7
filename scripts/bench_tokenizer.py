"""Speed and memory of one stage-1 training step: encoder, quantizer, decoder, L2, backward, clip, AdamW.

Ours, with the allocator as a run sets it up, and the same network in plain torch modules (``plain_tokenizer.py``) are
timed in turn, each in a process of its own; the memory is the peak resident set of another one. The floor is what the
step would reach at the speed of a 2,048-wide matrix product of the same type, measured in the same run, with the
operations of our own step.

    python scripts/bench_tokenizer.py [--quick] [--threads N] [--json FILE]
    python scripts/bench_tokenizer.py --in-parts [--quick] ...

The second form measures micro-batches and checkpointing, see ``bench_in_parts.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import bench_in_parts
import torch
from bench_report import (
    Row,
    bench_parser,
    compare,
    in_fresh_process,
    matmul_peak,
    peak_memory_mib,
    report,
    resident_mib,
    time_in_own_processes,
)
from plain_tokenizer import plain_tokenizer
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from foundation.hardware import keep_freed_memory
from foundation.images.config import Preprocess
from foundation.training.config import OptimConfig
from foundation.training.optim import adamw
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import FSQConfig, VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

PLAIN = "plain torch"
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
Step = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """What is trained on.

    Attributes:
        config: the network.
        side: of the square images, pixels.
        batch: images per step.
    """

    config: TokenizerConfig
    side: int
    batch: int


WORKLOADS = {
    "64 px, VQ 16,384": Workload(TokenizerConfig(quantizer=VQConfig(codebook_size=16384, width=8)), 64, 16),
    "32 px, patch 4, FSQ": Workload(
        TokenizerConfig(
            networks=VQGANNetworks(patch_size=4, base_width=256, width_multipliers=(1,)), quantizer=FSQConfig()
        ),
        32,
        128,
    ),
}
QUICK = {
    "quick: 32 px, VQ 1,024": Workload(
        TokenizerConfig(
            networks=VQGANNetworks(base_width=32, width_multipliers=(1, 2), n_res_blocks=1),
            latent_channels=32,
            quantizer=VQConfig(codebook_size=1024, width=8),
        ),
        32,
        4,
    )
}


def own_step(name: str, precision: str, ours: bool, n_threads: int) -> Step:
    """The step in a process of its own, in which ours sets up the allocator as a run does."""
    torch.set_num_threads(n_threads)
    if ours:
        keep_freed_memory()
    return build_step({**WORKLOADS, **QUICK}[name], precision, ours=ours)


def build_step(workload: Workload, precision: str, *, ours: bool) -> Step:
    """A training step on fixed random images, with fresh weights and optimizer; it returns the loss."""
    torch.manual_seed(0)
    side = workload.side
    images = torch.rand(workload.batch, 3, side, side) * 2 - 1
    preprocess = Preprocess(height=side, width=side)
    model = TokenizerModel(workload.config, preprocess) if ours else plain_tokenizer(workload.config)
    optimizer = adamw(model.train(), OptimConfig())
    generator = torch.Generator().manual_seed(0)
    n_steps = 0

    def step() -> torch.Tensor:
        nonlocal n_steps
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            reconstruction, quantizer_loss = _forward(model, images)
        loss = F.mse_loss(reconstruction, images) + quantizer_loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if isinstance(model, TokenizerModel):
            for quantizer in model.quantizers:
                quantizer.update(n_steps, generator)
        n_steps += 1
        return loss.detach()

    return step


def _forward(model: nn.Module, images_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    output = model(images_BCYX)
    if isinstance(model, TokenizerModel):
        return output.images_BCYX, sum(output.losses.values(), images_BCYX.new_zeros(()))
    return output


def step_memory(name: str, precision: str, ours: bool, n_threads: int) -> tuple[float, float]:
    """MiB: (peak above the imports, resident after the imports) of three steps; for a process of its own."""

    def run() -> None:
        step = own_step(name, precision, ours, n_threads)
        for _ in range(3):
            step()

    imports = resident_mib()
    return peak_memory_mib(run), imports


def step_flops(workload: Workload, *, ours: bool) -> int:
    """Floating-point operations of one step's products and convolutions."""
    step = build_step(workload, "float32", ours=ours)
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def bench(name: str, workload: Workload, precision: str, repeats: int) -> list[Row]:
    """A row of speed and a row of memory."""
    n_threads = torch.get_num_threads()
    cases = {key: (name, precision, key == "ours", n_threads) for key in ("ours", "plain")}
    timings = time_in_own_processes(own_step, cases, repeats)
    peak = matmul_peak(dtype=TYPES[precision])
    flops = {key: step_flops(workload, ours=key == "ours") for key in ("ours", "plain")}
    rates = {key: workload.batch / timing.median for key, timing in timings.items()}
    config = {
        "batch": workload.batch,
        "side": workload.side,
        "precision": precision,
        "threads": n_threads,
        "repeats": repeats,
        "spread_ours": timings["ours"].spread,
        "spread_reference": timings["plain"].spread,
        "matmul_gflops": peak / 1e9,
        "gflop_per_image": {key: count / workload.batch / 1e9 for key, count in flops.items()},
        "share_of_matmul_peak": {key: flops[key] / timings[key].median / peak for key in flops},
    }
    speed = compare(
        f"step, {name}, {precision}",
        "images/s",
        rates["ours"],
        rates["plain"],
        PLAIN,
        more_is_better=True,
        floor=workload.batch * peak / flops["ours"],
        config=config,
    )
    peaks = {key: in_fresh_process(step_memory, *case) for key, case in cases.items()}
    memory = compare(
        f"peak memory, {name}, {precision}",
        "MiB above imports",
        peaks["ours"][0],
        peaks["plain"][0],
        PLAIN,
        config={"resident_after_imports_mib": peaks["ours"][1], "threads": n_threads},
    )
    return [speed, memory]


def main() -> None:
    parser = bench_parser(str(__doc__).splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each step")
    parser.add_argument("--in-parts", action="store_true", help="micro-batches and checkpointing instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.in_parts:
        bench_in_parts.main(options)
        return
    workloads, repeats = (QUICK, 2) if options.quick else (WORKLOADS, 7)
    rows = [
        row for name, workload in workloads.items() for kind in TYPES for row in bench(name, workload, kind, repeats)
    ]
    report(rows, options.json)
    for row in rows:
        if "share_of_matmul_peak" in row.config:
            shares = ", ".join(f"{key} {share:.0%}" for key, share in row.config["share_of_matmul_peak"].items())
            print(f"{row.workload}: share of the matrix peak ({row.config['matmul_gflops']:.0f} GFLOP/s): {shares}")
        else:
            print(f"{row.workload}: beside {row.config['resident_after_imports_mib']:.0f} MiB of imports")


if __name__ == "__main__":
    main()
