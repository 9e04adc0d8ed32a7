"""Speed and memory of one step of training the prior: forward, loss, backward, clip, AdamW.

Ours and transformers' LlamaForCausalLM of the same depth, width, heads, feed-forward width and vocabulary train on the
same random codes, each in the fastest of its modes: float32 or bf16 autocast, and for the reference also the
library's attention or the plain one. The fastest of each are then timed in turn, each in a process of its own, ours
with the allocator as a run sets it up; memory is the peak resident set of another one. The floor is the step's
products (6 per parameter and token, and 12 * layers * width * T per token for attention) at the speed of a 2,048-wide
matrix product, measured in the same run.

    python scripts/bench_prior.py [--quick] [--only TEXT] [--threads N] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_report import (
    OwnProcess,
    Row,
    bench_parser,
    compare,
    in_fresh_process,
    matmul_peak,
    peak_memory_mib,
    report,
    resident_mib,
    time_in_turn,
)
from torch import nn

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.hardware import keep_freed_memory
from foundation.images.config import Preprocess
from foundation.training.config import OptimConfig
from foundation.training.optim import adamw
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorLoss

REFERENCE = "transformers LlamaForCausalLM"
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
OUR_MODES = tuple((kind, "") for kind in TYPES)
REFERENCE_MODES = tuple((kind, attention) for kind in TYPES for attention in ("sdpa", "eager"))
Mode = tuple[str, str]
Step = Callable[[], torch.Tensor]
Loss = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        config: the transformer.
        vocab_size: codes.
        batch: images per step.
        side: of the square grid of codes.
    """

    config: PriorConfig
    vocab_size: int
    batch: int
    side: int = 16

    @property
    def n_tokens(self) -> int:
        """Codes per step."""
        return self.batch * self.side**2

    @property
    def step_flops(self) -> float:
        """Floating-point operations of one step's products."""
        (n_layers, _, width), wide = self.config.shape, self.config.feed_forward_width
        parameters = n_layers * (4 * width**2 + 3 * width * wide) + width * self.vocab_size
        return float(self.n_tokens * (6 * parameters + 12 * n_layers * width * self.side**2))


def _transformer(width: int, layers: int, heads: int) -> PriorConfig:
    return PriorConfig(d_model=width, n_layers=layers, n_heads=heads, dropout=0.0)


WORKLOADS = {
    "256 x 6, V 16,384": Workload(_transformer(256, 6, 4), 16384, 16),
    "256 x 6, V 65,536": Workload(_transformer(256, 6, 4), 65536, 16),
    "512 x 8, V 16,384": Workload(_transformer(512, 8, 8), 16384, 8),
}
QUICK = {"quick: 64 x 2, V 1,024": Workload(_transformer(64, 2, 2), 1024, 4, side=8)}


def our_model(workload: Workload) -> tuple[nn.Module, Loss]:
    """The prior in training, and its loss of (B, T) codes."""
    level = CodeLevel(height=workload.side, width=workload.side, codebook_size=workload.vocab_size)
    preprocess = Preprocess(height=8 * workload.side, width=8 * workload.side)
    prior = PriorModel(workload.config, CodeSpec(levels=(level,), stride=8, preprocess=preprocess, fingerprint="bench"))
    objective = PriorLoss(prior.train())
    return prior, lambda tokens: objective(tokens, torch.full_like(tokens[:, 0], prior.null_class))[0]


def reference_model(workload: Workload, attention: str) -> tuple[nn.Module, Loss]:
    """The library's model, and its own loss; a code before the first stands in for the class."""
    from transformers import LlamaConfig, LlamaForCausalLM

    n_layers, n_heads, width = workload.config.shape
    config = LlamaConfig(
        vocab_size=workload.vocab_size,
        hidden_size=width,
        intermediate_size=workload.config.feed_forward_width,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        max_position_embeddings=workload.side**2,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).train()
    return model, lambda tokens: model(tokens.roll(1, 1), labels=tokens, shift_labels=tokens).loss


