import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_run import TINY

from foundation.codes.spec import CodeLevel, CodeSpec, require_codes
from foundation.errors import CheckpointError, ConfigError, ContractError, DataError, StorageError
from foundation.images.config import Preprocess
from foundation.images.preview import Preview
from pipeline import ImageGenerator
from pipeline.commands.start import start_run
from pipeline.generation.requests import image_seed
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel


@pytest.fixture(scope="module")
def generator(finished_run: Path) -> ImageGenerator:
    return ImageGenerator.from_pretrained(finished_run)


def test_output_types_show_the_same_images(generator: ImageGenerator) -> None:
    pil = generator(["3", 7], 2, seed=4)
    assert [image.size for image in pil.images] == [(8, 8)] * 4
    assert pil.labels == [3, 3, 7, 7] and pil.seeds == [image_seed(4, i) for i in range(4)]
    values = generator(["3", 7], 2, seed=4, output_type="np").images
    assert np.array_equal(values, generator(["3", 7], 2, seed=4, output_type="numpy").images)
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
        assert together.seeds[i] == image_seed(10, i)
        assert torch.equal(generator(label, seed=together.seeds[i]).codes[0], together.codes[i])
    listed = generator([1, 2, 3, 4, 5], seed=together.seeds)
    assert torch.equal(listed.codes, together.codes) and listed.seeds == together.seeds
    assert torch.equal(generator(1, seed=[5]).codes, generator(1, seed=5).codes)
    assert not torch.equal(generator(1).codes, generator(1).codes), "without a seed images differ"


def test_images_of_adjacent_seeds_share_nothing(generator: ImageGenerator) -> None:
    several = [generator([1, 2, 3, 4, 5, 6, 7, 8], seed=seed) for seed in (0, 1)]
    assert len({seed for each in several for seed in each.seeds}) == 16
    same_label = [generator(1, 8, seed=seed).codes.flatten(1) for seed in (0, 1)]
    assert len({tuple(row) for codes in same_label for row in codes.tolist()}) == 16


def test_torch_generators_are_seeds(generator: ImageGenerator) -> None:
    one = generator([1, 2], generator=torch.Generator().manual_seed(3))
    again = generator([1, 2], generator=torch.Generator().manual_seed(3))
    assert torch.equal(one.codes, again.codes) and one.seeds == again.seeds
    assert torch.equal(generator([1, 2], seed=one.seeds).codes, one.codes)
    rng = torch.Generator().manual_seed(3)
    assert generator(1, generator=rng).seeds != generator(1, generator=rng).seeds, "its state goes on"
    each = generator([1, 2], generator=[torch.Generator().manual_seed(n) for n in (8, 9)])
    assert torch.equal(generator(2, generator=torch.Generator().manual_seed(9)).codes[0], each.codes[1])
    kept = generator.complete(one.codes, rows=2, generator=torch.Generator().manual_seed(3))
    assert kept.seeds == one.seeds


def test_without_a_dict_it_returns_a_tuple(generator: ImageGenerator) -> None:
    whole, listed = generator(1, seed=2, output_type="np"), generator(1, seed=2, output_type="np", return_dict=False)
    assert isinstance(listed, tuple) and len(listed) == 4 and listed[2:] == (whole.labels, whole.seeds)
    assert np.array_equal(listed[0], whole.images) and torch.equal(listed[1], whole.codes)


def test_numbers_of_other_libraries_are_numbers(generator: ImageGenerator) -> None:
    expected = generator([1, 2], seed=5).codes
    assert torch.equal(generator(np.array([1, 2]), seed=np.int64(5)).codes, expected)
    assert torch.equal(generator(torch.tensor([1, 2]), seed=torch.tensor(5)).codes, expected)
    assert torch.equal(generator(np.int64(1), seed=2**70).codes, generator("1", seed=2**70).codes)


def test_without_a_label_it_generates_without_a_class(generator: ImageGenerator) -> None:
    assert generator(seed=1).labels == [None]
    assert len(generator(None, 3, seed=1).images) == 3


