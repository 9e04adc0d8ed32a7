import pytest
import torch

from foundation.errors import DataError
from foundation.images.preprocess import Preprocess
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.interpolate import interpolate
from stage1_tokenizer.quantizers import FSQConfig, KLConfig, QuantizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel


def small(quantizer: QuantizerConfig, coarse_halvings: int = 0) -> TokenizerModel:
    config = TokenizerConfig(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, latent_channels=8, norm_groups=4,
                             quantizer=quantizer, coarse_halvings=coarse_halvings)  # fmt: skip
    return TokenizerModel(config, Preprocess(height=8, width=8)).eval()


@pytest.mark.parametrize("model", [small(FSQConfig()), small(KLConfig(width=3)), small(FSQConfig(), 1)])
def test_the_ends_are_the_reconstructions(model: TokenizerModel) -> None:
    first, last = torch.rand(2, 3, 8, 8) * 2 - 1
    images = interpolate(model, first, last, torch.tensor([0.0, 0.25, 1.0]))
    for image, end in ((images[0], first), (images[2], last)):
        assert torch.allclose(image, model.decode(model.encode(end[None]))[0], atol=1e-5)


def test_a_gaussian_latent_is_followed_on_a_straight_line() -> None:
    model = small(KLConfig(width=3))
    first, last = torch.rand(2, 3, 8, 8) * 2 - 1
    middle = interpolate(model, first, last, torch.tensor([0.5]))
    latents = model.encode(torch.stack([first, last])).mean(0, keepdim=True)
    assert torch.allclose(middle, model.decode(latents), atol=1e-5)


def test_images_of_different_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        interpolate(small(FSQConfig()), torch.zeros(3, 8, 8), torch.zeros(3, 8, 16), torch.zeros(1))
