"""Images in tar archives: whole archives only, in any order, with the classes beside them."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_sets import met

from foundation.errors import DataError
from foundation.images.archive import ArchiveSource
from foundation.images.config import DataConfig, Preprocess
from foundation.images.failures import BadImage
from foundation.images.image_set import ImageSet, open_splits
from foundation.images.source_config import ArchiveData


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 6), value).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two archives of five images each, with classes and other things."""
    for shard in range(2):
        members = [("./README", b"no ending"), (".hidden/.x.png", b"hidden")]
        for i in range(5 * shard, 5 * shard + 5):
            members += [
                (f"./in/{i:03d}.json", b"{}"),
                (f"./in/{i:03d}.png", png(i)),
                (f"./in/{i:03d}.cls", b"%d\n" % (i % 3)),
            ]
        write(tmp_path / "tars" / f"train-{shard}.tar", members)
    return tmp_path / "tars"


def test_samples_are_found_by_archive_and_key(shards: Path) -> None:
    source = ArchiveSource(str(shards), "cls")
    assert source.ids == [f"train-{i // 5}.tar/in/{i:03d}" for i in range(10)]
    assert source.class_names == ("0", "1", "2")
    assert source.labels is not None and source.labels.tolist() == [i % 3 for i in range(10)]
    for i in (7, 0, 9, 3):
        assert np.asarray(source.read(i))[0, 0] == i
    assert ArchiveSource(str(shards / "train-1.tar"), None).labels is None
    assert ArchiveSource(str(shards / "*-1.tar"), None).ids == source.ids[5:]


def test_archives_are_split_and_read_like_any_source(shards: Path) -> None:
    config = DataConfig(source=ArchiveData(path=str(shards), label_field="cls"), validation_share=0.3)
    sources = open_splits(config)
    parts = {name: {*each.ids} for name, each in sources.items()}
    assert len(parts["train"] | parts["validation"]) == 10 and not parts["train"] & parts["validation"]
    two = ArchiveData(path=str(shards / "train-0.tar"), validation_path=str(shards / "train-1.tar"), label_field="cls")
    sources = open_splits(DataConfig(source=two))
    assert len(sources["validation"].ids) == 5 and sources["validation"].class_names == ("0", "1", "2")
    images = ImageSet(ArchiveSource(str(shards), "cls"), Preprocess(height=6, width=6, mode="L"))
    assert images.pixels(np.array([4]))[0, 0, 0, 0] == 4


def test_a_bad_image_in_an_archive_is_one_bad_image(tmp_path: Path) -> None:
    whole = png(1)
    path = write(tmp_path / "a.tar", [("1.png", whole), ("2.png", b""), ("3.jpg", b"<html>"), ("4.png", whole[:40])])
    images = met(ImageSet(ArchiveSource(str(path), None), Preprocess(height=6, width=6)))
    assert images.n_usable == 1 and [each.image_id for each in images.failures] == ["a.tar/2", "a.tar/3", "a.tar/4"]


def test_every_truncation_of_an_archive_is_noticed(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "train-0.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))
    cuts = [*range(0, end, 512), *range(100, end, 1700), end]
    assert len(cuts) > 30
    for cut in cuts:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut.tar(.|\n)*not a complete tar archive"):
            ArchiveSource(str(tmp_path / "cut.tar"), None)


def test_a_damaged_header_does_not_hide_what_follows(shards: Path, tmp_path: Path) -> None:
    whole = bytearray((shards / "train-0.tar").read_bytes())
    place = whole.index(b"in/002.png") + 3  # within a name, so that the header's sum is wrong
    whole[place] ^= 1
    (tmp_path / "bad.tar").write_bytes(whole)
    with pytest.raises(DataError, match="no end mark at byte"):
        ArchiveSource(str(tmp_path / "bad.tar"), None)
    (tmp_path / "two.tar").write_bytes((shards / "train-0.tar").read_bytes() * 2)
    with pytest.raises(DataError, match="no end mark"):
        ArchiveSource(str(tmp_path / "two.tar"), None)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.png", png(1)), ("1.jpg", png(1))], "two images have one name(.|\n)*1"),
        ([("1.png", png(1)), ("2.png", png(1)), ("1.png", png(1))], "two images have one name"),
        ([("1.txt", b"x")], "hold no images"),
        ([("1.png", png(1)), ("2.png", png(1)), ("2.cls", b"x")], r"some images have no class(.|\n)*a.tar/1.cls"),
        ([("1.png", png(1)), ("1.cls", b" x\n")], r"white space around a class name(.|\n)*of a.tar/1"),
        ([("1.png", png(1)), ("1.cls", b"")], "holds no class name"),
        ([("1.png", png(1)), ("1.cls", b"\xff")], "holds no class name"),
        ([("1.png", png(1)), ("1.cls", b"x" * 5000)], "holds no class name"),
    ],
)
def test_archives_that_say_two_things_or_nothing_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ArchiveSource(str(write(tmp_path / "a.tar", members)), "cls")


