"""``tessera sample`` and ``tessera edit`` as users type them, and the report's pictures of what can be done."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.config import from_dict
from foundation.errors import ConfigError
from foundation.images.config import Preprocess
from foundation.images.image_set import open_image_sets
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.generation.requests import image_seed
from pipeline.report.gallery import draw_gallery, gallery_section
from pipeline.report.report import write_report
from pipeline.runs.folder import RunFolder
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig
from stage2_prior.decoding.compiled import CompiledEngine
from stage2_prior.prior import PriorModel

SMALL = {
    "base_width": 8,
    "width_multipliers": [1, 2],
    "n_res_blocks": 1,
    "latent_channels": 8,
    "norm_groups": 4,
    "quantizer": {"type": "fsq", "levels": [4, 4, 3]},
}


@pytest.fixture(scope="module")
def digits(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real digits as files."""
    folder = tmp_path_factory.mktemp("images")
    _, held_out = open_image_sets(RunFolder(finished_run).load_recipe().data)
    for i, pixels in enumerate(held_out.pixels(np.arange(2))):
        Image.fromarray(pixels[..., 0]).save(folder / f"{i}.png")
    return folder


def test_sample_takes_precision_and_compile(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled here is the step as it stands; tests/stage2_prior/decoding/test_compiled.py compiles it."""
    built = []
    monkeypatch.setattr(CompiledEngine, "_compiled", lambda self, function: built.append(self) or function)
    line = ["sample", str(finished_run), "--class-labels", "3", "--seed", "1", "--out"]
    generator = ImageGenerator.from_pretrained(finished_run)
    assert main([*line, str(tmp_path / "compiled"), "--compile"]) == 0 and built
    assert saved(tmp_path / "compiled") == np.asarray(generator("3", seed=1).images[0]).tolist()
    assert main([*line, str(tmp_path / "bf16"), "--precision", "bf16"]) == 0
    generator.prior.to(torch.bfloat16)
    assert saved(tmp_path / "bf16") == np.asarray(generator("3", seed=1).images[0]).tolist()


def saved(folder: Path) -> list:
    return np.asarray(Image.open(folder / "3-seed1.png")).tolist()


def test_sample_takes_every_sampling_option(finished_run: Path, tmp_path: Path) -> None:
    line = [
        "sample",
        str(finished_run),
        "--class-labels",
        "3",
        "4",
        "--num-images-per-label",
        "2",
        "--seed",
        "1",
        "--out",
        str(tmp_path),
        "--guidance-scale",
        "3",
        "--schedule",
        "linear",
        "--guidance-interval",
        "0.1",
        "0.9",
        "--temperature",
        "0.8",
        "--top-k",
        "20",
        "--top-p",
        "0.9",
        "--partial",
    ]
    assert main(line) == 0
    expected = ImageGenerator.from_pretrained(finished_run)(
        ["3", "4"],
        2,
        seed=1,
        guidance_scale=3.0,
        schedule="linear",
        guidance_interval=(0.1, 0.9),
        temperature=0.8,
        top_k=20,
        top_p=0.9,
    )
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / f"4-seed{image_seed(1, 3)}.png")), np.asarray(expected.images[3])
    )
    assert len(list(tmp_path.glob("partial-*-row00*.png"))) == 16
    last = Image.open(tmp_path / "partial-0003-row004.png")
    assert np.array_equal(np.asarray(last), np.asarray(expected.images[3]))


def test_sample_draws_the_best_of_several_and_larger_images(finished_run: Path, tmp_path: Path) -> None:
    line = ["sample", str(finished_run), "--class-labels", "3", "--seed", "1"]
    assert main([*line, "--best-of", "5", "--out", str(tmp_path / "best")]) == 0
    (best,) = (path for path in (tmp_path / "best").glob("3-seed*.png"))
    seed = int(best.stem.removeprefix("3-seed"))
    expected = ImageGenerator.from_pretrained(finished_run)("3", seed=seed).images[0]
    assert np.array_equal(np.asarray(Image.open(best)), np.asarray(expected))
    assert main([*line, "--height", "12", "--width", "20", "--out", str(tmp_path / "wide")]) == 0
    assert Image.open(tmp_path / "wide" / "3-seed1.png").size == (20, 12)


def test_interpolate_goes_between_seeds_too(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "strip.png"
    line = ["interpolate", str(finished_run), "4", "9", "--class-label", "3", "--steps", "5", "--out", str(out)]
    assert main(line) == 0
    strip = np.asarray(Image.open(out))
    assert strip.shape == (64, 5 * 66 - 2)
    ends = ImageGenerator.from_pretrained(finished_run)("3", 2, seed=[4, 9]).images
    for i, end in ((0, ends[0]), (4, ends[1])):
        assert np.array_equal(strip[::8, 66 * i : 66 * i + 64 : 8], np.asarray(end))


@pytest.mark.parametrize(
    ("arguments", "n_given"),
    [
        (["complete", "--rows", "0.5", "--guess-class"], 2),
        (["complete", "--rows", "3"], 2),
        (["inpaint", "--mask", "MASK", "--blend", "1", "--best-of", "2"], 2),
        (["vary", "--share", "0.3", "--class-label", "3"], 1),
        (["change-class", "--class-label", "8"], 1),
    ],
)
def test_edits_write_a_row_for_each_image_and_every_result(
    finished_run: Path, digits: Path, tmp_path: Path, arguments: list[str], n_given: int
) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    name, *options = [str(tmp_path / "mask.png") if each == "MASK" else each for each in arguments]
    files = [str(digits / "0.png"), str(digits / "1.png")]
    line = ["edit", name, str(finished_run), *files, "--num-images", "3", "--seed", "2", *options]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(f"000{i}-{i}-{end}.png" for i in range(2) for end in ("0", "1", "2", "all"))
    row = Image.open(tmp_path / "out" / "0000-0-all.png")
    assert row.size == ((n_given + 3) * 66 - 2, 64)
    assert main([*line, "--out", str(tmp_path / "again")]) == 0
    one, other = (np.asarray(Image.open(tmp_path / each / "0001-1-2.png")) for each in ("out", "again"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["edit", "inpaint", "RUN", "0.png"], "--mask"),
        (["edit", "inpaint", "RUN", "0.png", "--mask", "no.png"], "--mask"),
        (["edit", "complete", "RUN", "no.png"], "no such file"),
        (["edit", "change-class", "RUN", "0.png"], "class_labels"),
        (["edit", "complete", "RUN", "0.png", "--rows", "4"], "rows"),
        (["edit", "vary", "RUN", "0.png", "--share", "0"], "share"),
        (["edit", "vary", "RUN", "0.png", "--class-label", "cat"], "class_labels"),
        (["sample", "RUN", "--count", "5", "--num-images-per-label", "2"], "--count"),
        (["sample", "RUN", "--count", "0"], "count"),
        (["sample", "RUN", "--count", "5", "--part", "5/5"], "part"),
        (["sample", "RUN", "--top-k", "0"], "top_k"),
        (["sample", "RUN", "--height", "9"], "height"),
        (["sample", "RUN", "--part", "1/4"], "--count"),
        (["sample", "RUN", "--format", "parquet"], "--count"),
        (["sample", "RUN", "--images-per-file", "8"], "--count"),
        (["interpolate", "RUN", "0.png", "0.png", "--class-label", "3"], "--class-label"),
        (["sample", "RUN", "--best-of", "0"], "best_of"),
        (["tune-guidance", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_answered_with_the_way_out(
    finished_run: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    fragment: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(finished_run), "0.png": str(digits / "0.png")}
    assert main([names.get(each, each) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and fragment in error


def test_the_report_shows_what_can_be_done(run_copy: Path) -> None:
    folder = RunFolder(run_copy)
    captions = json.loads((folder.gallery / "captions.json").read_text())
    assert list(captions) == ["completion", "inpainting", "variations", "classes"]
    sizes = {name: Image.open(folder.gallery / f"{name}.png").size for name in captions}
    assert sizes["completion"] == (5 * 50 - 2, 6 * 50 - 2) and sizes["classes"] == (11 * 50 - 2, 6 * 50 - 2)
    page = folder.report.read_text()
    assert "<h2>Gallery</h2>" in page and all(caption in page for caption in captions.values())
    import shutil

    shutil.rmtree(folder.gallery)
    write_report(folder)
    assert "<h2>Gallery</h2>" not in folder.report.read_text() and gallery_section(folder.gallery) == ""


def test_the_upper_half_in_the_picture_of_completion_is_the_image_s(run_copy: Path) -> None:
    picture = np.asarray(Image.open(RunFolder(run_copy).gallery / "completion.png"))
    image, kept = picture[:48, :48], picture[:48, 50:98]
    assert np.array_equal(kept[:24], image[:24]) and bool((kept[24:] == 128).all())


def test_a_prior_without_a_null_class_shows_what_it_can(finished_run: Path, tmp_path: Path) -> None:
    generator = ImageGenerator.from_pretrained(finished_run)
    sure = ImageGenerator(generator.tokenizer, generator.prior, label_dropout=0)
    draw_gallery(sure, np.zeros((2, 8, 8, 1), np.uint8), tmp_path / "gallery", seed=0)
    assert {path.stem for path in (tmp_path / "gallery").glob("*.png")} == {"completion", "classes"}


def test_a_grid_of_one_row_is_shown_without_completions(tmp_path: Path) -> None:
    tokenizer = TokenizerModel(from_dict(TokenizerConfig, SMALL), Preprocess(height=2, width=8, mode="L"))
    prior = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), tokenizer.spec.with_classes(("a", "b")))
    generator = ImageGenerator(tokenizer, prior, label_dropout=0.1)
    draw_gallery(generator, np.zeros((2, 2, 8, 1), np.uint8), tmp_path / "gallery", seed=0)
    assert {path.stem for path in (tmp_path / "gallery").glob("*.png")} == {"inpainting", "variations", "classes"}
    with pytest.raises(ConfigError, match="the grid has one row"):
        generator.complete(torch.zeros(1, 1, 2, 8), rows=0.5)


def test_a_batch_size_without_a_count_changes_no_image(finished_run: Path, tmp_path: Path) -> None:
    for name, more in (("one", []), ("two", ["--batch-size", "3"])):
        line = ["sample", str(finished_run), "--seed", "1", "--out", str(tmp_path / name)]
        assert main([*line, "--num-images-per-label", "1", *more]) == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert len(one) == 11 and one == two


def test_help_and_a_first_image_are_quick_to_load(finished_run: Path, tmp_path: Path) -> None:
    """What they import decides how long they take; the times themselves are measured elsewhere."""
    code = (
        "import sys; from pipeline.cli import main\n"
        "main([*{arguments!r}])\n"
        "heavy = {{'torch', 'numpy', 'PIL', 'transformers', 'accelerate', 'datasets', 'matplotlib'}}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    first = ["sample", str(finished_run), "--out", str(tmp_path)]
    lines = [(["--help"], []), (["sample", "--help"], []), (["edit", "--help"], []), (first, ["PIL", "numpy", "torch"])]
    for arguments, heavy in lines:
        line = [sys.executable, "-c", code.format(arguments=arguments)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == str(heavy), arguments
