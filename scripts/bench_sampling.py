"""Time of one token step of sampling: ours beside transformers' ``generate`` on a Llama of the same size.

Both sample 256 codes of 16,384 from the whole distribution with a cache, in float32, with random weights. The reference
runs with its dynamic and its static cache, and the faster of the two counts; its guidance is ``guidance_scale`` with a
prompt of its own for the unconditional rows. The floor is the larger of two times: that of reading all weights and the
mean of keys and values once, at the bandwidth of summing a tensor of the weights' size; and that of the products'
floating-point operations at the fastest matrix product of this run. A second floor takes the bandwidth of the fastest
product of a row with a matrix of that size instead of the sum's. Filters and bf16 are compared with ours without.
On a GPU both have bf16 weights, and ours is compiled.

With ``--beside CHECKOUT`` the reference is the code of another checkout, each in processes of their own, in turn.

    OMP_NUM_THREADS=2 python scripts/bench_sampling.py [--quick] [--sizes 256x6] [--batches 1] [--json FILE]
    python scripts/bench_sampling.py --device cuda --sizes gpt-b gpt-l --batches 1 16 128 --json FILE
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_report import Row, Timing, bench_parser, compare, matmul_peak, report, time_in_turn

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.hardware import keep_freed_memory
from foundation.images.config import Preprocess
from foundation.training.linear import can_pack
from stage2_prior.config import PriorConfig
from stage2_prior.decoding.decode import iterate_codes
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel

ROOT = Path(__file__).resolve().parents[1]
VOCAB, GUIDANCE = 16384, 2.0
SIZES = {
    "256x6": (256, 6, 4),
    "512x8": (512, 8, 8),
    "gpt-b": (768, 12, 12),
    "gpt-l": (1024, 24, 16),
}  # width, layers, heads
BATCHES = (1, 16)
FILTERS = {"top-k 2,000": {"top_k": 2000}, "top-p 0.95": {"top_p": 0.95}, "min-p 0.05": {"min_p": 0.05}}
Run = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """What is sampled.

    Attributes:
        size: key of ``SIZES``.
        batch: images.
        side: of the square grid of codes.
        device: where; decides the type of the weights.
    """

    size: str
    batch: int
    side: int
    device: str = "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    @property
    def n_codes(self) -> int:
        """Token steps."""
        return self.side**2

    @property
    def config(self) -> PriorConfig:
        """The transformer."""
        width, layers, heads = SIZES[self.size]
        published: dict[str, Any] = {"qk_norm": False, "class_rotation": "zero"} if self.size.startswith("gpt") else {}
        return PriorConfig(d_model=width, n_layers=layers, n_heads=heads, dropout=0.0, **published)

    def floor(self, rows: int, bandwidth: float, peak: float, n_bytes: int | None = None) -> float:
        """Milliseconds per step that no implementation with this cache can beat; ``n_bytes`` of a weight."""
        n_bytes, n_cached = n_bytes or self.dtype.itemsize, self.dtype.itemsize
        layers, _, width = self.config.shape
        cached = layers * 2 * width * self.n_codes / 2  # keys and values of a row, the mean over the steps
        seconds = (self.n_weights * n_bytes + rows * cached * n_cached) / bandwidth
        return 1e3 * max(seconds, rows * 2 * (self.n_weights + cached) / peak)

    @property
    def n_weights(self) -> int:
        """Weights of the products of one step."""
        (layers, _, width), wide = self.config.shape, self.config.feed_forward_width
        return layers * (4 * width**2 + 3 * width * wide) + width * VOCAB


def our_prior(workload: Workload, dtype: torch.dtype | None = None) -> PriorModel:
    """The prior with a head that is not zero, compiled on a GPU."""
    torch.manual_seed(0)
    level = CodeLevel(height=workload.side, width=workload.side, codebook_size=VOCAB)
    preprocess = Preprocess(height=8 * workload.side, width=8 * workload.side)
    spec = CodeSpec(levels=(level,), stride=8, preprocess=preprocess, fingerprint="bench", class_names=("a", "b"))
    prior = PriorModel(workload.config, spec).eval()
    torch.nn.init.normal_(prior.head.weight, std=0.05)
    prior.to(workload.device, dtype or workload.dtype)
    if workload.device != "cpu":
        prior.compile_decoding()
    return prior


def our_run(prior: PriorModel, batch: int, **sampling: Any) -> Run:
    """Samples a batch of images."""
    labels_B = torch.zeros(batch, dtype=torch.int64, device=prior.head.weight.device)
    uniforms_BT = torch.rand(batch, prior.n_codes, dtype=torch.float64)
    given = {"seeds": range(batch)} if sampling.get("random") == "gumbel" else {}
    return lambda: deque(iterate_codes(prior, labels_B, uniforms_BT, SamplingConfig(**sampling), **given), maxlen=0)


def reference_model(workload: Workload) -> Any:
    """A Llama of the same depth, widths, heads and vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, heads, width = workload.config.shape
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=workload.config.feed_forward_width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=workload.n_codes + 1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def reference_run(model: Any, workload: Workload, cache: str, *, guided: bool) -> Run:
    """``generate`` from a prompt of one token; another one is the unconditional prompt."""
    prompt = torch.zeros(workload.batch, 1, dtype=torch.int64, device=workload.device)
    options: dict[str, Any] = {
        "max_new_tokens": workload.n_codes,
        "min_new_tokens": workload.n_codes,
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "temperature": 1.0,
        "cache_implementation": cache,
        "disable_compile": True,
        "attention_mask": torch.ones_like(prompt),
    }
    if guided:
        negative = {"negative_prompt_ids": prompt + 1, "negative_prompt_attention_mask": torch.ones_like(prompt)}
        options |= {"guidance_scale": GUIDANCE, **negative}

    def run() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.generate(prompt, **options)

    return run


