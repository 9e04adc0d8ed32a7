"""A run on pictures of four channels and 16 bits, and what the commands make of it."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.multispectral import WHITE, hill
from support.picture_runs import QUICK

from foundation.codes.dataset import TokenDataset
from foundation.images.source_config import DatasetData
from foundation.images.sources import open_sources
from foundation.storage.serialization import read_json
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.commands.start import start_run
from pipeline.runs.folder import RunFolder
from stage1_tokenizer.tokenizer import TokenizerModel

SIDE = 8
PREPROCESS = {"height": SIDE, "width": SIDE, "mode": "channels", "channels": 4, "bits": 16, "white_level": WHITE}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files of 8 x 8 pixels, TIFF and .npy in turn."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        pixels = hill(i, SIDE)
        if i % 2:
            np.save(folder / f"{i:02d}.npy", pixels)
        else:
            tifffile.imwrite(folder / f"{i:02d}.tif", pixels, planarconfig="contig", photometric="minisblack")
    return folder


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "deep"
    changes = {"data.source": {"type": "folder", "path": str(pictures)}, "data.preprocess": PREPROCESS}
    job = start_run("digits", str(folder), overrides={**QUICK, **changes})
    job.all()
    return folder


def test_every_part_of_a_run_has_four_deep_channels(run: Path) -> None:
    folder = RunFolder(run)
    tokenizer = TokenizerModel.load(folder.tokenizer)
    assert tokenizer.preprocess.n_channels == 4 and tokenizer.preprocess.bits == 16
    dataset = TokenDataset(folder.codes, "train")
    assert dataset.spec.preprocess == tokenizer.preprocess
    rows = [line for line in folder.metrics.read_text(encoding="utf-8").splitlines() if "psnr_3" in line]
    assert rows and "psnr_4" not in rows[-1]
    report = folder.report.read_text(encoding="utf-8")
    assert "array of uint16" in report and "Reconstructions" in report
    assert Image.open(folder.samples / "grid.png").mode == "RGB"
    assert Image.open(folder.gallery / "variations.png").mode == "RGB"


def test_output_types_hold_what_they_say(run: Path) -> None:
    generator = ImageGenerator.from_pretrained(run)
    generator.set_progress_bar_config(disable=True)
    images = {kind: generator(None, 2, seed=1, output_type=kind).images for kind in ("pt", "np", "pil")}
    assert images["pt"].shape == (2, 4, SIDE, SIDE)
    levels = images["np"] * 65_535
    assert images["np"].shape == (2, SIDE, SIDE, 4) and abs(levels - levels.round()).max() < 0.01
    assert abs((images["pt"].numpy().transpose(0, 2, 3, 1) + 1) / 2 - images["np"]).max() < 1e-5
    assert [each.mode for each in images["pil"]] == ["RGB", "RGB"]
    kept = generator.complete([hill(0, SIDE)], rows=0.5, seed=1, output_type="pt").images
    assert kept.shape == (1, 4, SIDE, SIDE)


def test_commands_write_every_channel_and_a_preview(run: Path, pictures: Path, tmp_path: Path) -> None:
    files = [str(pictures / "00.tif"), str(pictures / "01.npy")]
    assert main(["sample", str(run), "--num-images-per-label", "2", "--seed", "3", "--out", str(tmp_path / "new")]) == 0
    assert main(["reconstruct", str(run), *files, "--out", str(tmp_path / "pairs")]) == 0
    assert main(["edit", "complete", str(run), files[0], "--seed", "1", "--out", str(tmp_path / "edited")]) == 0
    assert main(["score", str(run), str(pictures)]) == 0
    assert main(["interpolate", str(run), *files, "--steps", "3", "--out", str(tmp_path / "strip.png")]) == 0
    made = {"new": "image-seed3", "pairs": "0000-00-decoded", "edited": "0000-00-0"}
    for folder, stem in made.items():
        pixels = np.load(tmp_path / folder / f"{stem}.npy")
        assert pixels.shape == (SIDE, SIDE, 4) and pixels.dtype == np.uint16
        assert Image.open(tmp_path / folder / f"{stem}.png").size == (SIDE, SIDE)
    assert Image.open(tmp_path / "strip.png").mode == "RGB"


def test_bulk_files_are_read_again_as_images(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoded"
    assert main(["decode", str(run / "codes"), "--split", "validation", "--out", str(out)]) == 0
    decoded = sorted(out.rglob("*.npy"))
    assert max(np.load(path).max() for path in decoded) <= WHITE
    assert len(decoded) == len(TokenDataset(run / "codes", "validation").codes_NT)
    assert main(["reconstruct", str(run), *map(str, decoded[:2]), "--out", str(tmp_path / "again")]) == 0
    many = ["--count", "4", "--batch-size", "2", "--seed", "5", "--out"]
    assert main(["sample", str(run), *many, str(tmp_path / "files")]) == 0
    parquet = ["--format", "parquet", "--images-per-file", "4"]
    assert main(["sample", str(run), *many, str(tmp_path / "table"), *parquet]) == 0
    source, _ = open_sources(DatasetData(path=str(tmp_path / "table" / "data")), arrays=True)
    preprocess = TokenizerModel.load(run / "tokenizer").preprocess
    for i in range(4):
        pixels = np.load(tmp_path / "files" / "images" / f"{i:08d}.npy")
        assert np.array_equal(preprocess(source.read(i)), preprocess(pixels)) and pixels.dtype == np.uint16
    assert read_json(tmp_path / "files" / "generation.json", ("count",), fix="")["count"] == 4


def test_evaluation_names_each_channel(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--stage", "tokenizer"]) == 0
    text = capsys.readouterr().out
    assert "PSNR 3" in text and "channel 3" in text


def test_opacity_makes_the_round_trip_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(24):
        alpha = np.uint8(255) - np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE, 1) * np.uint8(i % 4)
        pixels = np.concatenate([(hill(i, SIDE)[..., :3] // 40).astype(np.uint8), alpha], -1)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    preprocess = {"height": SIDE, "width": SIDE, "mode": "RGBA"}
    changes = {"data.source": {"type": "folder", "path": str(folder)}, "data.preprocess": preprocess}
    job = start_run("digits", str(tmp_path / "run"), overrides={**QUICK, **changes})
    job.all()
    assert main(["sample", str(tmp_path / "run"), "--seed", "3", "--out", str(tmp_path / "new")]) == 0
    assert Image.open(tmp_path / "new" / "image-seed3.png").mode == "RGBA"
    assert Image.open(tmp_path / "new" / "grid.png").mode == "RGB"
    assert main(["decode", str(tmp_path / "run" / "codes"), "--out", str(tmp_path / "all")]) == 0
    assert {Image.open(path).mode for path in (tmp_path / "all").rglob("*.png")} == {"RGBA"}
    assert "psnr_alpha" in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
