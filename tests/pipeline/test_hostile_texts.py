"""Sixty texts that parsers take for something else arrive unchanged, wherever a person can write them."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.hostile_texts import HOSTILE

from foundation.errors import DataError
from foundation.images.class_names import listed_classes
from foundation.images.source_config import DatasetData, FolderData
from foundation.images.sources import open_sources
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.commands.fields import read_fields
from pipeline.commands.runs import run
from pipeline.runs import models
from pipeline.runs.recipe import load_recipe, recipe_text
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel

NAMES = [text for text in HOSTILE if text.strip() == text]
"""as classes: white space around a class is refused"""
FILES = [text for text in NAMES if "/" not in text and not text.startswith(".")]
INDICATORS = "'\"[{#&*!|>%@`?-"
"""what begins a plain scalar of YAML with a meaning of its own"""


def test_there_are_sixty_of_all_kinds() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 60 and len(NAMES) >= 58
    assert any(text != unicodedata.normalize("NFC", text) for text in HOSTILE)


@pytest.mark.parametrize("text", HOSTILE)
def test_as_a_value_a_path_and_a_run_s_name(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line (three forms), in YAML (plain where it can be, else quoted), in Python, and saved again."""
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "base.yaml"
    base.write_text("name: base\ndata: {source: {type: folder, path: .}}\n")
    names = {"description": text, "data.source.path": text, "data.source.labels": f"{text}.csv"}
    names |= {} if set(text) & set('/\\:*?"<>|\t') or text.startswith(".") else {"name": text}
    source = json.dumps({"type": "folder", "path": text, "labels": f"{text}.csv"})
    spaced = [part for name, value in names.items() if "." not in name for part in (f"--{name}", value)]
    lines = [[f"--{name}={value}" for name, value in names.items()], [*spaced, f"--data.source={source}"]]
    recipe = load_recipe(str(base), names)
    assert (recipe.description, recipe.name) == (text, names.get("name", "base"))
    assert (recipe.data.source.path, recipe.data.source.labels) == (text, f"{text}.csv")
    for line in lines:
        assert load_recipe(str(base), read_fields(line, run)) == recipe
    is_plain = text[0] not in INDICATORS and not any(mark in text for mark in (": ", " #", "\t"))
    plain = [text] if is_plain else []
    for shown in (*plain, json.dumps(text, ensure_ascii=False), json.dumps(text), "'" + text.replace("'", "''") + "'"):
        written = f"description: {shown}\n" + (f"name: {shown}\n" if "name" in names else "")
        (tmp_path / "x.yaml").write_text(f"extends: base\n{written}", encoding="utf-8")
        found = load_recipe(str(tmp_path / "x.yaml"))
        assert (found.description, found.name) == (recipe.description, recipe.name)
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe, tmp_path), encoding="utf-8")
    again = load_recipe(str(tmp_path / "recipe.yaml"))
    assert (again.description, again.name) == (text, recipe.name)
    assert (again.data.source.path, again.data.source.labels) == (str(tmp_path / text), str(tmp_path / f"{text}.csv"))


def test_as_a_path_in_a_file_beside_what_it_names(tmp_path: Path) -> None:
    for text in FILES:
        (tmp_path / text).mkdir()
        line = json.dumps({"type": "folder", "path": text}, ensure_ascii=False)
        (tmp_path / "x.yaml").write_text(f"name: x\ndata:\n  source: {line}\n", encoding="utf-8")
        assert load_recipe(str(tmp_path / "x.yaml")).data.source.path == str(tmp_path / text)


def pictures(folder: Path, names: list[str]) -> list[str]:
    image = Image.fromarray(np.zeros((8, 8), np.uint8))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    return names


