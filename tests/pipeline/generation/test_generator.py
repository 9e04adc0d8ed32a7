import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.codes.spec import CodeLevel, CodeSpec, require_codes
from foundation.errors import CheckpointError, ConfigError, ContractError, DataError
from foundation.images.preprocess import Preprocess
from pipeline import ImageGenerator
from pipeline.commands import start_run
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel

from support.tiny_run import TINY  # isort: skip


@pytest.fixture(scope="module")
def generator(finished_run: Path) -> ImageGenerator:
    return ImageGenerator.from_pretrained(finished_run)


def test_output_types_show_the_same_images(generator: ImageGenerator) -> None:
    pil = generator(["3", 7], 2, seed=4)
    assert [image.size for image in pil.images] == [(8, 8)] * 4
    assert pil.labels == [3, 3, 7, 7] and pil.seeds == [4, 5, 6, 7]
    values = generator(["3", 7], 2, seed=4, output_type="np").images
    tensors = generator(["3", 7], 2, seed=4, output_type="pt").images
    codes = generator(["3", 7], 2, seed=4, output_type="latent").images
    assert torch.equal(codes, pil.codes) and codes.shape == (4, 4, 4)
    assert values.shape == (4, 8, 8, 1) and values.min() >= 0 and values.max() <= 1
    assert np.allclose((tensors.permute(0, 2, 3, 1).numpy() + 1) / 2, values, atol=1 / 255)
    assert np.array_equal(np.asarray(pil.images[0]), (values[0, ..., 0] * 255).round().astype(np.uint8))


def test_image_i_is_the_same_alone_and_in_any_batch(generator: ImageGenerator) -> None:
    together = generator([1, 2, 3, 4, 5], seed=10)
    split = generator([1, 2, 3, 4, 5], seed=10, batch_size=2)
    assert torch.equal(together.codes, split.codes)
    for i, label in enumerate([1, 2, 3, 4, 5]):
        assert torch.equal(generator(label, seed=10 + i).codes[0], together.codes[i])
    listed = generator([1, 2, 3, 4, 5], seed=[10, 11, 12, 13, 14])
    assert torch.equal(listed.codes, together.codes)
    assert not torch.equal(generator(1).codes, generator(1).codes), "without a seed images differ"


def test_numbers_of_other_libraries_are_numbers(generator: ImageGenerator) -> None:
    expected = generator([1, 2], seed=5).codes
    assert torch.equal(generator(np.array([1, 2]), seed=np.int64(5)).codes, expected)
    assert torch.equal(generator(torch.tensor([1, 2]), seed=torch.tensor(5)).codes, expected)
    assert torch.equal(generator(np.int64(1), seed=2**70).codes, generator("1", seed=2**70).codes)


def test_without_a_label_it_generates_without_a_class(generator: ImageGenerator) -> None:
    assert generator(seed=1).labels == [None]
    assert len(generator(None, 3, seed=1).images) == 3


