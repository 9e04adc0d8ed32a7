"""Many images to files: whatever kills, repeats or shares the work, the files are the same to the byte."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.errors import ConfigError, DataError
from foundation.storage import durable
from pipeline import ImageGenerator
from pipeline.generation import bulk, groups
from pipeline.generation.bulk import Batch, generate_to_folder
from pipeline.generation.requests import image_seed
from pipeline.work_sharing import Part

SMALL = {"count": 22, "labels": (2, 0), "seed": 5, "batch_size": 4, "images_per_file": 8}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module", params=["png", "parquet"])
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch(format=request.param, **SMALL)


@pytest.fixture(scope="module")
def whole(untrained: ImageGenerator, batch: Batch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / batch.format
    done = generate_to_folder(untrained, folder, batch, options={"top_k": 30})
    assert (done.n_new, done.n_there, done.n_missing) == (22, 0, 0)
    return folder


def test_image_i_is_that_of_its_seed_and_label(untrained: ImageGenerator, whole: Path, batch: Batch) -> None:
    rows = read(whole, batch)
    assert [row["label"] for row in rows] == ["c", "a"] * 11
    assert [row["seed"] for row in rows] == [image_seed(5, i) for i in range(22)]
    for i in (0, 7, 21):
        alone = untrained(rows[i]["label"], seed=rows[i]["seed"], top_k=30)
        assert np.array_equal(np.asarray(alone.images[0]), np.asarray(rows[i]["image"]))
        if "codes" in rows[i]:
            assert rows[i]["codes"] == alone.codes.flatten().tolist()


def read(folder: Path, batch: Batch) -> list[dict]:
    if batch.format == "png":
        with (folder / "metadata.csv").open() as file:
            listed = list(csv.DictReader(file))
        return [{**row, "seed": int(row["seed"]), "image": Image.open(folder / row["file_name"])} for row in listed]
    from datasets import load_dataset

    rows = load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache"))
    return [{**row, "label": rows.features["label"].int2str(row["label"])} for row in rows]


def test_done_files_are_not_made_again(
    untrained: ImageGenerator, whole: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.generation.groups.draw_best", lambda *_, **__: pytest.fail("drew again"))
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("[0-9p]*.p*")}
    done = generate_to_folder(untrained, whole, batch, options={"top_k": 30})
    assert (done.n_new, done.n_there, done.n_missing) == (0, 22, 0)
    assert before and before == {path: path.stat().st_mtime_ns for path in whole.rglob("[0-9p]*.p*")}


@pytest.mark.parametrize("n", [2, 3])
def test_parts_in_any_order_make_the_same_files(
    untrained: ImageGenerator, whole: Path, batch: Batch, tmp_path: Path, n: int
) -> None:
    folder = tmp_path / "out"
    for index in reversed(range(n)):
        done = generate_to_folder(untrained, folder, batch, Part(index, n), options={"top_k": 30})
        assert (done.n_missing == 0) == (index == 0)
    assert contents(folder) == contents(whole)


def test_a_batch_killed_at_any_write_ends_like_one_that_was_not(
    untrained: ImageGenerator, whole: Path, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stops dead at each operation on the disk in turn, and the same command is given again.

    What is drawn is kept from one attempt to the next: the writes are tested here.
    """

    class Killed(BaseException):
        pass

    names = ("_fsync", "_link", "_rename", "write_bytes")
    real = {name: getattr(durable, name) for name in names}
    count, at = [0], [0]

    def stopping(name: str) -> object:
        def operation(*arguments: object) -> object:
            count[0] += 1
            if count[0] == at[0]:
                raise Killed
            return real[name](*arguments)

        return operation

    draw, drawn = groups.draw_best, dict[str, Any]()

    def draw_once(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments[1:], options))
        return drawn[key] if key in drawn else drawn.setdefault(key, draw(*arguments, **options))

    monkeypatch.setattr(groups, "draw_best", draw_once)
    monkeypatch.setattr(bulk, "map_in_threads", lambda function, items: list(map(function, items)))
    for name in names:
        monkeypatch.setattr(durable, name, stopping(name))
    expected, kills = contents(whole), 0
    for at[0] in range(1, 200, 12 if batch.format == "png" else 2):
        count[0] = 0
        folder = tmp_path / f"kill-{at[0]}"
        try:
            generate_to_folder(untrained, folder, batch, options={"top_k": 30})
        except Killed:
            kills += 1
            left = {name: data for name, data in contents(folder).items() if ".tmp-" not in name}
            assert left.items() <= expected.items(), "what has its final name is whole"
            generate_to_folder(untrained, folder, batch, options={"top_k": 30})
        assert contents(folder) == expected
        if count[0] < at[0]:
            break
    assert kills > 5


