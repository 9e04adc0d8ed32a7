"""A prior can learn a few grids by heart, and then says them: the whole path from loss to decoding works."""

import math

import numpy as np
import pytest
import torch
from support.random_prior import decode_codes

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.images.config import Preprocess
from foundation.training.config import OptimConfig
from foundation.training.optim import adamw, learning_rate
from stage2_prior.config import PriorConfig
from stage2_prior.decoding.decode import stream_uniforms
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorLoss

N_GRIDS, STEPS = 32, 250
GREEDY = SamplingConfig(temperature=0.0)


def grids() -> torch.Tensor:
    """(32, 16) codes of 64, each grid beginning with another code."""
    codes = np.random.default_rng(0).integers(0, 64, (N_GRIDS, 16))
    codes[:, 0] = np.arange(N_GRIDS)
    return torch.from_numpy(codes)


def learned_by_heart(codes: torch.Tensor, labels: torch.Tensor, n_classes: int) -> PriorModel:
    torch.manual_seed(0)
    spec = CodeSpec(
        levels=(CodeLevel(height=4, width=4, codebook_size=64),),
        stride=4,
        fingerprint="f",
        preprocess=Preprocess(height=16, width=16),
        class_names=tuple(f"{i}" for i in range(n_classes)),
    )
    prior = PriorModel(PriorConfig(d_model=64, n_layers=2, n_heads=4, dropout=0.0, rope_base=100.0), spec)
    config = OptimConfig(learning_rate=3e-3, warmup_steps=20)
    objective, optimizer = PriorLoss(prior), adamw(prior, config)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, STEPS)
        loss, _ = objective(codes, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior.eval()


def test_told_the_class_it_returns_the_grid() -> None:
    codes, labels = grids(), torch.arange(N_GRIDS)
    prior = learned_by_heart(codes, labels, N_GRIDS)
    with torch.no_grad():
        bits = prior.nll(codes, labels) / math.log(2)
    assert bits.mean() < 0.05
    drawn = decode_codes(prior, labels, stream_uniforms(list(range(N_GRIDS)), 16), GREEDY)
    assert torch.equal(drawn, codes)
    with torch.no_grad():
        mistaken = prior.nll(codes, labels.roll(1)) / math.log(2)
    assert mistaken.mean() > 1, "another grid's class makes it unlikely"


def test_told_the_first_codes_it_returns_the_rest() -> None:
    codes, nothing = grids(), torch.zeros(N_GRIDS, dtype=torch.int64)
    prior = learned_by_heart(codes, nothing, n_classes=0)
    with torch.no_grad():
        bits = prior.nll(codes, nothing) / math.log(2)
    assert bits[:, 1:].mean() < 0.05
    assert bits[:, 0].mean() == pytest.approx(5, abs=0.05), "which of 32 grids it is takes five bits"
    for n_known in (1, 5):
        known = codes.clone()
        known[:, n_known:] = -1
        uniforms = stream_uniforms(list(range(N_GRIDS)), 16)
        assert torch.equal(decode_codes(prior, nothing, uniforms, GREEDY, known_BT=known), codes)