def test_the_callback_sees_every_code(generator: ImageGenerator) -> None:
    seen: list[tuple[int, int, dict[str, torch.Tensor]]] = []

    def look(pipe: ImageGenerator, step: int, t: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert pipe is generator
        seen.append((step, t, {name: each.clone() for name, each in tensors.items()}))
        return tensors

    inputs = generator._callback_tensor_inputs
    out = generator(
        [1, 2, 3], seed=0, batch_size=2, callback_on_step_end=look, callback_on_step_end_tensor_inputs=inputs
    )
    assert [(step, t) for step, t, _ in seen] == [(i, i) for i in range(16)] * 2
    codes = torch.full((3, 16), -1)
    for step, _, tensors in seen:
        codes[tensors["rows"], step] = tensors["codes"]
    assert torch.equal(codes.view(3, 4, 4), out.codes)
    assert torch.equal(out.codes, generator([1, 2, 3], seed=0).codes), "returning what was given changes nothing"


def test_codes_that_a_callback_returns_replace_those_drawn(generator: ImageGenerator) -> None:
    """As if they had been known: later codes are drawn given them."""

    def replace(pipe: ImageGenerator, step: int, t: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"codes": torch.full_like(tensors["codes"], 1)} if step < 6 else {}

    for scale in (1.0, 2.0):
        out = generator([1, 2], seed=0, guidance_scale=scale, callback_on_step_end=replace)
        expected = generator.complete(torch.ones(2, 6, dtype=torch.int64), [1, 2], seed=0, guidance_scale=scale)
        assert torch.equal(out.codes, expected.codes)
        assert bool((out.codes.flatten(1)[:, :6] == 1).all())
        assert not torch.equal(out.codes, generator([1, 2], seed=0, guidance_scale=scale).codes)
    shown = []
    generator(1, seed=0, callback_on_step_end=replace, callback_on_row=lambda _, part: shown.append(part.codes))
    assert bool((shown[0][:, 0] == 1).all()), "rows show what replaces"


@pytest.mark.parametrize(
    ("returned", "fragment"),
    [
        ({"logits": torch.zeros(1)}, "logits"),
        ({"codes": torch.zeros(1)}, "int64"),
        ({"codes": [1]}, "list"),
        ({"codes": torch.zeros(2, dtype=torch.int64)}, r"\(1,\)"),
        ({"codes": torch.tensor([10**6])}, "10*"),
        (torch.zeros(1, dtype=torch.int64), "names of"),
        ("codes", "names of"),
    ],
)
def test_what_a_callback_cannot_return_is_refused(generator: ImageGenerator, returned: object, fragment: str) -> None:
    with pytest.raises((ConfigError, DataError), match=rf"^callback_on_step_end(.|\n)*{fragment}"):
        generator(1, seed=0, callback_on_step_end=lambda *_: returned)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"class_labels": "dog"}, "class_labels"),
        ({"class_labels": 10}, "class_labels"),
        ({"class_labels": -1}, "class_labels"),
        ({"class_labels": []}, "class_labels"),
        ({"class_labels": [1, "x"]}, "class_labels"),
        ({"class_labels": True}, "class_labels"),
        ({"class_labels": 1, "num_images_per_label": 0}, "num_images_per_label"),
        ({"class_labels": 1, "temperature": -1.0}, "temperature"),
        ({"class_labels": 1, "temperature": float("nan")}, "temperature"),
        ({"class_labels": 1, "top_k": 0}, "top_k"),
        ({"class_labels": 1, "top_p": 2.0}, "top_p"),
        ({"class_labels": 1, "guidance_scale": float("inf")}, "guidance_scale"),
        ({"class_labels": 1, "output_type": "jpg"}, "output_type"),
        ({"class_labels": [1, 2], "seed": [1]}, "seed"),
        ({"class_labels": 1, "batch_size": 0}, "batch_size"),
        ({"class_labels": 3.5}, "class_labels"),
        ({"class_labels": object()}, "class_labels"),
        ({"class_labels": 1, "seed": 1.5}, "seed"),
        ({"class_labels": 1, "seed": "x"}, "seed"),
        ({"class_labels": 1, "seed": True}, "seed"),
        ({"class_labels": 1, "seed": -1}, "seed"),
        ({"class_labels": 1, "seed": [1.7]}, "seed"),
        ({"class_labels": 1, "temperature": "hot"}, "temperature"),
        ({"class_labels": 1, "top_k": "3"}, "top_k"),
        ({"class_labels": 1, "guidance_scale": 1e300}, "guidance_scale"),
        ({"class_labels": 1, "callback_on_step_end": "x"}, "callback_on_step_end"),
        (
            {"class_labels": 1, "callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["logits"]},
            "callback_on_step_end_tensor_inputs",
        ),
        ({"class_labels": 1, "callback_on_step_end_tensor_inputs": ("latents",)}, "callback_on_step_end_tensor_inputs"),
        ({"class_labels": 1, "return_dict": "no"}, "return_dict"),
        ({"class_labels": 1, "generator": 3}, "generator"),
        ({"class_labels": 1, "generator": []}, "generator"),
        ({"class_labels": [1, 2], "generator": [torch.Generator()]}, "generator"),
        ({"class_labels": 1, "seed": 1, "generator": torch.Generator()}, "generator"),
    ],
)
def test_wrong_arguments_are_refused_by_name(generator: ImageGenerator, arguments: dict, field: str) -> None:
    with pytest.raises((ConfigError, DataError), match=field):
        generator(**arguments)