def build_step(workload: Workload, mode: Mode, *, ours: bool) -> Step:
    """A training step on fixed random codes, with fresh weights and optimizer; it returns the loss."""
    torch.manual_seed(0)
    tokens_BT = torch.randint(workload.vocab_size, (workload.batch, workload.side**2))
    precision, attention = mode
    model, loss_of = our_model(workload) if ours else reference_model(workload, attention)
    optimizer = adamw(model, OptimConfig())

    def step() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(tokens_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def own_step(name: str, mode: Mode, ours: bool, n_threads: int) -> Step:
    """The step in a process of its own, in which ours sets up the allocator as a run does."""
    torch.set_num_threads(n_threads)
    if ours:
        keep_freed_memory()
    return build_step({**WORKLOADS, **QUICK}[name], mode, ours=ours)


def fastest(workload: Workload, modes: tuple[Mode, ...], *, ours: bool) -> tuple[Mode, dict[str, float]]:
    """The mode of the shortest step, and the seconds of all."""
    cases = {" ".join(mode).strip(): build_step(workload, mode, ours=ours) for mode in modes}
    seconds = {name: timing.median for name, timing in time_in_turn(cases, repeats=1, warm_up=1).items()}
    return modes[min(range(len(modes)), key=list(seconds.values()).__getitem__)], seconds


def step_memory(name: str, mode: Mode, ours: bool, n_threads: int) -> tuple[float, float]:
    """MiB: (peak above the imports, resident after the imports) of three steps; for a process of its own."""
    import transformers.models.llama.modeling_llama  # noqa: F401  (imported by both, so that neither counts it)

    def run() -> None:
        step = own_step(name, mode, ours, n_threads)
        for _ in range(3):
            step()

    imports = resident_mib()
    return peak_memory_mib(run), imports


def bench(name: str, workload: Workload, repeats: int) -> list[Row]:
    """A row of speed and a row of memory."""
    n_threads = torch.get_num_threads()
    our_mode, our_seconds = fastest(workload, OUR_MODES, ours=True)
    reference_mode, reference_seconds = fastest(workload, REFERENCE_MODES, ours=False)
    with (
        OwnProcess(own_step, name, our_mode, True, n_threads) as ours,
        OwnProcess(own_step, name, reference_mode, False, n_threads) as reference,
    ):
        timings = time_in_turn({"ours": ours, "reference": reference}, repeats=repeats)
    peaks = {mode[0]: matmul_peak(dtype=TYPES[mode[0]]) for mode in (our_mode, reference_mode)}
    shares = {
        key: workload.step_flops / timings[key].median / peaks[mode[0]]
        for key, mode in (("ours", our_mode), ("reference", reference_mode))
    }
    config = {
        "batch": workload.batch,
        "tokens": workload.side**2,
        "threads": n_threads,
        "repeats": repeats,
        "spread_ours": timings["ours"].spread,
        "spread_reference": timings["reference"].spread,
        "modes": {"ours": our_mode[0], "reference": " ".join(reference_mode)},
        "seconds_by_mode": {"ours": our_seconds, "reference": reference_seconds},
        "matmul_gflops": {kind: peak / 1e9 for kind, peak in peaks.items()},
        "gflop_per_step": workload.step_flops / 1e9,
        "share_of_matmul_peak": shares,
    }
    rates = {key: workload.n_tokens / timing.median for key, timing in timings.items()}
    floor = workload.n_tokens * peaks[our_mode[0]] / workload.step_flops
    speed = compare(
        f"step, {name}",
        "tokens/s",
        rates["ours"],
        rates["reference"],
        REFERENCE,
        more_is_better=True,
        floor=floor,
        config=config,
    )
    our_peak, imports = in_fresh_process(step_memory, name, our_mode, True, n_threads)
    reference_peak, _ = in_fresh_process(step_memory, name, reference_mode, False, n_threads)
    settings = {"modes": config["modes"], "resident_after_imports_mib": imports, "threads": n_threads}
    memory = compare(f"peak memory, {name}", "MiB above imports", our_peak, reference_peak, REFERENCE, config=settings)
    return [speed, memory]


def main() -> None:
    parser = bench_parser(str(__doc__).splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each step")
    parser.add_argument("--only", default="", help="run the workloads whose name contains this text")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workloads, repeats = (QUICK, 2) if options.quick else (WORKLOADS, 5)
    chosen = {name: workload for name, workload in workloads.items() if options.only in name}
    rows = [row for name, workload in chosen.items() for row in bench(name, workload, repeats)]
    report(rows, options.json)
    for row in rows:
        if "share_of_matmul_peak" in row.config:
            modes, shares = row.config["modes"], row.config["share_of_matmul_peak"]
            peaks = ", ".join(f"{kind} {peak:.0f} GFLOP/s" for kind, peak in row.config["matmul_gflops"].items())
            parts = ", ".join(f"{key} {share:.0%} in {modes[key]}" for key, share in shares.items())
            print(f"{row.workload}: share of the matrix peak ({peaks}): {parts}")
        else:
            print(f"{row.workload}: beside {row.config['resident_after_imports_mib']:.0f} MiB of imports")


if __name__ == "__main__":
    main()