def test_the_class_may_be_a_key_of_a_json_member(tmp_path: Path) -> None:
    members = []
    for i in range(30):
        about = {"label": i % 3, "caption": f"number {i}", "meta": {"name": f"n{i % 2}"}, "list": [1]}
        members += [(f"{i}.png", png(i)), (f"{i}.json", json.dumps(about).encode())]
    path = str(write(tmp_path / "a.tar", members))
    assert ArchiveSource(path, "json.label").class_names == ("0", "1", "2")
    assert ArchiveSource(path, "json.meta.name").class_names == ("n0", "n1")
    for field, message in (
        ("json", r"holds JSON objects, not classes(.|\n)*json.label, json.caption"),
        ("json.lable", r"names no class(.|\n)*did you mean 'label'"),
        ("json.list", "holds no class here"),
        ("json.caption", "hardly classes(.|\n)*trust_classes true"),
    ):
        with pytest.raises(DataError, match=message):
            ArchiveSource(path, field)
    assert len(ArchiveSource(path, "json.caption", trust_classes=True).class_names) == 30
    write(tmp_path / "b.tar", [("1.png", png(1)), ("1.json", b"{")])
    with pytest.raises(DataError, match=r"b.tar: 1.json: is no JSON"):
        ArchiveSource(str(tmp_path / "b.tar"), "json.label")


def test_pictures_of_other_formats_are_listed_and_other_members_are_counted(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic" + bytes(30)
    members = [
        ("1.png", png(1)),
        ("1.txt", b"x"),
        ("2.heic", heic),
        ("3.png", png(3)),
        ("4.txt", b"x"),
        ("README", b""),
    ]
    source = ArchiveSource(str(write(tmp_path / "a.tar", members)), None)
    images = met(ImageSet(source, Preprocess(height=6, width=6)))
    assert [each.image_id for each in images.failures] == ["a.tar/2"] and "HEIC" in images.failures[0].reason
    assert [(each.kind, each.count, each.example) for each in source.passed_over.rows()] == [
        (".txt", 1, "a.tar/4.txt"),
        ("without an ending", 1, "a.tar/README"),
    ]


def test_other_archives_have_another_fingerprint(shards: Path) -> None:
    whole = ArchiveSource(str(shards), None).fingerprint
    assert ArchiveSource(str(shards), "cls").fingerprint == whole
    write(shards / "train-1.tar", [("1.png", png(1))])
    assert ArchiveSource(str(shards), None).fingerprint != whole


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.zip", b"PK\x03\x04", "it is a zip archive: unpack it"),
        ("x.parquet", b"PAR1" + bytes(600), "it is a parquet file: use type dataset"),
        ("x.png", png(1), "it is PNG: use type folder"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        ArchiveSource(str(tmp_path / name), None)


@pytest.mark.parametrize(
    ("name", "way"), [("a.png", "type folder"), ("a.parquet", "type dataset"), ("a.zip", "unpack")]
)
def test_a_folder_without_archives_says_how_to_use_it(tmp_path: Path, name: str, way: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"no such archives(.|\n)*{name}(.|\n)*{way}"):
        ArchiveSource(str(tmp_path), None)


def test_brackets_in_the_name_of_one_archive_are_no_pattern(tmp_path: Path) -> None:
    assert ArchiveSource(str(write(tmp_path / "a[1].tar", [("1.png", png(1))])), None).ids == ["a[1].tar/1"]


def test_an_archive_that_became_shorter_is_a_reason(shards: Path) -> None:
    source = ArchiveSource(str(shards / "train-0.tar"), None)
    os.truncate(shards / "train-0.tar", 600)
    with pytest.raises(BadImage, match="shorter than when it was listed"):
        source.read(4)


def test_compressed_and_missing_archives_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [("1.png", png(1))], "w:gz")
    with pytest.raises(DataError, match=r"decompress"):
        ArchiveSource(str(tmp_path / "a.tar"), None)
    for path in ("nowhere", "*.tgz"):
        with pytest.raises(DataError, match="no such archives"):
            ArchiveSource(str(tmp_path / path), None)


def test_nothing_outside_is_touched_and_links_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        for name in ("../../2.png", "/3.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png(2))
            tar.addfile(info, io.BytesIO(png(2)))
    before = sorted(tmp_path.rglob("*"))
    source = ArchiveSource(str(path), None)
    assert source.ids == ["a.tar/../../2", "a.tar/3"] and source.read(1).size == (6, 6)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_that_vanishes_is_a_reason(shards: Path) -> None:
    source = ArchiveSource(str(shards), None)
    (shards / "train-1.tar").unlink()
    with pytest.raises(BadImage) as refused:
        source.read(8)
    assert refused.value.code == "vanished" and source.read(0).size == (6, 6)
