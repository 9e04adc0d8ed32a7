"""Codes of one's own become a run's token dataset: what they are taken to mean, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset
from support.tiny_export import make_tokenizer
from support.token_folders import write_tokens

from foundation.codes.config import OwnCodes
from foundation.codes.dataset import ImageViews, TokenDataset
from foundation.codes.spec import CodeSpec
from foundation.errors import ConfigError, ContractError, DataError
from pipeline.encoding.own_codes import CodesImport, inner_tokenizer
from stage1_tokenizer.tokenizer import TokenizerModel

RNG = np.random.default_rng(0)


def counted(*shape: int) -> np.ndarray:
    """Codes that count up, so that every row differs."""
    return np.arange(np.prod(shape)).reshape(shape)


def imported(
    folder: Path, codes: np.ndarray | Path, tokenizer: Path | None = None, rows: int = 8192, **own: Any
) -> tuple[CodeSpec, list[str]]:
    """Import codes into ``folder/codes``: their specification, and what was said."""
    source = codes
    if isinstance(codes, np.ndarray):
        source = folder / "source.npy"
        np.save(source, codes)
    job = CodesImport(OwnCodes(source=str(source), **own), tokenizer, 0.2, rows)
    notes = job.write(folder / "codes")
    return TokenDataset(folder / "codes").spec, notes


@pytest.mark.parametrize(
    ("shape", "own", "level", "said"),
    [
        ((20, 16), {}, (4, 4, 1, 9), ["grid of 4 x 4", "9 codes, the largest code plus one"]),
        ((20, 12), {"grid": "2x6"}, (2, 6, 1, 9), ["9 codes"]),
        ((20, 12), {"grid": "2x3x2", "codebook_size": 12}, (2, 3, 2, 12), []),
        ((20, 2, 3), {}, (2, 3, 1, 9), ["9 codes"]),
        ((20, 2, 3, 4), {"codebook_size": 9}, (2, 3, 4, 9), []),
    ],
)
def test_without_a_tokenizer_shape_and_options_say_what_they_are(
    shape: tuple[int, ...], own: dict, level: tuple[int, ...], said: list[str], tmp_path: Path
) -> None:
    codes = RNG.integers(0, 9, shape)
    codes.flat[0] = 8
    spec, notes = imported(tmp_path, codes, **own)
    (found,) = spec.levels
    assert (found.height, found.width, found.depth, found.codebook_size) == level and not spec.knows_images
    assert len(notes) == len(said) and all(text in note for text, note in zip(said, notes, strict=True))
    card = (tmp_path / "codes" / "README.md").read_text()
    assert "tokenizer that made the codes is not known" in card and "tessera decode" not in card
    rows = load_dataset(str(tmp_path / "codes"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == len(TokenDataset(tmp_path / "codes"))


@pytest.mark.parametrize(
    ("codes", "own", "field"),
    [
        (counted(9, 12), {}, "--grid"),
        (counted(9, 12), {"grid": "5x5"}, "--grid"),
        (counted(9, 2, 3), {"grid": "3x2"}, "--grid"),
        (counted(9, 4), {"codebook_size": 35}, "source.npy: codes"),
    ],
)
def test_what_shape_and_options_contradict_is_refused(codes: np.ndarray, own: dict, field: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=field):
        imported(tmp_path, codes, **own)
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("own", [{"grid": "4"}, {"grid": "0x4"}, {"grid": "4x4x4x4"}, {"codebook_size": 0}])
def test_options_that_cannot_be_are_refused(own: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(own))):
        OwnCodes(source="x", **own)


def test_with_a_tokenizer_it_says_what_they_are(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    spec, notes = imported(tmp_path, RNG.integers(0, 5, (20, 16)), tokenizer)
    assert spec == TokenizerModel.load(tokenizer).spec and not notes
    assert inner_tokenizer(tmp_path / "codes") == tmp_path / "codes" / "tokenizer"
    card = (tmp_path / "codes" / "README.md").read_text()
    assert spec.fingerprint[:16] in card and "tessera decode" in card
    other, few = tmp_path / "other", RNG.integers(0, 9, (9, 16))
    other.mkdir()
    for codes, own, said in (
        (counted(9, 16), {}, r"outside the codebook(.|\n)*0\.\.47(.|\n)*--tokenizer"),
        (counted(9, 9) % 40, {}, "another grid than the tokenizer's"),
        (few, {"grid": "2x8"}, "--grid: differs from the tokenizer's"),
        (few, {"codebook_size": 50}, "--codebook-size: differs from the tokenizer's"),
    ):
        with pytest.raises((DataError, ConfigError), match=said):
            imported(other, codes, tokenizer, **own)


def test_a_dataset_of_another_tokenizer_is_refused(clean: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="fingerprint"):
        imported(tmp_path, clean, make_tokenizer(tmp_path / "other", seed=3))


def test_a_dataset_without_its_tokenizer_keeps_its_specification(clean: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(clean, tmp_path / "alone", ignore=shutil.ignore_patterns("tokenizer")))
    assert imported(tmp_path, alone)[0] == TokenDataset(clean).spec


def test_views_shuffled_and_saved_again_are_found_by_image_as_before(clean: Path, tmp_path: Path) -> None:
    rows = load_dataset(str(clean), split="train", cache_dir=str(tmp_path / "cache"))
    rows.shuffle(seed=3).to_parquet(tmp_path / "shuffled.parquet")
    imported(tmp_path, tmp_path / "shuffled.parquet", clean / "tokenizer", rows=3)
    there = {(name, int(view)): row.tolist() for name, view, row in columns(clean)}
    found = list(columns(tmp_path / "codes"))
    assert all(there[name, int(view)] == row.tolist() for name, view, row in found)
    dataset = TokenDataset(tmp_path / "codes")
    views = ImageViews(dataset.views_N, dataset.rows_by_shard)
    assert views.n_views == 2 and len(views) == len(set(dataset.image_ids))
    pairs = [views.rows(np.arange(len(views)), np.full(len(views), view)) for view in (0, 1)]
    assert [dataset.image_ids[i] for i in pairs[0]] == [dataset.image_ids[i] for i in pairs[1]]


def test_images_with_unequal_views_are_kept_whole(clean: Path, tmp_path: Path) -> None:
    rows = load_dataset(str(clean), split="train", cache_dir=str(tmp_path / "cache"))
    rows.select(range(1, 40)).shuffle(seed=3).to_parquet(tmp_path / "some.parquet")
    imported(tmp_path, tmp_path / "some.parquet", clean / "tokenizer", rows=3)
    parts = [TokenDataset(tmp_path / "codes", split) for split in ("train", "validation")]
    assert sum(map(len, parts)) == 39 and not set(parts[0].image_ids) & set(parts[1].image_ids)


def columns(folder: Path) -> Any:
    """Image, view and codes of each training row."""
    dataset = TokenDataset(folder)
    return zip(dataset.image_ids, dataset.views_N, dataset.codes_NT, strict=True)


def test_large_codes_and_many_files(tmp_path: Path) -> None:
    write_tokens(tmp_path / "source", (40, 41, 13), n_views=1)
    spec, _ = imported(tmp_path, tmp_path / "source", rows=10)
    train, held = (TokenDataset(tmp_path / "codes", split) for split in ("train", "validation"))
    assert len(train) + len(held) == 94 and max(train.rows_by_shard) == 10
    codes = RNG.integers(0, 2**31 - 1, (9, 4))
    (tmp_path / "large").mkdir()
    spec, _ = imported(tmp_path / "large", codes)
    assert spec.codebook_size == codes.max() + 1
