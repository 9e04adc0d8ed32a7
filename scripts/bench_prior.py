"""Speed and memory of one step of training the prior: forward, loss, backward, clip, fused AdamW.

Ours, the same transformer in plain torch (``plain_transformer.py``) and transformers' LlamaForCausalLM of the same
depth, width, heads, feed-forward width and vocabulary train on the same random codes, each in the fastest of its
modes: float32 or bf16 autocast, and for Llama also the library's attention or the plain one. Ours and the plain one
drop as many values; Llama, which has dropout of attention only, drops none. They are timed in turn, each in a process
of its own, ours with the allocator as a run sets it up; memory is the peak resident set of another one. The floor is
the step's products (6 per parameter and token, and 12 * layers * width * T per token for attention) at the speed of a
2,048-wide matrix product, measured in the same run.

    python scripts/bench_prior.py [--quick] [--only TEXT] [--precision float32] [--threads N] [--json FILE]

``bench_kernels.py`` takes the CPU kernels of our step away, one at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    time_in_turn,
)
from plain_transformer import PlainTransformer, Sizes
from torch import nn

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.hardware import keep_freed_memory
from foundation.images.config import Preprocess
from foundation.training.config import OptimConfig
from foundation.training.optim import adamw
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorLoss

TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
PLAIN, LLAMA = "plain torch", "transformers LlamaForCausalLM"
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
    return PriorConfig(d_model=width, n_layers=layers, n_heads=heads, dropout=0.1)


WORKLOADS = {
    "256 x 6, 64 codes of 1,024": Workload(_transformer(256, 6, 4), 1024, 64, side=8),
    "256 x 6, 256 codes of 16,384": Workload(_transformer(256, 6, 4), 16384, 16),
    "512 x 8, 256 codes of 16,384": Workload(_transformer(512, 8, 8), 16384, 8),
}
QUICK = {"quick: 64 x 2, 64 codes of 1,024": Workload(_transformer(64, 2, 2), 1024, 4, side=8)}


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        kind: ``ours``, ``plain`` or ``llama``.
        precision: key of ``TYPES``.
        attention: of ``llama``: ``sdpa`` or ``eager``.
    """

    kind: str
    precision: str
    attention: str = "sdpa"

    @property
    def mode(self) -> str:
        """As a table names it."""
        return self.precision + (f" {self.attention}" if self.kind == "llama" else "")


def cases_of(kind: str, precisions: Sequence[str]) -> list[Case]:
    """All modes of one competitor."""
    attentions = ("sdpa", "eager") if kind == "llama" else ("sdpa",)
    return [Case(kind, precision, attention) for precision in precisions for attention in attentions]


def our_model(workload: Workload) -> tuple[nn.Module, Loss]:
    """The prior in training, and its loss of (B, T) codes."""
    level = CodeLevel(height=workload.side, width=workload.side, codebook_size=workload.vocab_size)
    preprocess = Preprocess(height=8 * workload.side, width=8 * workload.side)
    prior = PriorModel(workload.config, CodeSpec(levels=(level,), stride=8, preprocess=preprocess, fingerprint="bench"))
    objective = PriorLoss(prior.train())
    return prior, lambda tokens: objective(tokens, torch.full_like(tokens[:, 0], prior.null_class))[0]


def plain_model(workload: Workload) -> tuple[nn.Module, Loss]:
    """The same transformer in plain torch, and its loss."""
    config = workload.config
    (n_layers, n_heads, width), wide = config.shape, config.feed_forward_width
    sizes = Sizes(width, n_layers, n_heads, wide, workload.vocab_size, workload.side, config.dropout)
    model = PlainTransformer(sizes).train()
    return model, model


def llama_model(workload: Workload, attention: str) -> tuple[nn.Module, Loss]:
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


