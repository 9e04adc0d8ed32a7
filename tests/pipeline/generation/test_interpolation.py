"""Between two seeds and between two images: the ends are the ends, the random numbers stay uniform."""

import pytest
import torch

from foundation.errors import ConfigError, DataError
from foundation.images.config import Preprocess
from pipeline import ImageGenerator
from pipeline.generation.interpolation import images_between, uniforms_between
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import FSQConfig, KLConfig, QuantizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.decoding.decode import stream_uniforms


def test_the_ends_are_what_the_seeds_give(untrained: ImageGenerator) -> None:
    out = untrained.interpolate(3, 11, "b", steps=6, guidance_scale=2.0)
    ends = untrained("b", 2, seed=[3, 11], guidance_scale=2.0).codes
    assert out.codes.shape == (6, 4, 6) and out.labels == [1] * 6 and out.seeds == [3, 11]
    assert torch.equal(out.codes[0], ends[0]) and torch.equal(out.codes[-1], ends[1])
    assert torch.equal(untrained.interpolate(11, 3, "b", steps=6, guidance_scale=2.0).codes[0], ends[1])


def test_every_step_has_uniform_random_numbers() -> None:
    first, last = stream_uniforms([1, 2], 40_000)
    steps = uniforms_between(first, last, 5)
    assert torch.equal(steps[0], first) and torch.equal(steps[-1], last)
    for step in steps:
        counts = torch.histc(step, 20, 0, 1)
        assert float(((counts - 2000).square() / 2000).sum()) < 43.8, "chi-square of 19 degrees, 0.1 %"
    closeness = [float(torch.corrcoef(torch.stack([first, step]))[0, 1]) for step in steps]
    assert closeness == sorted(closeness, reverse=True) and closeness[0] > 0.999 and abs(closeness[-1]) < 0.02
    least_and_most = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    extremes = uniforms_between(least_and_most, torch.tensor([0.5, 0.0]).double(), 9)
    assert bool(((extremes >= 0) & (extremes < 1)).all())


def test_between_a_seed_and_itself_nothing_changes(untrained: ImageGenerator) -> None:
    out = untrained.interpolate(3, 3, "b", steps=4)
    assert torch.equal(out.codes, untrained("b", seed=3).codes.expand(4, -1, -1))


def test_between_images_the_ends_are_their_reconstructions(untrained: ImageGenerator, pictures: torch.Tensor) -> None:
    out = untrained.interpolate(pictures[:1], pictures[1:2], steps=4, output_type="pt")
    codes = untrained.tokenizer.encode(pictures[:2])
    assert torch.equal(out.codes[[0, -1]], codes)
    assert torch.equal(out.images[[0, -1]], untrained.tokenizer.decode(codes).clamp(-1, 1))
    assert out.labels == [None] * 4 and out.seeds == []


@pytest.mark.parametrize(
    ("arguments", "options", "field"),
    [
        ((1, 2), {"steps": 1}, "steps"),
        ((1, 2), {"steps": 10**9}, "steps"),
        ((1, -2), {}, "images"),
        ((1, "x"), {}, "images"),
        ((1.5, 2), {}, "images"),
        ((1, 2), {"seed": 3}, "seed"),
        ((1, 2, "z"), {}, "class_labels"),
        ((1, 2), {"best_of": 2}, "best_of"),
        ((1, 2, ["a", "b"]), {}, "class_label"),
        ((True, 2), {}, "images"),
    ],
)
def test_ends_that_cannot_be_are_refused_by_name(
    untrained: ImageGenerator, arguments: tuple, options: dict, field: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=f"^{field}"):
        untrained.interpolate(*arguments, **options)
    with pytest.raises(ConfigError, match="class_label"):
        untrained.interpolate(torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 8, 12), "a")
    with pytest.raises(DataError, match=r"whole numbers(.|\n)*tokenizer\.decode"):
        untrained.interpolate(*untrained("a", 2, seed=0).codes.split(1))
    with pytest.raises(DataError, match="several"):
        untrained.interpolate(torch.zeros(2, 1, 8, 12), torch.zeros(1, 1, 8, 12))


def small(quantizer: QuantizerConfig, coarse_halvings: int = 0) -> TokenizerModel:
    networks = VQGANNetworks(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, norm_groups=4)
    config = TokenizerConfig(networks=networks, latent_channels=8, quantizer=quantizer, coarse_halvings=coarse_halvings)
    return TokenizerModel(config, Preprocess(height=8, width=8)).eval()


@pytest.mark.parametrize("model", [small(FSQConfig()), small(KLConfig(width=3)), small(FSQConfig(), 1)])
def test_the_ends_are_the_reconstructions(model: TokenizerModel) -> None:
    first, last = torch.rand(2, 3, 8, 8) * 2 - 1
    images = images_between(model, first, last, torch.tensor([0.0, 0.25, 1.0]))
    for image, end in ((images[0], first), (images[2], last)):
        assert torch.allclose(image, model.decode(model.encode(end[None]))[0], atol=1e-5)


def test_a_gaussian_latent_is_followed_on_a_straight_line() -> None:
    model = small(KLConfig(width=3))
    first, last = torch.rand(2, 3, 8, 8) * 2 - 1
    middle = images_between(model, first, last, torch.tensor([0.5]))
    latents = model.encode(torch.stack([first, last])).mean(0, keepdim=True)
    assert torch.allclose(middle, model.decode(latents), atol=1e-5)


def test_images_of_different_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        images_between(small(FSQConfig()), torch.zeros(3, 8, 8), torch.zeros(3, 8, 16), torch.zeros(1))