def test_as_a_class_by_folders_a_list_and_parquet(tmp_path: Path) -> None:
    pictures(tmp_path / "folders", [f"{name}/a.png" for name in FILES])
    train, _ = open_sources(FolderData(path=str(tmp_path / "folders"), trust_classes=True))
    assert sorted(train.class_names) == sorted(FILES) and train.labels is not None
    assert [train.class_names[label] for label in train.labels] == [image.split("/")[0] for image in train.ids]

    files = pictures(tmp_path / "flat", [f"{i:02d}.png" for i in range(len(NAMES))])
    for delimiter, columns in ((",", ("path", "label")), (";", ("file_name", "class")), ("\t", ("label", "image"))):
        with open(tmp_path / "l.csv", "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(columns)
            swapped = columns[0] == "label"
            writer.writerows((name, path) if swapped else (path, name) for path, name in zip(files, NAMES, strict=True))
        assert listed_classes(tmp_path / "l.csv", files, "labels") == NAMES

    images = [(tmp_path / "flat" / name).read_bytes() for name in files]
    pq.write_table(pa.table({"image": images, "kind": NAMES}), tmp_path / "p.parquet")
    rows, _ = open_sources(DatasetData(path=str(tmp_path / "p.parquet"), label_column="kind", trust_classes=True))
    assert rows.labels is not None and [rows.class_names[label] for label in rows.labels] == NAMES


@pytest.fixture
def hostile(untrained: ImageGenerator) -> ImageGenerator:
    """A generator whose classes have these names."""
    prior = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), untrained.spec.with_classes(tuple(NAMES)))
    generator = ImageGenerator(untrained.tokenizer, prior, label_dropout=0.1)
    generator.set_progress_bar_config(disable=True)
    return generator


def test_as_a_class_to_sample_in_python_and_on_the_command_line(
    hostile: ImageGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = NAMES[::-1]
    numbers = [NAMES.index(name) for name in asked]
    assert hostile.label_ids(asked) == hostile.label_ids(np.array(asked)) == numbers
    assert [hostile.label_ids(name) for name in asked] == [[number] for number in numbers]
    monkeypatch.setattr(models, "open_generator", lambda *_: hostile)
    line = ["sample", "run", "--count", str(len(asked)), "--format", "parquet", "--out", str(tmp_path / "out")]
    assert main([*line, "--class-labels", *asked]) == 0
    table = pq.read_table(tmp_path / "out" / "data")
    assert table["label"].to_pylist() == numbers


def test_as_one_class_of_edit_interpolate_and_score(
    hostile: ImageGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command passes the text on as it is typed."""
    seen: list[str] = []
    real = ImageGenerator.label_ids
    monkeypatch.setattr(ImageGenerator, "label_ids", lambda pipe, labels: seen.append(labels) or real(pipe, labels))
    monkeypatch.setattr(models, "open_generator", lambda *_: hostile)
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path, ["a.png"])
    for text in ("007", "null", "yes", "#3", "a,b", "[1, 2]", "'null'", "a  b"):
        option = ["--class-label", text]
        assert main(["interpolate", "run", "1", "2", "--steps", "2", *option, "--out", f"s{len(seen)}.png"]) == 0
        assert main(["score", "run", "a.png", *option]) == 0
        assert main(["edit", "vary", "run", "a.png", *option, "--num-images", "1", "--out", f"v{len(seen)}"]) == 0
        assert (
            main(["edit", "change-class", "run", "a.png", *option, "--num-images", "1", "--out", f"c{len(seen)}"]) == 0
        )
    assert {str(each) for each in seen} == {"007", "null", "yes", "#3", "a,b", "[1, 2]", "'null'", "a  b"}


def test_a_class_that_is_no_name_is_a_number_with_a_mark(untrained: ImageGenerator) -> None:
    spec = untrained.spec.with_classes(("cat", "#2", unicodedata.normalize("NFC", "café"), "010"))
    names = {name: i for i, name in enumerate(spec.class_names)}
    pipe = ImageGenerator(untrained.tokenizer, PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), spec))
    assert pipe.labels == names
    assert pipe.label_ids(["#0", "#2", "#3", 3, np.int64(2)]) == [0, 1, 3, 3, 2]
    assert pipe.label_ids(unicodedata.normalize("NFD", "café")) == [2]
    for label, answer in (
        ("0", "did you mean '#0'"),
        ("10", "did you mean '010'"),
        ("#4", "'#0' to '#3'"),
        (" cat", "without the white space"),
        ("cta", "'cat'"),
        ("-1", "no such class"),
    ):
        with pytest.raises(DataError, match=f"^class_labels: (.|\n)*{answer}"):
            pipe.label_ids(label)
