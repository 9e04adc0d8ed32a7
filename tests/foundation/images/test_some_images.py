"""Some images of a source travel to another process without the list of all, and are the same images there."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foundation.errors import DataError
from foundation.images.archive import ArchiveSource
from foundation.images.config import Preprocess
from foundation.images.dataset import DatasetSource
from foundation.images.failures import BadImage
from foundation.images.folder import FolderSource
from foundation.images.image_set import ImageSet
from foundation.images.listing import ListedImages, ListedSource
from foundation.images.source_config import DatasetData
from foundation.images.sources import DigitsSource, ImageSource, SubsetSource, require_here, some_images

N = 40


def png(i: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 5 * i, np.uint8)).save(content, format="PNG")
    return content.getvalue()


def folder_source(home: Path) -> ImageSource:
    for i in range(N):
        (home / "images" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        (home / "images" / f"class{i % 2}" / f"{i:03d}.png").write_bytes(png(i))
    return FolderSource(str(home / "images"))


def archive_source(home: Path) -> ImageSource:
    for part in range(2):
        with tarfile.open(home / f"part{part}.tar", "w") as archive:
            for i in range(part, N, 2):
                member = tarfile.TarInfo(f"{i:03d}.png")
                member.size = len(png(i))
                archive.addfile(member, io.BytesIO(png(i)))
    return ArchiveSource(str(home), None)


def table_source(home: Path) -> ImageSource:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(N)]}), home / "t.parquet")
    return DatasetSource(DatasetData(path=str(home / "t.parquet")), "train", None)


def listed_source(home: Path) -> ImageSource:
    source = folder_source(home)
    return ListedSource(ListedImages.of(source), source.class_names, [source])


def subset_source(home: Path) -> ImageSource:
    return SubsetSource(folder_source(home), np.arange(N)[::-1])


def digits_source(home: Path) -> ImageSource:
    return DigitsSource()


@pytest.mark.parametrize(
    "make", [folder_source, archive_source, table_source, listed_source, subset_source, digits_source]
)
def test_they_are_the_same_images_wherever_they_are_read(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, indices = make(tmp_path), np.array([7, 3, 21, 21])
    expected = [np.asarray(source.read(int(i))) for i in indices]
    sent = pickle.dumps(some_images(source, indices))
    monkeypatch.chdir(tmp_path.parent)
    arrived = pickle.loads(sent)
    require_here(arrived)
    assert all(np.array_equal(np.asarray(arrived.read(k)), each) for k, each in enumerate(expected))
    if make not in (digits_source, table_source):
        assert len(sent) < 3000 and b"039.png" not in sent


def test_an_image_that_has_changed_since_it_was_listed_is_told_there_too(tmp_path: Path) -> None:
    source = listed_source(tmp_path)
    few = pickle.loads(pickle.dumps(some_images(source, np.array([4, 5]))))
    (tmp_path / "images" / source.ids[5]).write_bytes(png(0) + b"more")
    assert np.asarray(few.read(0)).max() == np.asarray(source.read(4)).max()
    with pytest.raises(BadImage, match="when it was listed"):
        few.read(1)


def test_a_machine_without_the_folder_is_named(tmp_path: Path) -> None:
    few = some_images(folder_source(tmp_path), np.array([0]))
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is not on this machine"):
        require_here(few)


def test_a_set_lists_its_unreadable_images_there(tmp_path: Path) -> None:
    source = folder_source(tmp_path)
    (tmp_path / "images" / source.ids[2]).write_bytes(b"broken")
    few = pickle.loads(pickle.dumps(ImageSet(source, Preprocess(height=8, width=8)).some(np.array([1, 2, 3]))))
    pixels_KYXC, kept_B = few.readable(np.arange(3))
    assert kept_B.tolist() == [True, False, True] and len(pixels_KYXC) == 2
    assert [each.image_id for each in few.take_failures()] == [source.ids[2]]
