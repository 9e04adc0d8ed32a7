"""A generator of several shapes: calls, streams, edits and likelihood, each in the shape that it should have."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import several_shapes
from support.several_shapes import SHAPES

from foundation.errors import ConfigError, DataError
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.generation.bulk import Batch, generate_to_folder, grid_of_group


@pytest.fixture(scope="module")
def shaped() -> ImageGenerator:
    return several_shapes.generator()


@pytest.fixture(scope="module")
def run(shaped: ImageGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    shaped.save_pretrained(folder)
    return folder


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [(None, (8, 12)), ("3:2", (8, 12)), ("portrait", (12, 8)), ((4, 24), (4, 24)), (1, (12, 8)), ("6:1", (4, 24))],
)
def test_a_call_samples_the_shape_that_it_names(shaped: ImageGenerator, aspect, shape) -> None:
    output = shaped("a", 2, aspect=aspect, seed=1, output_type="pt")
    assert output.images.shape == (2, 1, *shape)
    assert output.codes.shape == (2, shape[0] // 2, shape[1] // 2)
    grid = SHAPES.index(shape)
    nats = shaped.prior.nll(output.codes.flatten(1), torch.zeros(2, dtype=torch.int64), grid)
    assert torch.allclose(shaped.score(output.codes, "a", unit="nats"), -nats.double().sum(1)), "its grid is scored"
    alone = shaped("a", aspect=aspect, seed=output.seeds[1], output_type="latent")
    assert torch.equal(alone.codes[0], output.codes[1]), "an image does not depend on the others"


def test_shapes_have_other_codes_for_one_seed(shaped: ImageGenerator) -> None:
    codes = [shaped("a", aspect=grid, seed=1).codes.flatten() for grid in range(3)]
    assert not torch.equal(codes[0], codes[1]) and not torch.equal(codes[1], codes[2])


def test_height_and_width_of_a_shape_name_it(shaped: ImageGenerator) -> None:
    named = shaped("a", height=12, width=8, seed=1).codes
    assert torch.equal(named, shaped("a", aspect="portrait", seed=1).codes)
    larger = shaped("a", aspect="portrait", height=14, width=10, seed=1, output_type="pt")
    assert larger.images.shape == (1, 1, 14, 10), "the window is the shape's"
    with pytest.raises(ConfigError, match=r"height(.|\n)*12 to"):
        shaped("a", aspect="portrait", height=8)


def test_an_unknown_aspect_lists_the_shapes(shaped: ImageGenerator, untrained: ImageGenerator) -> None:
    with pytest.raises(ConfigError, match=r"8 x 12 \(3:2, landscape\), 12 x 8 \(2:3, portrait\), 4 x 24 \(6:1\)"):
        shaped("a", aspect="16:9")
    with pytest.raises(ConfigError, match=r"aspect(.|\n)*8 x 12 \(3:2, landscape\)$"):
        untrained("a", aspect="portrait")
    assert torch.equal(untrained("a", aspect="landscape", seed=1).codes, untrained("a", seed=1).codes)


def test_a_best_candidate_is_the_likeliest_in_its_grid(shaped: ImageGenerator) -> None:
    best = shaped("a", aspect=1, seed=1, best_of=4)
    assert torch.equal(best.codes, shaped("a", aspect=1, seed=best.seeds[0]).codes)
    assert shaped.score(best.codes, "a") >= shaped.score(shaped("a", aspect=1, seed=1).codes, "a")


def test_a_stream_shows_the_rows_of_its_shape(shaped: ImageGenerator) -> None:
    parts = list(shaped.stream("a", aspect="portrait", seed=1))
    assert [part.n_done for part in parts] == [1, 2, 3, 4, 5, 6]
    assert parts[2].to_pil()[0].size == (8, 12)
    assert torch.equal(parts[-1].codes, shaped("a", aspect="portrait", seed=1).codes)
    seen = []
    shaped("a", aspect=2, seed=1, callback_on_row=lambda pipe, part: seen.append(part.codes.shape))
    assert seen == [(1, 2, 12)] * 2


def test_edits_keep_the_shape_of_the_picture(shaped: ImageGenerator) -> None:
    portrait, landscape = picture(100, 150), picture(150, 100)
    for given, size in ((portrait, (8, 12)), (landscape, (12, 8))):
        options = {"seed": 1, "num_images": 2}
        results = [
            shaped.complete(given, rows=0.5, **options),
            shaped.inpaint(given, given.point(lambda value: 255), **options),
            shaped.vary(given, 0.5, **options),
            shaped.change_class(given, "b", **options),
        ]
        assert all(each.images[0].size == size and len(each.images) == 2 for each in results)
    kept = shaped.complete(portrait, rows=2, seed=1).codes[0, :2]
    hidden = shaped.inpaint(portrait, np.arange(12)[:, None].repeat(8, 1) >= 4, seed=1).codes[0, :2]
    assert torch.equal(kept, hidden), "a mask of the shape's size"
    codes = shaped("a", aspect="portrait", seed=1).codes
    assert shaped.complete(codes[:, :2], "a", seed=1).codes.shape == (1, 6, 4), "columns say the grid of first rows"


def test_pictures_of_several_shapes_are_no_one_batch(shaped: ImageGenerator) -> None:
    with pytest.raises(DataError, match=r"several shapes(.|\n)*call once for each shape"):
        shaped.vary([picture(100, 150), picture(150, 100)], 0.5)


def test_likelihood_takes_pictures_of_any_shape(shaped: ImageGenerator) -> None:
    pictures = [picture(100, 150), picture(150, 100), picture(240, 40), picture(90, 150)]
    together = shaped.score(pictures, ["a", "b", "c", "a"])
    alone = [shaped.score(each, label)[0] for each, label in zip(pictures, "abca", strict=True)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)


def test_images_between_two_have_the_shape_of_the_first(shaped: ImageGenerator) -> None:
    between = shaped.interpolate(picture(100, 150), picture(150, 100), steps=3)
    assert [each.size for each in between.images] == [(8, 12)] * 3
    assert shaped.interpolate(1, 2, "a", steps=3, aspect="portrait").codes.shape == (3, 6, 4)
    with pytest.raises(ConfigError, match=r"aspect(.|\n)*no effect between two images"):
        shaped.interpolate(picture(100, 150), picture(150, 100), aspect=1)


def test_a_saved_generator_keeps_shapes_and_their_counts(shaped: ImageGenerator, run: Path) -> None:
    loaded = ImageGenerator.from_pretrained(run)
    assert loaded.shapes == SHAPES and loaded.grid_counts == (2, 1, 1)
    assert torch.equal(loaded("a", aspect=1, seed=1).codes, shaped("a", aspect=1, seed=1).codes)
    with pytest.raises(ConfigError, match="grid_counts"):
        ImageGenerator(shaped.tokenizer, shaped.prior, grid_counts=(1, 2))


def test_groups_have_the_proportions_of_the_training_images() -> None:
    groups = [grid_of_group(i, (50, 30, 20)) for i in range(100)]
    assert np.bincount(groups).tolist() == [50, 30, 20]
    assert abs(np.bincount(groups[:10]) - [5, 3, 2]).max() <= 1
    assert grid_of_group(7, ()) == 0


@pytest.mark.parametrize("form", ["png", "parquet"])
def test_many_images_mix_shapes_or_have_one(shaped: ImageGenerator, tmp_path: Path, form: str) -> None:
    settings = {"count": 16, "labels": (0, 1), "seed": 3, "batch_size": 2, "images_per_file": 4, "format": form}
    generate_to_folder(shaped, tmp_path / "mixed", Batch(**settings))
    generate_to_folder(shaped, tmp_path / "one", Batch(**settings, grid=1))
    for name, expected in (("mixed", {(12, 8): 8, (8, 12): 4, (24, 4): 4}), ("one", {(8, 12): 16})):
        sizes = [each.size for each in opened(tmp_path / name, form)]
        assert {size: sizes.count(size) for size in sizes} == expected
    with pytest.raises(ConfigError, match="other settings"):
        generate_to_folder(shaped, tmp_path / "one", Batch(**settings))
    with pytest.raises(ConfigError, match="grid"):
        generate_to_folder(shaped, tmp_path / "none", Batch(**settings, grid=3))


def opened(folder: Path, form: str) -> list[Image.Image]:
    if form == "png":
        return [Image.open(path) for path in sorted((folder / "images").glob("*.png"))]
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(folder / "data" / "*.parquet"), cache_dir=str(folder), split="train")
    assert all(row["image"].size == SHAPES[row["grid"]][::-1] for row in rows)
    return list(rows["image"])


def test_sample_on_the_command_line_takes_an_aspect(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = ["sample", str(run), "--class-labels", "a", "--seed", "1", "-o"]
    assert main([*line, str(tmp_path / "tall"), "--aspect", "2:3"]) == 0
    assert Image.open(tmp_path / "tall" / "a-seed1.png").size == (8, 12)
    assert main([*line, str(tmp_path / "first")]) == 0
    assert Image.open(tmp_path / "first" / "a-seed1.png").size == (12, 8)
    assert "--aspect chooses" in capsys.readouterr().out
    assert main([*line, str(tmp_path / "none"), "--aspect", "16:9"]) != 0
    assert "12 x 8 (2:3, portrait)" in capsys.readouterr().err
    many = ["sample", str(run), "--count", "8", "--batch-size", "2", "-o"]
    assert main([*many, str(tmp_path / "mixed")]) == 0
    assert len({Image.open(path).size for path in (tmp_path / "mixed" / "images").iterdir()}) == 3
    assert main([*many, str(tmp_path / "wide"), "--aspect", "4x24"]) == 0
    assert {Image.open(path).size for path in (tmp_path / "wide" / "images").iterdir()} == {(24, 4)}


def test_edits_on_the_command_line_take_pictures_of_any_shape(run: Path, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    for i, size in enumerate([(100, 150), (150, 100), (90, 140)]):
        picture(*size).save(tmp_path / "given" / f"{i}.png")
    given, out = str(tmp_path / "given"), tmp_path / "out"
    assert main(["edit", "complete", str(run), given, "--rows", "0.5", "--seed", "1", "-o", str(out)]) == 0
    assert [Image.open(out / f"000{i}-{i}-0.png").size for i in range(3)] == [(8, 12), (12, 8), (8, 12)]
    assert main(["score", str(run), given]) == 0
    assert main(["reconstruct", str(run), given, "-o", str(tmp_path / "both")]) == 0
