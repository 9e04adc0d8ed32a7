"""Codes back into images: every row, once, whoever does it."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.tiny_export import content, make_inputs, make_tokenizer, tiny_export

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import MANIFEST
from foundation.errors import CheckpointError, ConfigError, ContractError, DataError
from foundation.images.preprocess import to_uint8
from pipeline.cli import main
from pipeline.encoding import decode
from pipeline.encoding.decode import decode_to_folder
from stage1_tokenizer.tokenizer import TokenizerModel


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token dataset of 60 rows."""
    folder = tmp_path_factory.mktemp("made")
    assert tiny_export(*make_inputs(folder), folder / "codes")
    return folder / "codes"


@pytest.fixture(autouse=True)
def _small_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "IMAGES_PER_FOLDER", 9)


def rows(folder: Path) -> list[dict]:
    """Every image of an output, with what is said of it."""
    found = []
    for listing in sorted(folder.rglob("metadata.jsonl")):
        for line in listing.read_text().splitlines():
            entry = json.loads(line)
            found.append({**entry, "pixels": np.asarray(Image.open(listing.parent / entry["file_name"]))})
    return found


def test_every_row_becomes_the_image_that_the_tokenizer_makes_of_it(codes: Path, tmp_path: Path) -> None:
    assert decode_to_folder(str(codes), str(tmp_path / "out"), batch_size=4) == 60
    for split, n in (("train", 40), ("validation", 20)):
        dataset, found = TokenDataset(codes, split), rows(tmp_path / "out" / split)
        assert len(found) == n
        decoded = to_uint8(TokenizerModel.load(codes / "tokenizer").decode(torch.from_numpy(dataset.grids.astype(int))))
        for i, row in enumerate(found):
            assert (row["image_id"], row["view"]) == (dataset.image_ids[i], dataset.views_N[i])
            assert row["label"] == ("ant", "bee")[dataset.labels_N[i]]  # type: ignore[index]
            assert np.abs(row["pixels"].astype(int) - decoded[i]).max() <= 1, "another batch may round otherwise"
    assert sorted(each.name for each in (tmp_path / "out" / "train").iterdir()) == [f"{i:05d}" for i in range(5)]