def test_a_class_that_does_not_exist_names_the_nearest(generator: ImageGenerator) -> None:
    with pytest.raises(DataError, match=r"'12'(.|\n)*'#0' to '#9'(.|\n)*known: 0, 1, 2"):
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
        self.spec, self.decoded, self.preview = spec, [], Preview(spec.preprocess)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        self.decoded.append(codes)
        finest = self.spec.split(codes.flatten(1))[-1]
        painted = finest.reshape(len(codes), 2, 4, -1)[..., 0] / 6
        return painted.unsqueeze(1).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_codes_of_several_depths_and_levels_reach_the_tokenizer(levels: tuple[CodeLevel, ...]) -> None:
    spec = CodeSpec(
        levels=levels,
        stride=4,
        preprocess=Preprocess(height=8, width=16, mode="L"),
        fingerprint="f",
        class_names=("a", "b"),
    )
    tokenizer = PaintedCodes(spec)
    prior = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), spec)
    generator = ImageGenerator(tokenizer, prior)  # type: ignore[arg-type]
    steps: list[torch.Tensor] = []
    out = generator(
        ["a", "b"],
        3,
        seed=1,
        batch_size=4,
        guidance_scale=2.0,
        output_type="pt",
        callback_on_step_end=lambda *given: steps.append(given[-1]["codes"]),
    )
    assert out.codes.shape == (6, *spec.shape) and out.images.shape == (6, 1, 8, 16)
    assert [tuple(codes.shape) for codes in tokenizer.decoded] == [(4, *spec.shape), (2, *spec.shape)]
    assert len(steps) == 2 * spec.n_codes and torch.equal(
        torch.stack(steps[: spec.n_codes], 1), out.codes[:4].flatten(1)
    )
    require_codes(out.codes.flatten(1).numpy(), spec)
    alone = generator("b", seed=out.seeds[5], guidance_scale=2.0, output_type="latent")
    assert torch.equal(alone.images[0], out.codes[5])


def test_an_unfinished_run_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    start_run("digits", str(tmp_path / "begun"), overrides=TINY)
    with pytest.raises(CheckpointError, match="not finished"):
        ImageGenerator.from_pretrained(tmp_path / "begun")
    with pytest.raises(CheckpointError, match="no such folder"):
        ImageGenerator.from_pretrained(tmp_path / "nowhere")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_generator_saves_and_opens_again(generator: ImageGenerator, finished_run: Path, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path / "copy")
    again = ImageGenerator.from_pretrained(tmp_path / "copy")
    assert torch.equal(again(3, 2, seed=1).codes, generator(3, 2, seed=1).codes)
    assert again.defaults == generator.defaults
    again.save_pretrained(tmp_path / "third")
    copy, third = (contents(tmp_path / name) for name in ("copy", "third"))
    assert copy == third and len(copy) > 5, "equal to the byte"
    for name in ("copy", "third"):
        kept = (tmp_path / name / "tokenizer" / "canary.safetensors").read_bytes()
        assert kept == (finished_run / "tokenizer" / "canary.safetensors").read_bytes()


