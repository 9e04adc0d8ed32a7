"""The card: its picture, its tables, and that what it says to do works.

Uploading, against a local stand-in for the hub.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from support.tiny_export import content, make_images, sources_of, tiny_export

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import MANIFEST, read_manifest, write_manifest
from foundation.codes.shards import read_shard, replace_shard, shard_path
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.errors import DataError, StorageError
from foundation.images.config import Preprocess
from foundation.images.preprocess import to_uint8
from pipeline.encoding.card import dataset_card, push_token_dataset, refresh_header
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
    for line in (
        "| train | 20 | 20 | 0 | 40 |",
        "| validation | 20 | 20 | 0 | 20 |",
        "| 0 | ant | 20 | 10 |",
        "0 centre, 1 centre, mirrored",
        "![Images",
        "near ties",
    ):
        assert line in card, line
    header = yaml.safe_load(card.split("---")[1])
    assert [each["split"] for each in header["configs"][0]["data_files"]] == ["train", "validation"]


def test_names_of_classes_cannot_break_the_table() -> None:
    spec = CodeSpec(
        levels=(CodeLevel(height=2, width=2, codebook_size=5),),
        stride=4,
        preprocess=Preprocess(),
        fingerprint="f",
        class_names=("a|b", "c\nd", *map(str, range(200))),
    )
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


class Hub:
    """Keeps repositories in a folder, by the interface of ``HfApi``."""

    def __init__(self, root: Path) -> None:
        self.root, self.commits, self.made = root, [], []

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> str:
        if repo_id.startswith("other/"):
            raise OSError("403 Forbidden")
        self.made.append((repo_id, repo_type, private, exist_ok))
        return f"hub/{repo_type}s/{repo_id}"

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> None:
        files = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        chosen = list(filter_repo_objects(files, allow_patterns=allow_patterns))
        self.commits.append((commit_message, chosen))
        for name in chosen:
            target = self.root / repo_id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path) / name, target)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: made)
    return made


def test_all_of_a_dataset_arrives_and_the_manifest_last(clean: Path, tmp_path: Path, hub: Hub) -> None:
    local = Path(shutil.copytree(clean, tmp_path / "codes"))
    (local / ".packed" / "train").mkdir(parents=True)
    (local / ".packed" / "train" / "codes").write_bytes(b"0" * 100)
    address = push_token_dataset(local, "someone/codes")
    assert address == "hub/datasets/someone/codes" and hub.made == [("someone/codes", "dataset", True, True)]
    assert content(tmp_path / "hub" / "someone" / "codes") == content(clean), "and no packed copy"
    assert [names for _, names in hub.commits][-1] == [MANIFEST] and MANIFEST not in hub.commits[0][1]
    assert len(TokenDataset(tmp_path / "hub" / "someone" / "codes")) == 40


def test_what_is_unfinished_or_damaged_stays_here(clean: Path, tmp_path: Path, hub: Hub) -> None:
    local = Path(shutil.copytree(clean, tmp_path / "codes"))
    with pytest.raises(StorageError, match=r"other/codes: the hub refused: 403"):
        push_token_dataset(local, "other/codes")
    shard = local / "data" / "train" / "part-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="part-00002"):
        push_token_dataset(local, "someone/codes")
    (local / MANIFEST).unlink()
    with pytest.raises(DataError, match="not complete"):
        push_token_dataset(local, "someone/codes")
    assert not hub.commits


def test_the_stub_has_the_signatures_of_the_hub() -> None:
    import inspect

    for name in ("create_repo", "upload_folder"):
        ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (Hub, huggingface_hub.HfApi))
        assert set(ours) <= set(theirs), name
    _: Any = huggingface_hub.HfApi(token=None)


def test_datasets_never_gives_the_rows_of_another_folder_of_the_same_name(inputs: Inputs, tmp_path: Path) -> None:
    from datasets import load_dataset

    cache = str(tmp_path / "cache")
    for n, run in ((3, "a"), (2, "b")):
        assert tiny_export(make_images(tmp_path / run / "images", n, seed=n), inputs[1], tmp_path / run / "codes")
    for run in ("a", "b", "a"):
        for split in ("train", "validation"):
            rows = load_dataset(str(tmp_path / run / "codes"), split=split, cache_dir=cache)
            assert rows["image_id"] == list(TokenDataset(tmp_path / run / "codes", split).image_ids)
            codes = TokenDataset(tmp_path / run / "codes", split).codes_NT
            assert np.array_equal(rows.with_format("numpy")["codes"], codes)
    replaced = shard_path(tmp_path / "a" / "codes", "train", 0)
    shard = read_shard(replaced, TokenDataset(tmp_path / "a" / "codes").spec)
    spec = TokenDataset(tmp_path / "a" / "codes").spec
    replace_shard(replaced, dataclasses.replace(shard, codes_BT=(shard.codes_BT + 1) % 48), spec)
    write_manifest(tmp_path / "a" / "codes", spec)  # as a retry does
    refresh_header(tmp_path / "a" / "codes")
    rows = load_dataset(str(tmp_path / "a" / "codes"), split="train", cache_dir=cache)
    assert np.array_equal(rows.with_format("numpy")["codes"], TokenDataset(tmp_path / "a" / "codes").codes_NT)
    assert not np.array_equal(rows.with_format("numpy")["codes"][: len(shard.codes_BT)], shard.codes_BT)


def test_datasets_reads_the_files_of_the_card_and_no_others(clean: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    copy = Path(shutil.copytree(clean, tmp_path / "codes"))
    shutil.copy(shard_path(copy, "train", 0), copy / "data" / "train" / "part-00099.parquet")
    assert len(load_dataset(str(copy), split="train", cache_dir=str(tmp_path / "cache"))) == 40
    with pytest.raises(DataError, match=r"part-00099.parquet: is not in the dataset's manifest"):
        TokenDataset(copy)


def test_an_earlier_card_gets_the_header_and_keeps_its_text(clean: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clean, tmp_path / "codes"))
    card, path = (clean / "README.md").read_text(), copy / "README.md"
    body = card.split("---\n", 2)[2]
    for found in (f"---\nconfigs: []\n---\n{body}", body, ""):
        path.write_text(found)
        refresh_header(copy)
        assert path.read_text() == (card if found else card[: -len(body)])
    time = path.stat().st_mtime_ns
    refresh_header(copy)
    assert path.stat().st_mtime_ns == time


COARSE, FINE = CodeLevel(height=2, width=4, codebook_size=512), CodeLevel(height=4, width=8, codebook_size=256)
DEEP = CodeLevel(height=2, width=4, codebook_size=1024, depth=3)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ((FINE,), ["a grid of **4 x 8** codes, each one of **256**, row by row"]),
        ((DEEP,), ["**2 x 4 x 3** codes, each one of **1,024**", "one place of 3 codes"]),
        ((COARSE, FINE), ["2 grids", "1. **2 x 4** codes, each one of **512**", "2. **4 x 8** codes", "finest grid"]),
    ],
)
def test_the_card_describes_levels_and_depth(levels: tuple[CodeLevel, ...], said: list[str]) -> None:
    spec = CodeSpec(levels=levels, stride=4, preprocess=Preprocess(height=16, width=32), fingerprint="f" * 64)
    card = dataset_card(spec, {"splits": {"train": {"rows": 12, "failures": []}}})
    assert all(each in card for each in said), card
    (shown,) = re.findall(r"^codes = (.*)$", card, re.MULTILINE)
    codes = eval(shown, {"np": np, "rows": [{"codes": list(range(spec.n_codes))}]})
    assert codes.shape == spec.shape, "the snippet gives what tokenizer.decode takes"
