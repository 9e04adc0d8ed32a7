"""Losses that compare all codes in use see the codes of all processes."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from foundation.training.parallel import global_mean
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
    quantizer = config.build().train()
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
            assert global_mean(torch.ones(2)).tolist() == [1, 1]


def test_two_processes_give_the_gradient_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import debug_launcher

    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    expected = {name: gradients(config, loss, images()) for name, (config, loss) in LOSSES.items()}
    assert all(each.abs().max() > 1e-3 for each in expected.values())
    debug_launcher(_two_processes, (expected,), num_processes=2)
