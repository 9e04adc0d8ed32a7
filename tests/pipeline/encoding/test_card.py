"""The card: its picture, its tables, and that what it says to do works."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from support.tiny_export import sources_of

from foundation.codes.dataset import TokenDataset, read_manifest
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.images.preprocess import Preprocess, to_uint8
from pipeline.dataset_card import dataset_card
from stage1_tokenizer.tokenizer import TokenizerModel

Inputs = tuple[Path, Path]


def test_the_picture_shows_images_and_what_their_stored_codes_decode_to(inputs: Inputs, clean: Path) -> None:
    picture = np.asarray(Image.open(clean / "card.png"))
    source, dataset = sources_of(inputs[0])["train"], TokenDataset(clean)
    tokenizer = TokenizerModel.load(clean / "tokenizer")
    import torch

    for column, number in enumerate(np.linspace(0, 19, 8).round().astype(int)):
        left = column * (64 + 2)
        assert np.array_equal(picture[:64:4, left : left + 64 : 4], tokenizer.preprocess(source.read(int(number))))
        row = dataset.image_ids.index(source.ids[number])
        decoded = to_uint8(tokenizer.decode(torch.from_numpy(dataset.grids[[row]].astype(np.int64))))[0]
        below = picture[66 : 66 + 64 : 4, left : left + 64 : 4].astype(int)
        assert np.abs(below - decoded).max() <= 1, "the batch is another"


def test_the_card_counts_images_and_classes(clean: Path) -> None:
    card = (clean / "README.md").read_text()
    for line in ("| train | 20 | 20 | 0 | 40 |", "| validation | 20 | 20 | 0 | 20 |", "| 0 | ant | 20 | 10 |",
                 "0 centre, 1 centre, mirrored", "![Images", "near ties"):  # fmt: skip
        assert line in card, line
    header = yaml.safe_load(card.split("---")[1])
    assert [each["split"] for each in header["configs"][0]["data_files"]] == ["train", "validation"]


def test_names_of_classes_cannot_break_the_table() -> None:
    spec = CodeSpec(levels=(CodeLevel(height=2, width=2, codebook_size=5),), stride=4, preprocess=Preprocess(),
                    fingerprint="f", class_names=("a|b", "c\nd", *map(str, range(200))))  # fmt: skip
    entry = {"rows": 202, "failures": [], "files": [], "labels": [1] * 202, "views": 1, "planned": 202}
    card = dataset_card(spec, {"splits": {"train": entry}})
    assert "| 0 | a\\|b | 1 |\n| 1 | c d | 1 |" in card and "102 more classes" in card


def snippets(clean: Path, words: str) -> list[str]:
    card = (clean / "README.md").read_text().replace("path/of/this/folder", str(clean))
    return [code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if words in code]


def test_every_tool_that_is_installed_opens_it_as_the_card_says(clean: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clean, tmp_path / "dataset"))  # a cache beside it
    ours, done = TokenDataset(clean), []
    for tool in ("datasets", "pyarrow", "polars", "duckdb", "stage1_tokenizer"):
        if importlib.util.find_spec(tool) is None:
            continue
        (code,) = snippets(copy, f"import {tool}" if tool not in ("datasets", "stage1_tokenizer") else f"from {tool}")
        found: dict = {"codes": ours.grids[0].astype(np.int64)}
        exec(code, found)
        done.append(tool)
        if tool == "datasets":
            assert found["rows"].features["label"].names == ["ant", "bee"]
            assert np.array_equal(found["codes"], ours.grids[0])
        elif tool in ("pyarrow", "polars"):
            rows = found["table"].to_pylist() if tool == "pyarrow" else found["frame"].to_dicts()
            assert [row["image_id"] for row in rows] == list(ours.image_ids)
            assert np.array_equal([list(row["codes"]) for row in rows], ours.codes_NT)
        elif tool == "duckdb":
            assert sorted(found["views"]) == [(0, 20), (1, 20)]
        else:
            assert found["images"].shape == (1, 3, 16, 16)
    assert {"datasets", "pyarrow", "stage1_tokenizer"} <= set(done)


def test_the_manifest_says_what_the_card_shows(clean: Path) -> None:
    entry = read_manifest(clean)["splits"]["train"]
    assert (entry["views"], entry["labels"]) == (2, [20, 20])