def build_step(workload: Workload, case: Case) -> Step:
    """A training step on fixed random codes, with fresh weights and optimizer; it returns the loss."""
    torch.manual_seed(0)
    tokens_BT = torch.randint(workload.vocab_size, (workload.batch, workload.side**2))
    if case.kind == "llama":
        model, loss_of = llama_model(workload, case.attention)
    else:
        model, loss_of = our_model(workload) if case.kind == "ours" else plain_model(workload)
    optimizer = adamw(model, OptimConfig())

    def step() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.precision == "bf16"):
            loss = loss_of(tokens_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def own_step(name: str, case: Case, n_threads: int) -> Step:
    """The step in a process of its own, in which ours sets up the allocator as a run does."""
    torch.set_num_threads(n_threads)
    if case.kind == "ours":
        keep_freed_memory()
    return build_step({**WORKLOADS, **QUICK}[name], case)


def fastest(name: str, cases: Sequence[Case]) -> tuple[Case, dict[str, float]]:
    """The case of the shortest step, and the seconds of all by mode."""
    workload = {**WORKLOADS, **QUICK}[name]
    steps = {case.mode: build_step(workload, case) for case in cases}
    seconds = {mode: timing.median for mode, timing in time_in_turn(steps, repeats=1, warm_up=1).items()}
    return min(cases, key=lambda case: seconds[case.mode]), seconds


def step_memory(name: str, case: Case, n_threads: int) -> tuple[float, float]:
    """MiB: (peak above the imports, resident after the imports) of three steps; for a process of its own."""
    import transformers.models.llama.modeling_llama  # noqa: F401  (imported by all, so that none counts it)

    def run() -> None:
        step = own_step(name, case, n_threads)
        for _ in range(3):
            step()

    imports = resident_mib()
    return peak_memory_mib(run), imports


def bench(name: str, workload: Workload, precisions: Sequence[str], repeats: int) -> list[Row]:
    """Rows of speed and of memory, beside each reference."""
    n_threads = torch.get_num_threads()
    chosen = {kind: fastest(name, cases_of(kind, precisions)) for kind in ("ours", "plain", "llama")}
    cases = {kind: case for kind, (case, _) in chosen.items()}
    timings = time_in_own_processes(own_step, {kind: (name, case, n_threads) for kind, case in cases.items()}, repeats)
    peaks = {kind: matmul_peak(dtype=TYPES[kind]) for kind in {case.precision for case in cases.values()}}
    memory = {kind: in_fresh_process(step_memory, name, case, n_threads) for kind, case in cases.items()}
    rates = {kind: workload.n_tokens / timing.median for kind, timing in timings.items()}
    rows = []
    for kind, reference in (("plain", PLAIN), ("llama", LLAMA)):
        pair = ("ours", kind)
        config = {
            "batch": workload.batch,
            "tokens": workload.side**2,
            "threads": n_threads,
            "repeats": repeats,
            "spread_ours": timings["ours"].spread,
            "spread_reference": timings[kind].spread,
            "modes": {each: cases[each].mode for each in pair},
            "seconds_by_mode": {each: chosen[each][1] for each in pair},
            "matmul_gflops": {each: peak / 1e9 for each, peak in peaks.items()},
            "gflop_per_step": workload.step_flops / 1e9,
            "share_of_matmul_peak": {
                each: workload.step_flops / timings[each].median / peaks[cases[each].precision] for each in pair
            },
        }
        floor = workload.n_tokens * peaks[cases["ours"].precision] / workload.step_flops
        what, unit = f"step, {name}", "tokens/s"
        rows.append(
            compare(what, unit, rates["ours"], rates[kind], reference, more_is_better=True, floor=floor, config=config)
        )
        settings = {"modes": config["modes"], "resident_after_imports_mib": memory["ours"][1], "threads": n_threads}
        what, unit = f"peak memory, {name}", "MiB above imports"
        rows.append(compare(what, unit, memory["ours"][0], memory[kind][0], reference, config=settings))
    return rows


def prior_parser(description: str) -> argparse.ArgumentParser:
    """The command line of this file and of ``bench_kernels.py``."""
    parser = bench_parser(description)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each step")
    parser.add_argument("--only", default="", help="run the workloads whose name contains this text")
    parser.add_argument("--precision", choices=tuple(TYPES), help="this one alone; otherwise all, or the fastest")
    return parser


def main() -> None:
    options = prior_parser(str(__doc__).splitlines()[0]).parse_args()
    torch.set_num_threads(options.threads)
    workloads, repeats = (QUICK, 2) if options.quick else (WORKLOADS, 5)
    precisions = (options.precision,) if options.precision else tuple(TYPES)
    chosen = {name: workload for name, workload in workloads.items() if options.only in name}
    rows = [row for name, workload in chosen.items() for row in bench(name, workload, precisions, repeats)]
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
