"""What each CPU kernel of the prior's training step gives: the step with all of them beside the step without one.

The steps of ``bench_prior.py`` run in turn, each in a process of its own. Without a kernel the formula of
``block.py`` in plain torch takes its place, or for products torch's own, or for the loss all logits at once.

    python scripts/bench_kernels.py [--quick] [--only TEXT] [--precision float32] [--threads N] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from unittest.mock import patch

import torch
from bench_prior import QUICK, TYPES, WORKLOADS, Case, Step, own_step, prior_parser, step_memory
from bench_report import Row, compare, in_fresh_process, report, time_in_own_processes
from torch.nn import functional as F

from stage2_prior import block
from stage2_prior.head_loss import HeadLoss
from stage2_prior.prior import PriorModel

NONE = "none"


def _plainly(owner: object, name: str) -> None:
    """Let a formula take its plain form for the rest of this process."""
    formula = getattr(owner, name)

    def plain(*args: object, **options: object) -> object:
        with patch.object(block, "use_cpu_kernels", lambda x: False):
            return formula(*args, **options)

    setattr(owner, name, plain)


def _all_logits(
    prior: PriorModel, hidden_NE: torch.Tensor, codes: torch.Tensor, size_N: object, terms: object, trained: object
) -> HeadLoss:
    nll = F.cross_entropy(prior.head(hidden_NE).float(), codes)
    return HeadLoss(nll, nll.detach(), nll.new_zeros(()))


WITHOUT: dict[str, Callable[[], object]] = {
    NONE: lambda: None,
    "dropout": partial(_plainly, block.Dropout, "forward"),
    "heads": partial(_plainly, block, "split_heads"),
    "attention": partial(_plainly, block, "attention"),
    "products": patch("foundation.training.linear.prefers_onednn", lambda x, weight_NK: False).start,
    "loss": patch.object(PriorModel, "loss_of", _all_logits).start,
}
"""kernel => what takes it away for the rest of a process"""


def step_without(kernel: str, name: str, precision: str, n_threads: int) -> Step:
    """The step in a process of its own."""
    WITHOUT[kernel]()
    return own_step(name, Case("ours", precision), n_threads)


def memory_without(kernel: str, name: str, precision: str, n_threads: int) -> float:
    """Peak MiB of the step above the imports, for a process of its own."""
    WITHOUT[kernel]()
    return step_memory(name, Case("ours", precision), n_threads)[0]


def bench(name: str, precision: str, repeats: int) -> list[Row]:
    """Rows of speed and of memory for each kernel; ``reference`` is the step without it."""
    n_threads = torch.get_num_threads()
    cases = {kernel: (kernel, name, precision, n_threads) for kernel in WITHOUT}
    timings = time_in_own_processes(step_without, cases, repeats)
    memory = {kernel: in_fresh_process(memory_without, *case) for kernel, case in cases.items()}
    ours, rows = timings.pop(NONE), []
    for kernel, timing in timings.items():
        config = {"threads": n_threads, "repeats": repeats}
        config |= {"spread_ours": ours.spread, "spread_reference": timing.spread}
        milliseconds = (1e3 * ours.median, 1e3 * timing.median)
        rows.append(compare(f"step, {name}, {precision}", "ms", *milliseconds, f"without {kernel}", config=config))
        peaks = memory[NONE], memory[kernel]
        what = f"peak memory, {name}, {precision}"
        rows.append(compare(what, "MiB above imports", *peaks, f"without {kernel}", config={"threads": n_threads}))
    return rows


def main() -> None:
    options = prior_parser(str(__doc__).splitlines()[0]).parse_args()
    torch.set_num_threads(options.threads)
    workloads, repeats = (QUICK, 2) if options.quick else (WORKLOADS, 5)
    precisions: Sequence[str] = (options.precision,) if options.precision else tuple(TYPES)
    chosen = [(name, kind) for name in workloads if options.only in name for kind in precisions]
    report([row for name, kind in chosen for row in bench(name, kind, repeats)], options.json)


if __name__ == "__main__":
    main()