def test_a_folder_of_other_settings_is_refused_and_named(untrained: ImageGenerator, whole: Path, batch: Batch) -> None:
    import dataclasses

    for change, options, field in (
        ({"seed": 6}, {"top_k": 30}, "seed"),
        ({}, {"top_k": 31}, "sampling.top_k"),
        ({}, {"top_k": 30, "best_of": 2}, "best_of"),
    ):
        with pytest.raises(ConfigError, match=field):
            generate_to_folder(untrained, whole, dataclasses.replace(batch, **change), options=options)


def test_a_folder_begun_with_other_streams_is_refused(untrained: ImageGenerator, tmp_path: Path) -> None:
    """Image i was drawn from seed + i before; such a folder must not be continued."""
    plan = tmp_path / "out" / "generation.json"
    generate_to_folder(untrained, tmp_path / "out", Batch(**SMALL))
    old = {name: value for name, value in json.loads(plan.read_text()).items() if name != "streams"}
    plan.write_text(json.dumps(old, indent=1, sort_keys=True))
    (tmp_path / "out" / "images" / "00000003-a.png").unlink()
    with pytest.raises(ConfigError, match=r"streams: .* not seed \+ i"):
        generate_to_folder(untrained, tmp_path / "out", Batch(**SMALL))


def test_a_foreign_png_among_the_images_is_refused_by_name(untrained: ImageGenerator, tmp_path: Path) -> None:
    for name in ("1.png", "00000001.jpg.png", "cat.png"):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "notes.txt").write_text("no picture")
        (folder / "images" / name).write_bytes(b"")
        with pytest.raises(ConfigError, match=rf"{name}: is not an image of this folder's samples(.|\n)*move it away"):
            generate_to_folder(untrained, folder, Batch(**SMALL))
        (folder / "images" / name).unlink()
        assert generate_to_folder(untrained, folder, Batch(**SMALL)).n_missing == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"count": 0}, "count"),
        ({"count": 10**12}, "count"),
        ({"batch_size": 0}, "batch_size"),
        ({"images_per_file": 6, "format": "parquet"}, "images_per_file"),
        ({"format": "jpg"}, "format"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_batches_are_refused_by_name(change: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}"):
        Batch(**{**SMALL, **change})


def test_png_files_ask_nothing_of_an_option_for_parquet() -> None:
    assert Batch(count=20, labels=(0,), batch_size=100).images_per_job == 100
    with pytest.raises(ConfigError, match=r"^images_per_file"):
        Batch(count=20, labels=(0,), batch_size=100, format="parquet")


def test_a_batch_that_does_not_fit_in_memory_is_refused_before_anything_is_made(
    untrained: ImageGenerator, tmp_path: Path
) -> None:
    plain = Batch(count=10, labels=(0,))
    many = Batch(count=10**8, labels=(0,), batch_size=10**8)
    file = Batch(count=10**8, labels=(0,), images_per_file=64 * 10**6, format="parquet")
    for batch, options in ((plain, {"best_of": 10**9}), (many, {}), (file, {})):
        with pytest.raises(DataError, match="fit in memory"):
            generate_to_folder(untrained, tmp_path / "out", batch, options=options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "a/b", "0/0", "/", "1/2/3"])
def test_wrong_parts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="part"):
        Part.parse(text)
    assert Part.parse("1/3") == Part(1, 3)


def test_two_processes_fill_one_folder_at_the_same_time(finished_run: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "pipeline.cli", "sample", str(finished_run), "--count", "40", "--batch-size", "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    parts = [
        subprocess.Popen(
            [*line, "--out", str(tmp_path / "two"), "--part", f"{i}/2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        for i in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].decode() for process in parts]
    assert [process.returncode for process in parts] == [0, 0], printed
    assert any("complete: 40 images" in each for each in printed)
    generator = ImageGenerator.from_pretrained(finished_run)
    labels = tuple(range(10))
    batch = Batch(count=40, labels=labels, batch_size=8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generate_to_folder(generator, tmp_path / "one", batch)
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    shown = io.BytesIO(contents(tmp_path / "one")["images/00000003-3.png"])
    assert Image.open(shown).size == (8, 8)