def test_it_moves_to_devices_and_dtypes(finished_run: Path, tmp_path: Path) -> None:
    generator = ImageGenerator.from_pretrained(finished_run, torch_dtype=torch.bfloat16, device_map="cpu")
    assert generator.dtype == torch.bfloat16 and generator.device == torch.device("cpu")
    assert generator.tokenizer.fingerprint == generator.spec.fingerprint, "the tokenizer stays as it was trained"
    assert generator.to("cpu", torch.float32) is generator and generator.dtype == torch.float32
    assert generator.to(dtype=torch.float16).to(device="cpu").to(torch.device("cpu")).dtype == torch.float16
    assert len(generator(1, seed=0).images) == 1
    generator.save_pretrained(tmp_path / "half")
    again = ImageGenerator.from_pretrained(tmp_path / "half", torch_dtype="float16", device_map="auto")
    assert torch.equal(again.prior.head.weight.cpu(), generator.prior.head.weight)


@pytest.mark.parametrize(
    ("places", "named", "field"),
    [
        (("cuda:99",), {}, "device"),
        (("gpu",), {}, "device"),
        ((1.5,), {}, "device"),
        ((torch.int64,), {}, "dtype"),
        (("cpu", "cpu"), {}, "device"),
        (("cpu",), {"device": "cpu"}, "device"),
        ((), {"dtype": "float99"}, "dtype"),
        ((torch.float32, torch.float32), {}, "dtype"),
        ((True,), {}, "device"),
        ((), {"device": torch.float32}, "device"),
        ((), {"dtype": "bfloat"}, "dtype"),
    ],
)
def test_places_that_cannot_be_are_refused_by_name(
    generator: ImageGenerator, places: tuple, named: dict, field: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: (.|\n)*found"):
        generator.to(*places, **named)
    assert generator.dtype == torch.float32


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"device_map": "balanced"}, "device"),
        ({"revision": "v1"}, "revision"),
    ],
)
def test_wrong_ways_to_open_are_refused_by_name(finished_run: Path, how: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}"):
        ImageGenerator.from_pretrained(finished_run, **how)


def test_the_hub_gets_what_is_saved_and_says_why_it_refuses(
    generator: ImageGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is uploaded: the folder is compared at the point where it would be, and then the hub is offline."""
    from huggingface_hub.utils import filter_repo_objects

    from pipeline.generation import generator as module
    from pipeline.generation.files import _CONTENT

    generator.save_pretrained(tmp_path / "saved")
    uploaded: list[bool] = []
    real = module.upload_folder

    def compare(folder: Path, repo_id: str, **options: object) -> str:
        assert contents(folder) == contents(tmp_path / "saved")
        others = ["README.md", "codes/tokenizer/config.json", "checkpoints/prior/step-1/state.json", "samples/grid.png"]
        files = [*contents(folder), *others]
        assert list(filter_repo_objects(files, allow_patterns=_CONTENT)) == list(contents(folder))
        uploaded.append(True)
        return real(folder, repo_id, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "upload_folder", compare)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match=r"^somebody/digits: the hub refused"):
        generator.push_to_hub("somebody/digits", token="hf_none")
    assert uploaded == [True]
    with pytest.raises(CheckpointError, match=r"^somebody/digits: is neither a folder nor a model on the hub"):
        ImageGenerator.from_pretrained("somebody/digits", revision="v1")


def test_sampling_needs_neither_transformers_nor_accelerate(finished_run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.cli import main;"
        f"status = main(['sample', {str(finished_run)!r}, '--class-labels', '3', '--out', {str(tmp_path)!r}]);"
        "print(status, sorted({'transformers', 'accelerate', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert len(list(tmp_path.glob("3-seed*.png"))) == 1
