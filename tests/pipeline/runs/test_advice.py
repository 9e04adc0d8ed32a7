"""Advice on small or poor data: a sentence with a figure and a way out for each, and no false alarms."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import TINY

from pipeline.commands.fields import read_fields
from pipeline.commands.runs import run
from pipeline.commands.start import start_run
from pipeline.runs.advice import advice, advice_text, codes_per_image, facts_in, weights
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import list_images
from pipeline.runs.recipe import Recipe, load_recipe


def found(n_train: int, n_validation: int, **others: Any) -> dict[str, Any]:
    """The inventory of a scan, of images that are as large as the recipe's."""
    splits = {"train": {"used": n_train, "failed": 1}, "validation": {"used": n_validation, "failed": 0}}
    total = n_train + n_validation
    shapes = {"modes": {"RGB": total}, "sizes": [[64, 64]], "smaller": 0, "asked": [64, 64]}
    usual = {"classes": None, "shapes": shapes, "copies": 0, "mean_psnr": 12.0}
    return {"splits": splits, **usual, **others}


SHAPES_OF_THUMBNAILS = {
    "modes": {"RGB": 4500},
    "sizes": [[8, 9], [40, 50], [90, 90]],
    "smaller": 4000,
    "asked": [64, 64],
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "few held out": (
        found(390, 12),
        {"data.validation_share": 0.03, "prior.training.fit.steps": 100},
        ["12 held-out images", "+-0.7 dB", "--data.validation_share 0.25"],
    ),
    "few held out of a folder": (
        found(4000, 12),
        {"data.source.validation_path": "held"},
        ["12 held-out images", "Add images to those held out"],
    ),
    "a rare class": (
        found(4000, 400, classes={"owl": 3, "fox": 4397}),
        {},
        ["1 class has", "owl 3", "--prior.model.class_conditional false"],
    ),
    "many rare classes": (
        found(4000, 400, classes={f"c{i}": 2 for i in range(9)}),
        {},
        ["9 classes have", "c0 2, c1 2, c2 2, c3 2, ..."],
    ),
    "all alike": (found(4000, 400, mean_psnr=41.0), {}, ["41 dB", "--data.source.path"]),
    "copies": (found(4000, 400, copies=2500), {}, ["2,500 of 4,000", "--data.source.path"]),
    "few images for a long training": (
        found(450, 60),
        {"encode.flip": False},
        [
            "450 examples 356 times",
            "--prior.training.fit.steps 1,410",
            "--prior.model.dropout 0.3",
            "--encode.flip true",
        ],
    ),
    "few images for a codebook": (
        found(200, 60),
        {
            "tokenizer.model.quantizer": {"type": "vq", "codebook_size": 4096, "width": 8},
            "prior.training.fit.steps": 100,
        },
        ["51,200 codes", "12.5 examples", "at most 1,024 codes: --tokenizer.model.quantizer.codebook_size"],
    ),
    "enlarged": (
        found(4000, 500, shapes=SHAPES_OF_THUMBNAILS),
        {},
        ["4,000 of 4,500", "64 x 64", "--data.preprocess.height 40 --data.preprocess.width 40"],
    ),
    "a batch of everything": (
        found(20, 60),
        {"prior.training.fit.steps": 10},
        ["a batch of 32", "--tokenizer.training.fit.batch_size 10"],
    ),
}