def test_the_callback_sees_every_code(generator: ImageGenerator) -> None:
    seen: list[torch.Tensor] = []
    out = generator([1, 2], seed=0, callback_on_step_end=lambda pipe, step, codes: seen.append(codes.clone()))
    assert torch.equal(torch.stack(seen, 1).view(2, 4, 4), out.codes)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"class_labels": "dog"}, "class_labels"), ({"class_labels": 10}, "class_labels"),
        ({"class_labels": -1}, "class_labels"), ({"class_labels": []}, "class_labels"),
        ({"class_labels": [1, "x"]}, "class_labels"), ({"class_labels": True}, "class_labels"),
        ({"class_labels": 1, "num_images_per_label": 0}, "num_images_per_label"),
        ({"class_labels": 1, "temperature": -1.0}, "temperature"),
        ({"class_labels": 1, "temperature": float("nan")}, "temperature"),
        ({"class_labels": 1, "top_k": 0}, "top_k"), ({"class_labels": 1, "top_p": 2.0}, "top_p"),
        ({"class_labels": 1, "guidance_scale": float("inf")}, "guidance_scale"),
        ({"class_labels": 1, "output_type": "jpg"}, "output_type"), ({"class_labels": [1, 2], "seed": [1]}, "seed"),
        ({"class_labels": 1, "batch_size": 0}, "batch_size"), ({"class_labels": 3.5}, "class_labels"),
        ({"class_labels": object()}, "class_labels"), ({"class_labels": 1, "seed": 1.5}, "seed"),
        ({"class_labels": 1, "seed": "x"}, "seed"), ({"class_labels": 1, "seed": True}, "seed"),
        ({"class_labels": 1, "seed": -1}, "seed"), ({"class_labels": 1, "seed": [1.7]}, "seed"),
        ({"class_labels": 1, "temperature": "hot"}, "temperature"), ({"class_labels": 1, "top_k": "3"}, "top_k"),
        ({"class_labels": 1, "guidance_scale": 1e300}, "guidance_scale"),
        ({"class_labels": 1, "callback_on_step_end": "x"}, "callback_on_step_end"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(generator: ImageGenerator, arguments: dict, field: str) -> None:
    with pytest.raises((ConfigError, DataError), match=field):
        generator(**arguments)


def test_a_class_that_does_not_exist_names_the_nearest(generator: ImageGenerator) -> None:
    with pytest.raises(DataError, match=r"'12'(.|\n)*0\.\.9(.|\n)*known: 0, 1, 2"):
        generator("12")


def test_a_prior_refuses_another_tokenizer_s_codes(generator: ImageGenerator) -> None:
    other = TokenizerModel(generator.tokenizer.config, generator.tokenizer.preprocess)
    with pytest.raises(ContractError, match="fingerprint"):
        ImageGenerator(other, generator.prior)


LEVELS = {
    "depth 3": (CodeLevel(height=2, width=4, codebook_size=6, depth=3),),
    "two levels": (CodeLevel(height=1, width=2, codebook_size=4), CodeLevel(height=2, width=4, codebook_size=6)),
}


class PaintedCodes(torch.nn.Module):
    """Stands in for a tokenizer of several codes per place: it paints the codes of the finest grid."""

    def __init__(self, spec: CodeSpec) -> None:
        super().__init__()
        self.spec, self.decoded = spec, []

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        self.decoded.append(codes)
        finest = self.spec.split(codes.flatten(1))[-1]
        painted = finest.reshape(len(codes), 2, 4, -1)[..., 0] / 6
        return painted.unsqueeze(1).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_codes_of_several_depths_and_levels_reach_the_tokenizer(levels: tuple[CodeLevel, ...]) -> None:
    spec = CodeSpec(levels=levels, stride=4, preprocess=Preprocess(height=8, width=16, mode="L"), fingerprint="f",
                    class_names=("a", "b"))  # fmt: skip
    tokenizer = PaintedCodes(spec)
    prior = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), spec)
    generator = ImageGenerator(tokenizer, prior)  # type: ignore[arg-type]
    steps: list[torch.Tensor] = []
    out = generator(["a", "b"], 3, seed=1, batch_size=4, guidance_scale=2.0, output_type="pt",
                    callback_on_step_end=lambda _, step, codes: steps.append(codes))  # fmt: skip
    assert out.codes.shape == (6, *spec.shape) and out.images.shape == (6, 1, 8, 16)
    assert [tuple(codes.shape) for codes in tokenizer.decoded] == [(4, *spec.shape), (2, *spec.shape)]
    assert len(steps) == 2 * spec.n_codes and torch.equal(
        torch.stack(steps[: spec.n_codes], 1), out.codes[:4].flatten(1)
    )
    require_codes(out.codes.flatten(1).numpy(), spec)
    assert torch.equal(generator("b", seed=6, guidance_scale=2.0, output_type="latent").images[0], out.codes[5])


def test_an_unfinished_run_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    start_run("digits", str(tmp_path / "begun"), overrides=TINY)
    with pytest.raises(CheckpointError, match="not finished"):
        ImageGenerator.from_pretrained(tmp_path / "begun")
    with pytest.raises(CheckpointError, match="no such folder"):
        ImageGenerator.from_pretrained(tmp_path / "nowhere")


def test_a_generator_saves_and_opens_again(generator: ImageGenerator, finished_run: Path, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path / "copy")
    again = ImageGenerator.from_pretrained(tmp_path / "copy")
    assert torch.equal(again(3, 2, seed=1).codes, generator(3, 2, seed=1).codes)
    assert again.defaults == generator.defaults
    again.save_pretrained(tmp_path / "third")
    for name in ("copy", "third"):
        kept = (tmp_path / name / "tokenizer" / "canary.safetensors").read_bytes()
        assert kept == (finished_run / "tokenizer" / "canary.safetensors").read_bytes()


def test_sampling_needs_neither_transformers_nor_accelerate(finished_run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.cli import main;"
        f"status = main(['sample', {str(finished_run)!r}, '--class_labels', '[3]', '--out', {str(tmp_path)!r}]);"
        "print(status, sorted({'transformers', 'accelerate', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert len(list(tmp_path.glob("3-seed*.png"))) == 1