def test_the_result_opens_as_a_folder_of_images(codes: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    decode_to_folder(str(codes), str(tmp_path / "out"), split="validation")
    images = load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out" / "validation"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(images) == 20 and images[0]["image"].size == (16, 16) and set(images["label"]) == {"ant", "bee"}


def work(codes: Path, out: Path, part: str) -> None:
    torch.set_num_threads(1)
    decode_to_folder(str(codes), str(out), part=part)
    os._exit(0)


def test_many_processes_and_a_kill_make_the_same(codes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_to_folder(str(codes), str(tmp_path / "clean"))
    save, saved = decode._save, []

    def dying(image: np.ndarray, path: Path) -> None:
        saved.append(path)
        if len(saved) > 25:
            raise KeyboardInterrupt
        save(image, path)

    monkeypatch.setattr(decode, "_save", dying)
    with pytest.raises(KeyboardInterrupt):
        decode_to_folder(str(codes), str(tmp_path / "out"))
    monkeypatch.setattr(decode, "_save", save)
    done = [path for path in (tmp_path / "out" / "train").iterdir() if path.name[0] != "."]
    assert len(done) == 2
    before = {path: path.stat().st_ino for path in done}
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(codes, tmp_path / "out", f"{i}/3")) for i in (2, 0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert content(tmp_path / "out") == content(tmp_path / "clean")
    assert {path: path.stat().st_ino for path in done} == before


def test_one_s_own_codes_decode_from_an_array_and_a_table(codes: Path, tmp_path: Path) -> None:
    dataset = TokenDataset(codes)
    grids = dataset.grids[:11].astype(np.int64)
    np.save(tmp_path / "grids.npy", grids)
    np.save(tmp_path / "flat.npy", grids.reshape(11, -1).astype(np.uint8))
    pq.write_table(pa.table({"codes": grids.reshape(11, -1).tolist()}), tmp_path / "mine.parquet")
    decode_to_folder(str(codes), str(tmp_path / "all"), split="train")
    expected = [row["pixels"] for row in rows(tmp_path / "all")][:11]
    for name in ("grids.npy", "flat.npy", "mine.parquet"):
        out = tmp_path / f"{name}-out"
        assert main(["decode", str(tmp_path / name), "-o", str(out), "--tokenizer", str(codes)]) == 0
        found = rows(out)
        assert [each["file_name"] for each in found] == [f"{i:08d}.png" for i in range(11)]
        assert all(np.array_equal(one["pixels"], other) for one, other in zip(found, expected, strict=True))
    shard = codes / "data" / "train" / "part-00001.parquet"
    assert decode_to_folder(str(shard), str(tmp_path / "shard"), tokenizer=str(codes)) == 8
    assert [row["image_id"] for row in rows(tmp_path / "shard")] == list(dataset.image_ids)[8:16]


def test_what_cannot_be_decoded_is_refused_before_anything_is_written(codes: Path, tmp_path: Path) -> None:
    out, tokenizer = str(tmp_path / "out"), str(codes)
    cases: dict[str, np.ndarray] = {
        "shape": np.zeros((3, 4, 5), int),
        "float": np.zeros((3, 4, 4)),
        "one": np.zeros(16, int),
        "objects": np.array([{}], dtype=object),
    }
    for name, array in cases.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
        with pytest.raises(DataError, match=f"{name}.npy"):
            decode_to_folder(str(tmp_path / f"{name}.npy"), out, tokenizer=tokenizer)
    tables = {
        "length": [[1, 2], [3, 4]],
        "ragged": [[0] * 16, [0] * 15],
        "null": [[0] * 15 + [None]],
        "text": [["x"] * 16],
    }
    for name, lists in tables.items():
        pq.write_table(pa.table({"codes": lists}), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=f"{name}.parquet"):
            decode_to_folder(str(tmp_path / f"{name}.parquet"), out, tokenizer=tokenizer)
    pq.write_table(pa.table({"tokens": [[1]]}), tmp_path / "column.parquet")
    with pytest.raises(DataError, match=r"no column codes(.|\n)*tokens"):
        decode_to_folder(str(tmp_path / "column.parquet"), out, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="--tokenizer"):
        decode_to_folder(str(tmp_path / "shape.npy"), out)
    with pytest.raises(ConfigError, match="--tokenizer"):
        decode_to_folder(str(tmp_path), out)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        decode_to_folder(str(tmp_path / "shape.npy"), out, tokenizer=str(tmp_path))
    with pytest.raises(DataError, match="no such folder or file"):
        decode_to_folder(str(tmp_path / "nowhere.txt"), out, tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_code_outside_the_codebook_is_refused_and_leaves_nothing_half_made(codes: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.full((3, 4, 4), 48))
    with pytest.raises(DataError, match=r"outside the codebook(.|\n)*0\.\.47"):
        decode_to_folder(str(tmp_path / "codes.npy"), str(tmp_path / "out"), tokenizer=str(codes))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".png", ".jsonl")]


def test_codes_of_another_tokenizer_are_refused(codes: Path, tmp_path: Path) -> None:
    other = make_tokenizer(tmp_path / "tokenizer", seed=3)
    for source in (codes, codes / "data" / "train" / "part-00000.parquet"):
        with pytest.raises(ContractError, match="fingerprint"):
            decode_to_folder(str(source), str(tmp_path / "out"), tokenizer=str(other))


def test_a_folder_of_other_images_and_an_unfinished_dataset_are_refused(codes: Path, tmp_path: Path) -> None:
    decode_to_folder(str(codes), str(tmp_path / "out"), split="validation")
    with pytest.raises(ConfigError, match=r"other settings(.|\n)*sha256"):
        decode_to_folder(str(codes), str(tmp_path / "out"), split="train")
    with pytest.raises(ConfigError, match="batch_size"):
        decode_to_folder(str(codes), str(tmp_path / "out"), split="validation", batch_size=5)
    half = Path(shutil.copytree(codes, tmp_path / "half"))
    (half / MANIFEST).unlink()
    with pytest.raises(DataError, match="not complete"):
        decode_to_folder(str(half), str(tmp_path / "new"))


def test_codes_saved_by_others_decode_with_their_labels(codes: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    saved = load_dataset(str(codes), split="train", cache_dir=str(tmp_path / "cache"))
    chosen = saved.filter(lambda row: row["label"] == 1).select(range(5))
    chosen.save_to_disk(tmp_path / "saved")
    np.savez(tmp_path / "x.npz", codes=np.array(chosen["codes"]), labels=["b"] * 5)
    pq.write_table(pa.table({"codes": np.array(chosen["codes"]).reshape(5, 4, 4).tolist()}), tmp_path / "x.parquet")
    dataset = TokenDataset(codes)
    decoded = {}
    for name in ("saved", "x.npz", "x.parquet"):
        assert decode_to_folder(str(tmp_path / name), str(tmp_path / f"{name}-out"), tokenizer=str(codes)) == 5
        decoded[name] = rows(tmp_path / f"{name}-out")
    first = decoded["saved"][0]
    assert (first["label"], first["image_id"]) == ("bee", chosen[0]["image_id"])
    assert first["image_id"] in dataset.image_ids and decoded["x.npz"][0]["label"] == "b"
    for name in ("x.npz", "x.parquet"):
        pairs = zip(decoded[name], decoded["saved"], strict=True)
        assert all(np.array_equal(one["pixels"], other["pixels"]) for one, other in pairs)


def test_images_are_not_written_among_the_parts_of_a_run(codes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(codes, run / "codes")
    shutil.copytree(codes / "tokenizer", run / "tokenizer")
    (run / "recipe.yaml").write_text("name: x")
    before = content(run)
    for out in ("", "codes", "codes/data", "codes/images", "tokenizer", "tokenizer/x", "samples", "prior/x"):
        with pytest.raises(ConfigError, match="--out: is a place of"):
            decode_to_folder(str(run), str(run / out))
    with pytest.raises(ConfigError, match="--out"):
        decode_to_folder(str(codes), str(codes))
    assert content(run) == before
    assert decode_to_folder(str(run), str(run / "decoded"), split="validation") == 20