def read_bandwidth(workload: Workload) -> float:
    """Bytes per second of reading a tensor of the weights' size."""
    tensor = torch.ones(workload.n_weights, device=workload.device, dtype=workload.dtype)
    timings = time_in_turn({"read": tensor.sum}, repeats=20, device=workload.device)
    return tensor.nbytes / min(timings["read"].seconds)


def gemv_bandwidth(workload: Workload) -> float:
    """Bytes per second of the faster of torch's and oneDNN's product of one row with a weight of the weights' size."""
    width, like = workload.config.shape[2], {"device": workload.device, "dtype": workload.dtype}
    weight = torch.randn(workload.n_weights // width, width, **like)
    x = torch.randn(1, width, **like)
    cases = {"plain": lambda: weight @ x[0], **packed_product(weight, x)}
    with torch.inference_mode():
        timings = time_in_turn(cases, repeats=20, device=workload.device)
    return weight.nbytes / min(min(each.seconds) for each in timings.values())


def product_peak(workload: Workload) -> float:
    """FLOP/s of the faster of torch's and oneDNN's product."""
    size, device, peak = 1024, workload.device, matmul_peak(workload.device, dtype=workload.dtype)
    weight, x = torch.randn(2, size, size, device=device, dtype=workload.dtype)
    with torch.inference_mode():
        timings = time_in_turn(packed_product(weight, x), repeats=8, device=device)
    return max([peak, *(2 * size**3 / min(each.seconds) for each in timings.values())])


def packed_product(weight: torch.Tensor, x: torch.Tensor) -> dict[str, Run]:
    """OneDNN's product with a packed weight, where there is one."""
    if not can_pack(weight.device):
        return {}
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    return {"packed": lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")}


def bench(workload: Workload, repeats: int) -> list[Row]:
    """Without and with guidance, beside the reference; filters and bf16, beside ours."""
    prior, model = our_prior(workload), reference_model(workload).to(workload.device, workload.dtype)
    bandwidth, peak, of_products = read_bandwidth(workload), product_peak(workload), gemv_bandwidth(workload)
    config = {
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "codes": workload.n_codes,
        "gb_per_s": bandwidth / 1e9,
        "gemv_gb_per_s": of_products / 1e9,
        "gflop_per_s": peak / 1e9,
    }
    rows = []
    for guided in (False, True):
        sampling = {"guidance_scale": GUIDANCE} if guided else {}
        cases = {"ours": our_run(prior, workload.batch, **sampling)}
        for cache in ("dynamic", "static"):
            cases[cache] = reference_run(model, workload, cache, guided=guided)
        timings = time_in_turn(cases, repeats=repeats, warm_up=1, device=workload.device)
        reference = min(("dynamic", "static"), key=lambda name: timings[name].median)
        name = f"{workload.size}, batch {workload.batch}, {'with' if guided else 'no'} guidance"
        floor = workload.floor(workload.batch * (1 + guided), bandwidth, peak)
        of_gemv = workload.floor(workload.batch * (1 + guided), of_products, peak)
        each = {key: _milliseconds(timing, workload) for key, timing in timings.items()}
        rows.append(
            _row(
                name,
                timings["ours"],
                timings[reference],
                f"generate, {reference} cache",
                workload,
                floor,
                {**config, "ms_by_case": each, "floor_of_gemv": of_gemv},
            )
        )
    cases = {"plain": our_run(prior, workload.batch, guidance_scale=GUIDANCE)}
    for name, sampling in FILTERS.items():
        cases[name] = our_run(prior, workload.batch, guidance_scale=GUIDANCE, **sampling)
    if workload.dtype == torch.float32:
        cases["bf16"] = our_run(our_prior(workload, torch.bfloat16), workload.batch, guidance_scale=GUIDANCE)
    timings = time_in_turn(cases, repeats=repeats, warm_up=1, device=workload.device)
    for name in (key for key in cases if key != "plain"):
        n_bytes = 2 if name == "bf16" else None
        floor = workload.floor(2 * workload.batch, bandwidth, peak, n_bytes)
        rows.append(
            _row(
                f"{workload.size}, batch {workload.batch}, guidance, {name}",
                timings[name],
                timings["plain"],
                "ours without",
                workload,
                floor,
                config,
            )
        )
    return rows


def beside(workload: Workload, checkout: str, repeats: int) -> list[Row]:
    """Float32 and bf16, without and with guidance, beside another checkout."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        for guided in (False, True):
            about = {
                "size": SIZES[workload.size],
                "batch": workload.batch,
                "side": workload.side,
                "vocab": VOCAB,
                "dtype": dtype,
                "sampling": {"guidance_scale": GUIDANCE} if guided else {},
                "threads": torch.get_num_threads(),
            }
            found: dict[str, list[float]] = {"ours": [], "other": []}
            for _ in range(repeats):
                for key, root in (("ours", str(ROOT)), ("other", checkout)):
                    found[key].append(_time_in(root, about))
            name = f"{workload.size}, batch {workload.batch}, {dtype}, {'with' if guided else 'no'} guidance"
            times = {key: sorted(each)[len(each) // 2] for key, each in found.items()}
            config = {"threads": about["threads"], "repeats": repeats, "codes": workload.n_codes}
            rows.append(compare(name, "ms/step", times["ours"], times["other"], checkout, config=config))
    return rows


def _time_in(root: str, workload: dict[str, Any]) -> float:
    """What ``time_sampling.py`` takes with the code of a checkout."""
    program = [sys.executable, str(ROOT / "scripts" / "time_sampling.py"), json.dumps(workload)]
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(program, env=environment, cwd=root, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _row(
    name: str, ours: Timing, reference: Timing, reference_name: str, workload: Workload, floor: float, config: dict
) -> Row:
    spreads = {"spread_ours": ours.spread, "spread_reference": reference.spread}
    return compare(
        name,
        "ms/step",
        _milliseconds(ours, workload),
        _milliseconds(reference, workload),
        reference_name,
        floor=floor,
        config={**config, **spreads},
    )


def _milliseconds(timing: Timing, workload: Workload) -> float:
    return 1e3 * timing.median / workload.n_codes


def main() -> None:
    parser = bench_parser(str(__doc__).splitlines()[0])
    sizes = "width x layers, or a published size"
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["256x6", "512x8"], help=sizes)
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="images at once")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--beside", metavar="CHECKOUT", help="compare with the code of another checkout, on the CPU")
    options = parser.parse_args()
    keep_freed_memory()  # as every command does
    sizes, side, repeats = options.sizes, 16, options.repeats
    if options.quick:
        sizes, side, repeats = options.sizes[:1], 8, 2
    workloads = [Workload(size, batch, side, options.device) for size in sizes for batch in options.batches]
    if options.beside:
        root = str(Path(options.beside).resolve())
        report([row for workload in workloads for row in beside(workload, root, repeats)], options.json)
        return
    rows = [row for workload in workloads for row in bench(workload, repeats)]
    report(rows, options.json)
    for row in rows:
        share, floors = row.ours / (row.reference or row.ours), row.ours / (row.floor or row.ours)
        second = row.config.get("floor_of_gemv")
        of_gemv = "" if second is None else f" ({row.ours / second:.2f} at the bandwidth of products)"
        print(f"{row.workload}: {share:.2f} of the reference's time, {floors:.2f} of the floor{of_gemv}")
    print(", ".join(f"{key} {value:.0f}" for key, value in rows[0].config.items() if key.startswith("g")))


if __name__ == "__main__":
    main()
