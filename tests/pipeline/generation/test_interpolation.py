"""Between two seeds and between two images: the ends are the ends, the random numbers stay uniform."""

import pytest
import torch

from foundation.errors import ConfigError, DataError
from pipeline import ImageGenerator
from pipeline.generation.interpolation import between
from stage2_prior.decoding.decode import stream_uniforms


def test_the_ends_are_what_the_seeds_give(untrained: ImageGenerator) -> None:
    out = untrained.interpolate(3, 11, "b", steps=6, guidance_scale=2.0)
    ends = untrained("b", 2, seed=[3, 11], guidance_scale=2.0).codes
    assert out.codes.shape == (6, 4, 6) and out.labels == [1] * 6 and out.seeds == [3, 11]
    assert torch.equal(out.codes[0], ends[0]) and torch.equal(out.codes[-1], ends[1])
    assert torch.equal(untrained.interpolate(11, 3, "b", steps=6, guidance_scale=2.0).codes[0], ends[1])


def test_every_step_has_uniform_random_numbers() -> None:
    first, last = stream_uniforms([1, 2], 40_000)
    steps = between(first, last, 5)
    assert torch.equal(steps[0], first) and torch.equal(steps[-1], last)
    for step in steps:
        counts = torch.histc(step, 20, 0, 1)
        assert float(((counts - 2000).square() / 2000).sum()) < 43.8, "chi-square of 19 degrees, 0.1 %"
    closeness = [float(torch.corrcoef(torch.stack([first, step]))[0, 1]) for step in steps]
    assert closeness == sorted(closeness, reverse=True) and closeness[0] > 0.999 and abs(closeness[-1]) < 0.02
    extremes = between(torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64), torch.tensor([0.5, 0.0]).double(), 9)
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
    [((1, 2), {"steps": 1}, "steps"), ((1, 2), {"steps": 10**9}, "steps"), ((1, -2), {}, "images"),
     ((1, "x"), {}, "images"), ((1.5, 2), {}, "images"), ((1, 2), {"seed": 3}, "seed"),
     ((1, 2, "z"), {}, "class_labels"),
     ((1, 2), {"best_of": 2}, "best_of"), ((1, 2, ["a", "b"]), {}, "class_label"), ((True, 2), {}, "images")],
)  # fmt: skip
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
