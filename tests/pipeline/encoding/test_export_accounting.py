"""Planned = written + failed, each failure with a code, and a retry touches nothing else."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.tiny_export import CONFIG, content, make_images, open_tiny, tiny_export

from foundation.codes.dataset import ImageViews, TokenDataset
from foundation.codes.manifest import MANIFEST, read_manifest
from foundation.codes.shards import read_footer
from foundation.errors import ConfigError, DataError
from foundation.images.failures import FAILURE_CODES
from foundation.images.folder import FolderSource
from pipeline.encoding.accounts import require_enough, share, totals
from pipeline.encoding.export import retry_failed
from pipeline.encoding.status import export_status

Inputs = tuple[Path, Path]
BAD = {
    "ant/004.png": "unreadable",
    "ant/005.png": "unreadable",
    "ant/006.png": "unreadable",
    "ant/007.png": "unreadable",
    "bee/001.png": "pixel_format",
    "bee/009.png": "too_large",
}
"""a whole file of the plan, and one image of others"""


@pytest.fixture
def damaged(inputs: Inputs, tmp_path: Path) -> Path:
    """The images of ``inputs``, some of which cannot be used."""
    images = Path(shutil.copytree(inputs[0], tmp_path / "images"))
    (images / "ant/004.png").write_bytes(b"")
    (images / "ant/005.png").write_text("<html>")
    (images / "ant/006.png").write_bytes((inputs[0] / "ant/006.png").read_bytes()[:200])
    (images / "ant/007.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("F", (20, 20)).save(tmp_path / "float.tiff")
    shutil.move(tmp_path / "float.tiff", images / "bee/001.png")
    Image.new("1", (10_000, 20)).save(images / "bee/009.png")
    return images


def test_every_planned_image_is_written_or_listed_with_a_code(inputs: Inputs, damaged: Path, tmp_path: Path) -> None:
    assert tiny_export(damaged, inputs[1], tmp_path / "codes")
    manifest = read_manifest(tmp_path / "codes")
    assert totals(manifest) == {"planned": 40, "written": 28, "failed": 12}
    for split, views in (("train", 2), ("validation", 1)):
        entry = manifest["splits"][split]
        assert {each["image_id"]: each["code"] for each in entry["failures"]} == BAD
        assert (entry["planned"], entry["written"], entry["rows"]) == (20, 14, 14 * views)
        for each in entry["files"]:
            footer = read_footer(tmp_path / "codes" / each["file"])
            assert footer["planned"] == footer["rows"] // views + len(footer["failures"]) == 4
    assert {each["code"] for each in manifest["splits"]["train"]["failures"]} <= FAILURE_CODES.keys()
    dataset = TokenDataset(tmp_path / "codes")
    assert len(dataset) == 28 and not set(dataset.image_ids) & BAD.keys()
    assert len(ImageViews(dataset.views_N, dataset.rows_by_shard)) == 14, "no view is left without its image"
    assert "8 unreadable, 2 pixel_format, 2 too_large" in export_status(tmp_path / "codes").text()
    card = (tmp_path / "codes" / "README.md").read_text()
    assert "| train | 20 | 14 | 6 | 28 |" in card and "8 unreadable" in card


def test_too_many_failures_are_an_error_but_the_dataset_is_whole(inputs: Inputs, damaged: Path, tmp_path: Path) -> None:
    assert tiny_export(damaged, inputs[1], tmp_path / "codes")
    manifest = read_manifest(tmp_path / "codes")
    with pytest.raises(DataError, match=r"12 of 40(.|\n)*ant/004.png: unreadable(.|\n)*--retry-failed"):
        require_enough(manifest, 0.25)
    require_enough(manifest, 0.3)


def test_shares() -> None:
    assert [share(each) for each in ("1%", "0.01", 0.5, "100%", "0")] == [0.01, 0.01, 0.5, 1.0, 0.0]
    for wrong in ("1 percent", "%", "101%", "-1", "nan", ""):
        with pytest.raises(ConfigError, match="max-bad"):
            share(wrong)


def test_a_retry_reads_only_what_failed_and_ends_as_if_nothing_had(
    inputs: Inputs, clean: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_export(damaged, inputs[1], tmp_path / "codes")
    for name in ("ant/005.png", "bee/001.png"):
        shutil.copy(inputs[0] / name, damaged / name)
    read: list[str] = []
    reading = FolderSource.read
    monkeypatch.setattr(
        FolderSource, "read", lambda source, index: (read.append(source.ids[index]), reading(source, index))[1]
    )
    untouched = {path: path.stat().st_ino for path in (tmp_path / "codes" / "data").rglob("*.parquet")}
    export = open_tiny(damaged, inputs[1], tmp_path / "codes")
    encode_some = export.encoder.encode_some
    monkeypatch.setattr(export.encoder, "encode_some", lambda *a: (encode_some(*a), read.append("|"))[0])
    assert retry_failed(export)
    during = read[: len(read) - read[::-1].index("|")]
    assert set(during) - {"|"} == BAD.keys(), "the card reads others afterwards"
    left = {path for path, inode in untouched.items() if path.stat().st_ino == inode}
    assert len(untouched) - len(left) == 4, "one file for each of two images in two splits"
    assert totals(read_manifest(tmp_path / "codes")) == {"planned": 40, "written": 32, "failed": 8}
    for name in BAD:
        shutil.copy(inputs[0] / name, damaged / name)
    assert retry_failed(open_tiny(damaged, inputs[1], tmp_path / "codes"))
    assert content(tmp_path / "codes") == content(clean)


def test_a_retry_that_changes_nothing_writes_nothing(inputs: Inputs, damaged: Path, tmp_path: Path) -> None:
    assert tiny_export(damaged, inputs[1], tmp_path / "codes")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "codes").rglob("*")}
    assert retry_failed(open_tiny(damaged, inputs[1], tmp_path / "codes"))
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if before[path] != after[path]} <= {tmp_path / "codes"}


def test_a_killed_retry_leaves_no_manifest_that_lies(
    inputs: Inputs, clean: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foundation.storage import durable

    assert tiny_export(damaged, inputs[1], tmp_path / "codes")
    for name in BAD:
        shutil.copy(inputs[0] / name, damaged / name)
    export = open_tiny(damaged, inputs[1], tmp_path / "codes")
    replace, replaced = durable.replace_file, []

    def dying(path: Path, data: bytes) -> None:
        if len(replaced) == 2:
            raise KeyboardInterrupt
        replaced.append(path)
        replace(path, data)

    monkeypatch.setattr(durable, "replace_file", dying)
    with pytest.raises(KeyboardInterrupt):
        retry_failed(export)
    monkeypatch.undo()
    assert len(replaced) == 2 and not (tmp_path / "codes" / MANIFEST).exists()
    assert retry_failed(open_tiny(damaged, inputs[1], tmp_path / "codes"))
    assert content(tmp_path / "codes") == content(clean)


def test_an_image_that_vanishes_after_planning_is_listed(inputs: Inputs, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    export = open_tiny(images, inputs[1], tmp_path / "codes")
    (images / "bee/003.png").unlink()
    assert export.take_part(quiet=True)
    failures = read_manifest(tmp_path / "codes")["splits"]["train"]["failures"]
    assert [(each["image_id"], each["code"]) for each in failures] == [("bee/003.png", "vanished")]


def test_a_file_that_loses_an_image_is_not_accepted(inputs: Inputs, tmp_path: Path) -> None:
    """Conservation is checked, not assumed."""
    import dataclasses

    from foundation.codes.shards import read_shard, replace_shard

    assert tiny_export(*inputs, tmp_path / "codes")
    dataset = TokenDataset(tmp_path / "codes")
    path = tmp_path / "codes" / "data" / "train" / "part-00000.parquet"
    shard = read_shard(path, dataset.spec)
    keep = [row for row, name in enumerate(shard.image_ids) if name != "ant/002.png"]
    fewer = dataclasses.replace(
        shard,
        codes_BT=shard.codes_BT[keep],
        image_ids=[shard.image_ids[i] for i in keep],
        views=shard.views[keep],
        labels=None if shard.labels is None else shard.labels[keep],
    )
    for planned, message in ((4, "of 4 images planned, it has 3"), (None, "other images or labels")):
        replace_shard(path, dataclasses.replace(fewer, planned=planned), dataset.spec)
        (tmp_path / "codes" / MANIFEST).unlink(missing_ok=True)
        with pytest.raises(DataError if planned else ValueError, match=message):
            tiny_export(*inputs, tmp_path / "codes")


def test_the_plan_is_json_that_names_the_file_of_its_images(clean: Path) -> None:
    plan = json.loads((clean / "plan.json").read_bytes())
    splits = plan["what"]["splits"]
    assert [(each["name"], each["n_images"]) for each in splits] == [("train", 20), ("validation", 20)]
    assert plan["how"]["batch_size"] == CONFIG.batch_size
    images = pq.read_table(clean / plan["what"]["images"])
    assert images.column_names == ["split", "image_id", "label"] and len(images) == 40
    assert images.slice(0, 1).to_pylist() == [{"split": "train", "image_id": "ant/000.png", "label": 0}]
