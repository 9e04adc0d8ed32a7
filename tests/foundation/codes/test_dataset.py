"""Each view of each image is found, or the dataset is refused."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from foundation.codes.dataset import ImageViews, TokenDataset
from foundation.codes.manifest import MANIFEST, write_manifest
from foundation.codes.shards import Shard, read_shard, shard_path, write_shard
from foundation.codes.spec import CodeLevel, CodeSpec, code_positions, require_same_codes
from foundation.errors import CheckpointError, ContractError, DataError
from foundation.images.config import Preprocess
from foundation.images.failures import Failure


def spec(codebook_size: int = 1000, **changes: object) -> CodeSpec:
    level = CodeLevel(height=2, width=3, codebook_size=codebook_size)
    settings: dict = {
        "levels": (level,),
        "stride": 4,
        "preprocess": Preprocess(height=8, width=12),
        "fingerprint": "f" * 64,
        "class_names": ("cat", "dog"),
        **changes,
    }
    return CodeSpec(**settings)


def shard(n: int = 5, codebook_size: int = 1000, labelled: bool = True) -> Shard:
    codes = np.random.default_rng(n).integers(0, codebook_size, (n, 6))
    codes[0, :2] = (0, codebook_size - 1)
    labels = np.arange(n) % 2 if labelled else None
    return Shard(codes, [f"image {i}" for i in range(n)], np.zeros(n, np.uint8), labels, [Failure("bad", "empty")])


@pytest.mark.parametrize("size", [2, 1000, 65_535, 65_536, 65_537])
def test_codes_come_back_as_they_were(tmp_path: Path, size: int) -> None:
    path = shard_path(tmp_path, "train", 0)
    write_shard(path, shard(codebook_size=size), spec(size))
    back = read_shard(path, spec(size))
    assert np.array_equal(back.codes_BT, shard(codebook_size=size).codes_BT)
    kept = pq.read_schema(path).field("codes").type.value_type
    assert str(kept) == ("uint16" if size <= 65_536 else "int32")


@pytest.mark.parametrize("code", [-1, 1000, 70_000])
def test_a_code_outside_the_codebook_is_refused(tmp_path: Path, code: int) -> None:
    wrong = shard()
    wrong.codes_BT[2, 3] = code
    with pytest.raises(DataError, match="outside the codebook"):
        write_shard(tmp_path / "a.parquet", wrong, spec())
    assert not (tmp_path / "a.parquet").exists()


LEVELS = [
    (CodeLevel(height=2, width=3, codebook_size=70_000, depth=4),),
    (CodeLevel(height=1, width=2, codebook_size=5), CodeLevel(height=2, width=4, codebook_size=300, depth=2)),
]
"""A residual level whose codes need int32; two levels of unequal codebooks."""


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_of_several_depths_and_levels_come_back_as_they_were(
    tmp_path: Path, levels: tuple[CodeLevel, ...]
) -> None:
    several = spec(levels=levels)
    sizes_T = code_positions(several).codebook_size_T
    codes = np.random.default_rng(0).integers(0, sizes_T, (9, several.n_codes))
    codes[0] = sizes_T - 1
    write_shard(shard_path(tmp_path, "train", 0), Shard(codes, ["x"] * 9, np.zeros(9, np.uint8), None), several)
    write_manifest(tmp_path, several)
    back = TokenDataset(tmp_path, "train")
    assert back.spec == several and np.array_equal(back.codes_NT, codes)
    assert back.codes_NT.dtype == (np.int32 if levels == LEVELS[0] else np.uint16)
    assert back.grids.shape == (9, *several.shape)
    assert np.array_equal(several.join(several.split(back.codes_NT)), codes)
    table = pq.read_table(shard_path(tmp_path, "train", 0))
    assert table["codes"].type.list_size == several.n_codes and np.array_equal(table["codes"].to_pylist(), codes)


def test_a_code_of_one_level_outside_that_level_s_codebook_is_refused(tmp_path: Path) -> None:
    several = spec(levels=LEVELS[1])
    codes = np.zeros((2, several.n_codes), int)
    codes[1, 1], codes[1, 2] = 5, 299
    shard = Shard(codes, ["a", "b"], np.zeros(2, np.uint8), None)
    with pytest.raises(DataError, match=r"position 1 \(level 0, depth 0\)(.|\n)*0\.\.5(.|\n)*0\.\.4"):
        write_shard(tmp_path / "a.parquet", shard, several)
    with pytest.raises(DataError, match="not whole"):
        write_shard(tmp_path / "a.parquet", dataclasses.replace(shard, codes_BT=codes * 0.5), several)
    with pytest.raises(DataError, match="differ in length"):
        write_shard(tmp_path / "a.parquet", dataclasses.replace(shard, codes_BT=codes[:1] * 0), several)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for i in range(3):
        write_shard(shard_path(tmp_path, "train", i), shard(n=40 + i), spec())
    write_shard(shard_path(tmp_path, "validation", 0), shard(n=7), spec())
    write_manifest(tmp_path, spec())
    return tmp_path


def test_the_manifest_accounts_for_every_image(dataset: Path) -> None:
    manifest = json.loads((dataset / MANIFEST).read_text())
    assert manifest["splits"]["train"]["rows"] == 123
    assert manifest["splits"]["train"]["failures"] == [{"image_id": "bad", "reason": "empty", "code": "unreadable"}] * 3
    before = (dataset / MANIFEST).read_bytes()
    (dataset / MANIFEST).unlink()
    write_manifest(dataset, spec())
    assert (dataset / MANIFEST).read_bytes() == before, "it is derived from the shards alone"


def test_common_tools_open_it_with_labels_and_grid(dataset: Path) -> None:
    import pandas as pd
    from datasets import load_dataset

    ours = TokenDataset(dataset, "train")
    assert ours.grids.shape == (123, 2, 3) and ours.codes_NT.dtype == np.uint16
    rows = load_dataset(str(dataset), split="train", cache_dir=str(dataset / "cache"))
    assert rows.features["label"].names == ["cat", "dog"]
    assert rows.features["codes"].length == 6
    assert np.array_equal(np.array(rows["codes"]), ours.codes_NT)
    assert rows["label"] == ours.labels_N.tolist() and rows["image_id"] == ours.image_ids
    frame = pd.concat(pd.read_parquet(path) for path in sorted((dataset / "data" / "train").glob("*.parquet")))
    assert np.array_equal(np.stack(frame["codes"].to_list()), ours.codes_NT)
    table = pq.read_table(dataset / "data" / "train")
    assert table["label"].to_pylist() == ours.labels_N.tolist()


def test_flipped_bits_and_truncations_are_all_detected(dataset: Path) -> None:
    path = shard_path(dataset, "train", 0)
    whole = path.read_bytes()
    rng = random.Random(0)
    for trial in range(340):
        damaged = bytearray(whole)
        if trial < 100:
            damaged = damaged[: rng.randrange(len(whole))]
        else:
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises((DataError, ContractError)):
            TokenDataset(dataset, "train")
    path.write_bytes(whole)
    assert len(TokenDataset(dataset, "train")) == 123


def test_a_dataset_without_manifest_is_not_complete(dataset: Path) -> None:
    (dataset / MANIFEST).unlink()
    with pytest.raises(DataError, match="not complete"):
        TokenDataset(dataset)
    with pytest.raises(DataError, match="no such token dataset"):
        TokenDataset(dataset / "nowhere")
    for content in (b"[]", b"{}", b"\xff", b"{"):
        (dataset / MANIFEST).write_bytes(content)
        with pytest.raises(CheckpointError, match="run tessera encode"):
            TokenDataset(dataset)


def test_a_split_that_does_not_exist_names_those_that_do(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"tset(.|\n)*train, validation"):
        TokenDataset(dataset, "tset")


MUTATIONS = [
    ({"stride": 8}, "stride"),
    ({"fingerprint": "e" * 64}, "fingerprint"),
    ({"class_names": ("cat", "cow")}, "class_names"),
    ({"levels": (CodeLevel(height=3, width=2, codebook_size=1000),)}, "levels"),
    ({"levels": (CodeLevel(height=2, width=3, codebook_size=999),)}, "codebook_size"),
    ({"levels": (CodeLevel(height=2, width=3, codebook_size=1000, depth=2),)}, r"levels\[0\].depth"),
    ({"levels": (CodeLevel(height=2, width=3, codebook_size=1000),) * 2}, "levels"),
    ({"preprocess": Preprocess(height=8, width=12, resize="bilinear")}, "preprocess.resize"),
    ({"preprocess": Preprocess(height=8, width=12, background=(0, 0, 0))}, "preprocess.background"),
    ({"preprocess": Preprocess(height=8, width=12, mode="L")}, "preprocess.mode"),
]


@pytest.mark.parametrize(("changes", "field"), MUTATIONS)
def test_another_contract_is_refused_naming_the_field(tmp_path: Path, changes: dict, field: str) -> None:
    with pytest.raises(ContractError, match=field):
        require_same_codes(spec(), spec(**changes), owner="the prior", other="the tokenizer")
    write_shard(tmp_path / "a.parquet", shard(), spec())
    with pytest.raises(ContractError, match=field):
        read_shard(tmp_path / "a.parquet", spec(**changes))


def test_class_names_are_compared_only_where_both_have_some() -> None:
    require_same_codes(spec(), spec(class_names=()), owner="a", other="b")


def test_an_unlabelled_dataset_has_no_label_column(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", shard(labelled=False), spec(class_names=()))
    assert pq.read_schema(tmp_path / "a.parquet").names == ["codes", "image_id", "view"]
    assert read_shard(tmp_path / "a.parquet", spec(class_names=())).labels is None


BY_VIEW, BY_IMAGE = np.repeat, np.tile


@pytest.mark.parametrize("numbers", [[0], [0, 1], [0, 2, 3, 4, 5]])
@pytest.mark.parametrize("layouts", [(BY_VIEW,) * 3, (BY_IMAGE,) * 3, (BY_VIEW, BY_IMAGE, BY_VIEW)])
def test_every_row_is_one_image_in_one_view(numbers: list[int], layouts: tuple) -> None:
    sizes = (4, 1, 6)
    views_N = np.concatenate([layout(numbers, n) for layout, n in zip(layouts, sizes, strict=True)]).astype(np.uint8)
    images_N = np.concatenate(
        [
            first + (np.tile(range(n), len(numbers)) if layout is BY_VIEW else np.repeat(range(n), len(numbers)))
            for layout, n, first in zip(layouts, sizes, (0, 4, 5), strict=True)
        ]
    )
    table = ImageViews(views_N, [n * len(numbers) for n in sizes])
    assert len(table) == 11 and table.n_views == len(numbers)
    images, views = (each.reshape(-1) for each in np.mgrid[:11, : len(numbers)])
    rows = table.rows(images, views)
    assert sorted(rows) == list(range(len(views_N)))
    assert np.array_equal(images_N[rows], images) and np.array_equal(views_N[rows], np.array(numbers)[views])


WRONG = [
    [0, 0, 0, 1, 1],
    [0, 1, 1, 0],
    [0, 0, 1, 1, 0, 1],
    [1, 1, 0, 0],
]


@pytest.mark.parametrize("second", [*WRONG, [0, 0, 0, 0], [0, 0, 1, 1, 2, 2]])
def test_rows_that_do_not_tell_the_images_apart_are_refused(second: list[int]) -> None:
    with pytest.raises(DataError, match=r"parquet file 1(.|\n)*views 0, 1 of every image(.|\n)*views: all"):
        ImageViews(np.array([0, 0, 1, 1, *second], np.uint8), [4, len(second)])
