"""Labels from a list; what is not a plain file; folders that hide something."""

import io
import os
import socket
import stat
from pathlib import Path

import pytest
from PIL import Image
from support.image_sets import met

from foundation.errors import ConfigError, DataError
from foundation.images import failures
from foundation.images.config import DataConfig, Preprocess
from foundation.images.failures import BadImage, read_plain_file
from foundation.images.folder import FolderSource
from foundation.images.image_set import ImageSet, open_splits
from foundation.images.preprocess import decode_image
from foundation.images.source_config import FolderData
from foundation.images.sources import open_sources
from foundation.storage import retrying


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Four images, one of them deeper."""
    folder = tmp_path / "flat"
    for name in ("a.png", "b.png", "c.png", "deep/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def opened(flat: Path) -> FolderSource:
    """All four, in one class."""
    return FolderSource(str(flat), labels=listed(flat / "l.csv", ALL))


ALL = "path,label\na.png,x\nb.png,x\nc.png,x\ndeep/d.png,x"


def listed(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_list_gives_labels_whatever_the_folders_are(flat: Path, tmp_path: Path) -> None:
    text = 'label,path,note\ndog,./b.png,x\ncat,a.png,\n"cat, small",deep/d.png,\ndog,c.png,'
    train, validation = open_sources(FolderData(path=str(flat), labels=listed(tmp_path / "l.csv", "\ufeff" + text)))
    assert validation is None and train.ids == ["a.png", "b.png", "c.png", "deep/d.png"]
    assert train.class_names == ("cat", "cat, small", "dog")
    assert train.labels is not None and train.labels.tolist() == [0, 2, 2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,x\nb.png,x\nc.png,x", "names no class for some images(.|\n)*deep/d.png"),
        ("path,label\na.png,x\nb.png,x\nc.png,x\ndeep/d.png,x\ne.png,x", "names files that are missing(.|\n)*e.png"),
        ("path,label\na.png,x\na.png,y", "names two classes for an image(.|\n)*a.png, line 3"),
        ("path,label\na.png,", "names no class for some images(.|\n)*a.png, line 2"),
        ("path,lable\na.png,x", "lacks a column(.|\n)*'lable'"),
        ("", "lacks a column"),
        ("path,label\na.png\n", "names no class"),
    ],
)
def test_a_list_that_does_not_fit_the_images_is_refused(flat: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"data.source.labels(.|\n)*{message}"):
        FolderSource(str(flat), labels=listed(tmp_path / "l.csv", text))


def test_a_list_that_is_none_is_refused(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"path,label\n\xff\xfe,x")
    for path in ("l.csv", "nowhere.csv", "."):
        with pytest.raises(DataError, match=r"data.source.labels: cannot be read"):
            FolderSource(str(flat), labels=str(tmp_path / path))


def test_held_out_images_have_a_list_of_their_own(flat: Path, tmp_path: Path) -> None:
    train = listed(tmp_path / "t.csv", "path,label\na.png,x\nb.png,y\nc.png,z\ndeep/d.png,x")
    validation = listed(tmp_path / "v.csv", "path,label\na.png,z\nb.png,z\nc.png,z\ndeep/d.png,x")
    both = {"path": str(flat), "validation_path": str(flat), "labels": train}
    with pytest.raises(ConfigError, match="validation_labels"):
        open_sources(FolderData(**both))
    sources = open_splits(DataConfig(source=FolderData(**both, validation_labels=validation)))
    assert sources["validation"].class_names == ("x", "y", "z")
    assert sources["validation"].labels is not None and sources["validation"].labels.tolist() == [2, 2, 2, 0]
    other = listed(tmp_path / "v.csv", "path,label\na.png,w\nb.png,z\nc.png,z\ndeep/d.png,x")
    with pytest.raises(DataError, match=r"validation_labels(.|\n)*training split lacks(.|\n)*w"):
        open_sources(FolderData(**both, validation_labels=other))


def test_what_is_no_plain_file_is_named_and_nobody_waits_for_it(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(flat)
    (flat / "a.png").unlink()
    os.mkfifo(flat / "a.png")
    (flat / "b.png").unlink()
    (flat / "b.png").symlink_to("b.png")
    (flat / "c.png").unlink()
    (flat / "deep" / "d.png").unlink()
    (flat / "deep" / "d.png").mkdir()
    images = met(ImageSet(source, Preprocess(height=4, width=4), max_failed_share=1))
    assert [(each.image_id, each.code) for each in images.failures] == [
        ("a.png", "not_a_file"),
        ("b.png", "not_a_file"),
        ("c.png", "vanished"),
        ("deep/d.png", "not_a_file"),
    ]
    assert "pipe" in images.failures[0].reason and "symbolic link" in images.failures[1].reason
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(flat)
    listener.bind("c.png")
    with pytest.raises(BadImage) as refused:
        source.read(2)
    assert refused.value.code == "not_a_file"
    listener.close()


@pytest.mark.parametrize(
    ("error", "code"), [(13, "forbidden"), (1, "forbidden"), (5, "unavailable"), (116, "unavailable")]
)
def test_what_the_system_refuses_has_a_code(flat: Path, monkeypatch: pytest.MonkeyPatch, error: int, code: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(failures.os, "open", refuse)
    monkeypatch.setattr(retrying.time, "sleep", lambda _: None)
    with pytest.raises(BadImage) as refused:
        read_plain_file(flat / "a.png")
    assert refused.value.code == code


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(1 << 40)  # holes: it takes no space
    with pytest.raises(BadImage, match="too large") as refused:
        read_plain_file(tmp_path / "huge.png")
    assert refused.value.code == "too_large"


def test_links_may_be_followed_where_that_is_said(flat: Path) -> None:
    (flat / "link.png").symlink_to("a.png")
    assert read_plain_file(flat / "link.png", follow_links=True) == (flat / "a.png").read_bytes()
    assert not stat.S_ISLNK((flat / "a.png").lstat().st_mode)


def test_links_are_counted_and_followed_only_where_that_is_asked_and_circles_end(flat: Path) -> None:
    (flat / "deep" / "up").symlink_to(flat)
    (flat / "link.png").symlink_to("a.png")
    source = FolderSource(str(flat), subfolders="ignored")
    assert len(source.ids) == 4
    assert {each.kind: each.count for each in source.passed_over.rows()}.items() >= {("links", 1), ("folder links", 1)}
    followed = FolderSource(str(flat), subfolders="ignored", follow_links=True)
    assert {*followed.ids} == {*source.ids, "link.png"}
    assert followed.read(followed.ids.index("link.png")).size == followed.read(followed.ids.index("a.png")).size


def test_a_folder_that_cannot_be_listed_hides_nothing(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"deep: the folder cannot be listed: Permission denied"):
        FolderSource(str(flat))


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"8BPS\x00\x01" + b"\0" * 20])
def test_formats_that_other_programs_would_open_are_unknown(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    with pytest.raises(BadImage, match="not an image of a known format"):
        decode_image(data)


@pytest.mark.parametrize(
    ("size", "refused"), [((200, 10), False), ((201, 10), True), ((10, 201), True), ((1, 1), False)]
)
def test_long_images_are_refused_by_their_header(size: tuple[int, int], refused: bool) -> None:
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, "PNG")
    if not refused:
        assert decode_image(buffer.getvalue()).size == size
        return
    with pytest.raises(BadImage, match="too long") as caught:
        decode_image(buffer.getvalue())
    assert caught.value.code == "too_large"