def folder(fields: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe folder with 16 x 16 codes, enough of them in a few hundred images."""
    return load_recipe("folder", {"tokenizer.model.networks.patch_size": 4, **(fields or {})})


@pytest.mark.parametrize("name", CASES)
def test_each_weakness_gets_a_sentence_with_its_figure_and_a_way_out(name: str) -> None:
    inventory, fields, fragments = CASES[name]
    sentences = advice(folder(fields), inventory)
    assert any(all(part in each for part in fragments) for each in sentences), sentences
    if name not in ("a batch of everything",):
        assert len(sentences) == 1, "nothing else is wrong"


@pytest.mark.parametrize("name", CASES)
def test_the_fields_that_advice_names_exist(name: str) -> None:
    inventory, fields, _ = CASES[name]
    recipe = folder(fields)
    for sentence in advice(recipe, inventory):
        for field, value in re.findall(r"--([a-z0-9_.]+) ?([0-9.,]+\d|\d|true|false)?", sentence):
            parts: Any = recipe
            for part in field.split("."):
                parts = getattr(parts, part)
            if value:
                folder({**fields, **read_fields([f"--{field}", value.replace(",", "")], run)})


def test_what_is_advised_is_not_advised_again() -> None:
    thumbnails = found(4000, 500, shapes=SHAPES_OF_THUMBNAILS)
    smaller = folder({"data.preprocess.height": 40, "data.preprocess.width": 40})
    shapes = {**SHAPES_OF_THUMBNAILS, "smaller": 600}
    assert advice(folder(), thumbnails) and not advice(smaller, {**thumbnails, "shapes": shapes})
    assert not advice(folder({"prior.training.fit.steps": 2800}), found(450, 60))
    unconditional = folder({"prior.model.class_conditional": False})
    assert not advice(unconditional, found(4000, 400, classes={"owl": 3}))


BUILT_IN = {
    "cifar10": (50_000, 10_000, 32),
    "imagenet": (1_281_167, 50_000, 400),
    "pictures": (4500, 500, 300),
}


@pytest.mark.parametrize(
    "name",
    sorted(path.stem for path in (Path(__file__).parents[3] / "pipeline" / "recipes").glob("*.yaml")),
)
def test_the_built_in_recipes_give_none_on_the_data_that_they_are_for(name: str) -> None:
    sizes = BUILT_IN.get(name.split("-")[0])
    if sizes is None:
        return
    n_train, n_validation, side = sizes
    shapes = {"modes": {"RGB": n_train}, "sizes": [[side, side]], "smaller": 0, "asked": [side, side]}
    recipe = load_recipe(name)
    assert advice(recipe, found(n_train, n_validation, shapes=shapes, mean_psnr=12.0)) == []


def test_the_digits_give_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    recipe = load_recipe("digits")
    _, listing = list_images(RunFolder(tmp_path / "run"), recipe)
    inventory = listing.inventory
    assert sum(inventory["classes"].values()) == 1797 and "copies" in inventory
    assert advice(recipe, inventory) == [] and 8 < inventory["mean_psnr"] < 16


def test_before_a_scan_the_listing_alone_is_judged() -> None:
    planned = {"splits": {"planned": {"used": 120, "failed": 0}}, "classes": {"owl": 3, "fox": 117}, "shapes": None}
    facts = facts_in(planned, 0.1)
    assert facts is not None and (facts.n_train, facts.n_validation, facts.mean_psnr) == (108, 12, None)
    assert any("owl 3" in each for each in advice(folder(), planned))
    assert advice(folder(), {}) == [] and advice_text([]) == ""


def test_codes_and_weights_are_those_of_the_models() -> None:
    from stage1_tokenizer.tokenizer import TokenizerModel
    from stage2_prior.prior import PriorModel

    for fields in ({}, {"tokenizer.model.coarse_halvings": 1}):
        recipe = load_recipe("cifar10", fields)
        spec = TokenizerModel(recipe.tokenizer.model, recipe.data.preprocess).spec
        prior = PriorModel(recipe.prior.model, spec.with_classes(("a", "b")))
        assert codes_per_image(recipe) == spec.n_codes
        assert weights(recipe) == pytest.approx(sum(each.numel() for each in prior.parameters()), rel=0.1)


def write_pictures(folder: Path, pixels_NYXC: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for i, pixels in enumerate(pixels_NYXC):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def test_copies_and_likeness_are_measured_from_the_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (1, 8, 8, 3), np.uint8)
    near = np.clip(one.astype(int) + rng.integers(-2, 3, (20, 8, 8, 3)), 0, 255).astype(np.uint8)
    far = rng.integers(0, 256, (20, 8, 8, 3), np.uint8)
    for name, pixels, low, high, copies in (
        ("near", near, 40, 60, 0),
        ("far", far, 7, 14, 0),
        ("same", np.repeat(one, 20, 0), 99, 99, 19),
    ):
        source = {"type": "folder", "path": str(write_pictures(tmp_path / name, pixels))}
        held = str(write_pictures(tmp_path / f"{name}-held", 255 - far[:2]))
        data = {"data.source": {**source, "validation_path": held}, "data.preprocess.mode": "RGB"}
        (tmp_path / f"{name}-run").mkdir()
        _, listing = list_images(RunFolder(tmp_path / f"{name}-run"), load_recipe("digits", data))
        assert low <= listing.inventory["mean_psnr"] <= high
        assert listing.inventory["copies"] == copies


def test_a_run_prints_it_below_the_table_and_its_report_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    for name, n in (("owl", 3), ("fox", 40)):
        write_pictures(tmp_path / "images" / name, rng.integers(0, 256, (n, 8, 8), np.uint8))
    source = {"type": "folder", "path": str(tmp_path / "images")}
    job = start_run("digits", str(tmp_path / "run"), {**TINY, "data.source": source})
    job.all()
    job.run.release()
    out = capsys.readouterr().out
    table, _, rest = out.partition("\nadvice: ")
    assert "images:" in table and "owl 3" in rest and out.count("owl 3") == 2, "in the table and in the advice"
    assert "owl 3" in (tmp_path / "run" / "report.html").read_text().partition("advice")[2]
