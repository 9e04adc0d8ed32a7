"""sample and interpolate on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.images.image_set import open_image_sets
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.generation.requests import image_seed
from pipeline.runs.folder import RunFolder
from stage2_prior.decoding.engine import CompiledEngine


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
    ("arguments", "fragment"),
    [
        (["edit", "inpaint", "RUN", "0.png"], "--mask"),
        (["edit", "inpaint", "RUN", "0.png", "--mask", "no.png"], "--mask"),
        (["edit", "complete", "RUN", "no.png"], "no such file"),
        (["edit", "change-class", "RUN", "0.png"], "--class-label: is missing"),
        (["edit", "complete", "RUN", "0.png", "--rows", "4"], "rows"),
        (["edit", "vary", "RUN", "0.png", "--share", "0"], "share"),
        (["edit", "vary", "RUN", "0.png", "--class-label", "cat"], "--class-label: no such class"),
        (["sample", "RUN", "--count", "5", "--num-images-per-label", "2"], "--count"),
        (["sample", "RUN", "--count", "0"], "count"),
        (["sample", "RUN", "--count", "5", "--part", "5/5"], "part"),
        (["sample", "RUN", "--top-k", "0"], "--top-k: "),
        (["sample", "RUN", "--height", "9"], "height"),
        (["sample", "RUN", "--part", "1/4"], "--count"),
        (["sample", "RUN", "--format", "parquet"], "--count"),
        (["sample", "RUN", "--images-per-file", "8"], "--count"),
        (["interpolate", "RUN", "0.png", "0.png", "--class-label", "3"], "--class-label"),
        (["sample", "RUN", "--best-of", "0"], "--best-of: "),
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


def test_a_batch_size_without_a_count_changes_no_image(finished_run: Path, tmp_path: Path) -> None:
    for name, more in (("one", []), ("two", ["--batch-size", "3"])):
        line = ["sample", str(finished_run), "--seed", "1", "--out", str(tmp_path / name)]
        assert main([*line, "--num-images-per-label", "1", *more]) == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")} for name in ("one", "two"))
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


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 37, 3), np.uint8)).save(path)
    return path


def test_interpolate_writes_a_strip(
    finished_run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "strip.png"
    assert main(["interpolate", str(finished_run), str(picture), str(picture), "--steps", "3", "--out", str(out)]) == 0
    assert Image.open(out).size == (3 * 128 + 2 * 2, 128)
    assert main(["interpolate", str(finished_run), str(picture), "gone.png", "--out", str(tmp_path / "new.png")]) == 2
    assert "gone.png" in capsys.readouterr().err
    assert main(["interpolate", str(finished_run), str(picture), str(picture), "--steps", "1"]) == 2
    for bad in (str(tmp_path), "", "strip", "strip.webpp"):
        assert main(["interpolate", str(finished_run), str(picture), str(picture), "--out", bad]) == 2
        assert "--out" in capsys.readouterr().err
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    assert main(["interpolate", str(finished_run), str(picture), str(text), "--out", str(tmp_path / "new.png")]) == 2
    assert "text.png" in capsys.readouterr().err
