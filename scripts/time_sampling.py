"""Milliseconds of a token step of sampling, of the code on PYTHONPATH; ``bench_sampling.py --beside`` runs it.

    PYTHONPATH=CHECKOUT python scripts/time_sampling.py '{"size": [256, 6, 4], "batch": 1, "side": 16, "vocab": 16384}'

It uses only what every version of the project has.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import Any

import torch

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.hardware import keep_freed_memory
from foundation.images.config import Preprocess
from stage2_prior.config import PriorConfig
from stage2_prior.decoding.decode import iterate_codes
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel


def build(size: list[int], side: int, vocab: int, dtype: str) -> PriorModel:
    """A prior with random weights and a head that is not zero."""
    torch.manual_seed(0)
    level = CodeLevel(height=side, width=side, codebook_size=vocab)
    preprocess = Preprocess(height=8 * side, width=8 * side)
    spec = CodeSpec(levels=(level,), stride=8, preprocess=preprocess, fingerprint="bench", class_names=("a", "b"))
    width, layers, heads = size
    prior = PriorModel(PriorConfig(d_model=width, n_layers=layers, n_heads=heads, dropout=0.0), spec).eval()
    torch.nn.init.normal_(prior.head.weight, std=0.05)
    return prior.to(getattr(torch, dtype))


def main(workload: dict[str, Any]) -> float:
    """The least time of some repeats, after a warm-up."""
    keep_freed_memory()  # as every command does
    torch.set_num_threads(workload.get("threads", torch.get_num_threads()))
    prior = build(workload["size"], workload["side"], workload["vocab"], workload.get("dtype", "float32"))
    batch = workload["batch"]
    labels_B, uniforms_BT = torch.zeros(batch, dtype=torch.int64), torch.rand(batch, prior.n_codes, dtype=torch.float64)
    sampling = SamplingConfig(**workload.get("sampling", {}))
    seconds = []
    for _ in range(1 + workload.get("repeats", 3)):
        began = time.perf_counter()
        deque(iterate_codes(prior, labels_B, uniforms_BT, sampling), maxlen=0)
        seconds.append(time.perf_counter() - began)
    return 1e3 * min(seconds[1:]) / prior.n_codes


if __name__ == "__main__":
    print(main(json.loads(sys.argv[1])))
