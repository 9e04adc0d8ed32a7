"""Losses that compare all codes in use see the codes of all processes."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from stage1_tokenizer.quantizers import build_quantizer
from stage1_tokenizer.quantizers.codebook import best_codes, draw_vectors, kmeans, nearest_codes, shared_mean
from stage1_tokenizer.quantizers.config import FSQConfig, IBQConfig, LFQConfig, QuantizerConfig, VQConfig

LOSSES: dict[str, tuple[QuantizerConfig, str]] = {
    "fsq": (FSQConfig(levels=(4, 5, 3), evenness=0.5), "evenness"),
    "lfq": (LFQConfig(width=5, entropy_weight=0.1), "entropy"),
    "ibq": (IBQConfig(codebook_size=32, width=4, entropy_weight=0.1), "entropy"),
    "vq": (VQConfig(codebook_size=32, width=4, learning="gradient", entropy_weight=0.1), "entropy"),
}


def gradients(config: QuantizerConfig, loss: str, images: torch.Tensor) -> torch.Tensor:
    """Of one loss, for a layer before the quantizer and for the codebook, in a row."""
    torch.manual_seed(0)
    quantizer = build_quantizer(config).train()
    layer = nn.Conv2d(4, quantizer.width, 1)
    quantizer(layer(images)).losses[loss].backward()
    parameters = [*layer.parameters(), *quantizer.parameters()]
    return torch.cat([each.grad.flatten() for each in parameters if each.grad is not None])


def images() -> torch.Tensor:
    """Of which the halves are unlike."""
    torch.manual_seed(1)
    return torch.randn(8, 4, 3, 3) * torch.tensor([1.0, 3.0]).repeat_interleave(4).view(8, 1, 1, 1)


def _two_processes(expected: dict[str, torch.Tensor]) -> None:
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a forked process keeps its parent's
    torch.set_num_threads(1)  # nor can it use the parent's OpenMP threads
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    for name, of_one in expected.items():
        mine = gradients(*LOSSES[name], images().chunk(2)[state.process_index])
        torch.distributed.all_reduce(mine)
        assert torch.allclose(mine / 2, of_one, rtol=1e-4, atol=1e-6), name
    with torch.no_grad():
        if state.is_main_process:  # alone: would wait for ever
            assert shared_mean(torch.ones(2)).tolist() == [1, 1]


def test_two_processes_give_the_gradient_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import debug_launcher

    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    expected = {name: gradients(config, loss, images()) for name, (config, loss) in LOSSES.items()}
    assert all(each.abs().max() > 1e-3 for each in expected.values())
    debug_launcher(_two_processes, (expected,), num_processes=2)


def test_nearest_codes_agree_with_all_distances_and_take_the_lowest_on_ties() -> None:
    vectors, codebook = torch.randn(3000, 8), torch.randn(1500, 8)
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook), expected)
    twice = torch.cat([codebook, codebook])
    assert torch.equal(nearest_codes(vectors, twice), expected)


@pytest.mark.parametrize("offset", [0.0, 100.0, -3000.0])
def test_latents_far_from_the_origin_have_the_same_nearest_codes(offset: float) -> None:
    vectors, codebook = torch.randn(3000, 8) + offset, torch.randn(1000, 8) + offset
    expected = torch.cdist(vectors.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook), expected)
    assert torch.equal(nearest_codes(codebook, codebook), torch.arange(1000))


def test_no_block_holds_more_scores_than_it_should(monkeypatch) -> None:
    vectors, codebook = torch.randn(100, 4), torch.randn(50, 4)
    whole = best_codes(vectors, codebook)
    assert torch.equal(whole, (vectors @ codebook.T).argmax(1))
    monkeypatch.setattr(codebook, "CPU_BLOCK", 150)
    assert torch.equal(best_codes(vectors, codebook), whole), "three rows at a time"
    monkeypatch.setattr(codebook, "CPU_BLOCK", 1)
    assert torch.equal(best_codes(vectors, codebook), whole), "one row at a time"


def test_no_vectors_give_no_codes() -> None:
    assert nearest_codes(torch.empty(0, 4), torch.randn(5, 4)).shape == (0,)


def test_kmeans_finds_separate_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    vectors = (centres.repeat_interleave(200, 0) + torch.randn(600, 2))[torch.randperm(600)]
    found = kmeans(vectors, 24, 20, torch.Generator().manual_seed(0))
    assert (torch.cdist(centres, found).min(1).values < 2).all()


def test_fewer_vectors_than_codes_are_all_used_and_never_twice_the_same() -> None:
    vectors = torch.randn(50, 3)
    drawn = draw_vectors(vectors, 120, torch.Generator().manual_seed(0))
    assert drawn.unique(dim=0).shape == (120, 3)
    assert {tuple(row) for row in vectors.tolist()} <= {tuple(row) for row in drawn.tolist()}
    assert torch.cdist(drawn, vectors).min(1).values.max() < 0.1
    constant = draw_vectors(torch.ones(4, 3), 9, torch.Generator().manual_seed(0))
    assert constant.isfinite().all()
