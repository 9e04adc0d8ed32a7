import pytest
import torch
from torch.nn import functional as F

from stage1_tokenizer.quantizers import codebook
from stage1_tokenizer.quantizers.config import IBQConfig
from stage1_tokenizer.quantizers.ibq import IBQ


def naive_losses(latents: torch.Tensor, codebook: torch.Tensor, config: IBQConfig) -> dict[str, torch.Tensor]:
    z = latents.permute(0, 2, 3, 1).reshape(-1, codebook.shape[1])
    logits = z @ codebook.T
    p = logits.softmax(1)
    hard = F.one_hot(logits.argmax(1), len(codebook)).to(p)
    soft_zq, hard_zq = (hard - p.detach() + p) @ codebook, hard @ codebook
    sharp = (logits / config.entropy_temperature).softmax(1)
    mean = sharp.mean(0)
    entropy = -torch.xlogy(sharp, sharp).sum(1).mean() + torch.xlogy(mean, mean).sum()
    return {
        "double": config.double_weight * (soft_zq - z).square().mean(),
        "commitment": config.commitment * (hard_zq.detach() - z).square().mean(),
        "codebook": config.codebook_weight * (hard_zq - z.detach()).square().mean(),
        "entropy": config.entropy_weight * entropy,
    }


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_losses_and_gradients_equal_those_of_the_whole_matrix(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "CPU_BLOCK", block)
    config = IBQConfig(codebook_size=17, width=3, entropy_temperature=0.5, entropy_weight=0.3)
    ibq, latents = IBQ(config), torch.randn(2, 3, 4, 5, requires_grad=True)
    leaves = (latents, ibq.codebook)
    found, expected = ibq(latents).losses, naive_losses(latents, ibq.codebook, config)
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.allclose(found[name], expected[name], atol=1e-5), name
        both = [
            torch.autograd.grad(losses[name], leaves, allow_unused=True, retain_graph=True)
            for losses in (found, expected)
        ]
        for one, other in zip(*both, strict=True):
            assert (one is None) == (other is None), name
            assert one is None or torch.allclose(one, other, atol=1e-5), name


def test_codes_that_were_not_chosen_get_gradients_from_the_decoder() -> None:
    ibq, latents = IBQ(IBQConfig(codebook_size=50, width=4)), torch.randn(1, 4, 1, 1)
    (gradient,) = torch.autograd.grad((ibq(latents).latents_BCHW * torch.randn(1, 4, 1, 1)).sum(), ibq.codebook)
    assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("size", [1000, 65_535, 65_536, 65_537])
def test_codes_of_one_length_survive_decode_and_encode(size: int) -> None:
    ibq = IBQ(IBQConfig(codebook_size=size, width=8)).eval()
    codes = torch.arange(1000).view(1, 20, 50) if size == 1000 else torch.tensor([[[0, 1, size // 2, size - 1]]])
    assert torch.equal(ibq.encode(ibq.decode(codes)), codes)
