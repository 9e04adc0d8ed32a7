"""Shapes by headers, and an order whose batches hold one shape."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.several_shapes import make_pictures

from foundation.errors import ConfigError, DataError
from foundation.images.archive import ArchiveSource
from foundation.images.buckets import BucketedOrder, batches_of_one_shape, buckets_of, grouped
from foundation.images.config import Augment, Preprocess
from foundation.images.dataset import DatasetSource
from foundation.images.headers import image_size, upright_size
from foundation.images.image_set import ImageSet, first_readable
from foundation.images.source_config import DatasetData
from foundation.images.sources import FolderSource, SubsetSource
from foundation.images.windowed import Streamed

BUCKETS = np.array([0] * 10 + [1] * 23 + [2] * 3)[np.random.default_rng(0).permutation(36)]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 36, 50])
def test_batches_hold_one_shape_and_every_image_comes_once_in_each_pass_over_its_bucket(batch_size: int) -> None:
    order = BucketedOrder(BUCKETS, 0, batch_size)
    n = (60 if batch_size > 4 else 8) * 36 // batch_size * batch_size
    indices, passes = order.at(np.arange(n))
    for start in range(0, n, batch_size):
        assert len(set(BUCKETS[indices[start : start + batch_size]].tolist())) == 1
    times = Counter(zip(indices.tolist(), passes.tolist(), strict=True))
    assert set(times.values()) == {1}, "never twice in one pass"
    for image in range(36):
        seen = sorted(p for i, p in times if i == image)
        assert seen == list(range(len(seen))), "and in no pass left out"
    shares = np.bincount(BUCKETS[indices]) / n
    assert np.allclose(shares, np.array([10, 23, 3]) / 36, atol=3 * batch_size / n), "in proportion to its bucket"


def test_the_order_is_a_function_of_seed_and_position() -> None:
    order, positions = BucketedOrder(BUCKETS, 0, 4), np.arange(400)
    indices, passes = order.at(positions)
    shuffled = np.random.default_rng(1).permutation(400)
    again = BucketedOrder(BUCKETS, 0, 4).at(shuffled)
    assert np.array_equal(again[0], indices[shuffled]) and np.array_equal(again[1], passes[shuffled])
    assert not np.array_equal(BucketedOrder(BUCKETS, 1, 4).at(positions)[0], indices)
    kinds = BUCKETS[indices[::4]]
    assert (kinds[1:] != kinds[:-1]).sum() > 20, "shapes are mixed, not one after the other"


def test_epochs_hold_the_batches_that_a_pass_completes() -> None:
    order = BucketedOrder(BUCKETS, 0, 4)
    epochs = np.array([order.epoch_of(batch) for batch in range(180)])
    assert (np.diff(epochs) >= 0).all()
    for epoch, n_batches in Counter(epochs.tolist()).items():
        if epoch < epochs[-1]:
            assert n_batches == sum((epoch + 1) * n // 4 - epoch * n // 4 for n in (10, 23, 3))


def test_one_bucket_is_a_shuffle_of_all_images() -> None:
    indices, _ = BucketedOrder(np.zeros(12, np.int8), 3, 4).at(np.arange(12))
    assert sorted(indices.tolist()) == list(range(12))


def test_sizes_come_from_headers_after_the_orientation(tmp_path: Path) -> None:
    rotated = Image.new("RGB", (30, 20))
    exif = rotated.getexif()
    exif[0x0112] = 6
    for name in ("a.jpg", "b.png", "c.webp", "d.tif"):
        rotated.save(tmp_path / name, exif=exif)
        assert upright_size(str(tmp_path / name)) == (20, 30), name
    rotated.save(tmp_path / "e.png")
    content = (tmp_path / "e.png").read_bytes()
    assert upright_size(content[:60]) == (30, 20), "the head of a file is enough"
    assert upright_size(content) == (30, 20)


def test_a_file_that_is_no_image_takes_the_first_shape(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (20, 30)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    source = FolderSource(str(tmp_path))
    assert buckets_of(source, ((8, 12), (12, 8))).tolist() == [0, 1, 0]


def test_images_are_cut_into_batches_of_one_shape() -> None:
    order = np.random.default_rng(0).permutation(36)
    batches = list(batches_of_one_shape(BUCKETS, order, 8))
    assert sorted(np.concatenate(batches).tolist()) == list(range(36))
    assert all(len(set(BUCKETS[each].tolist())) == 1 and len(each) <= 8 for each in batches)
    assert [len(each) for each in batches_of_one_shape(None, order, 16)] == [16, 16, 4]
    assert [bucket for bucket, _ in grouped(np.array([2, 0, 2]))] == [0, 2]


def test_every_kind_of_source_gives_sizes_without_decoding(tmp_path: Path) -> None:
    files = []
    for size in ((30, 20), (20, 30)):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, "JPEG")
        files.append(buffer.getvalue()[:-6])  # the last pixels are missing
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i, content in enumerate(files):
            (tmp_path / f"{i}.jpg").write_bytes(content)
            archive.add(tmp_path / f"{i}.jpg", f"{i}.jpg")
    pq.write_table(pa.table({"image": pa.array(files, pa.binary())}), tmp_path / "a.parquet")
    table = DatasetSource(DatasetData(path=str(tmp_path / "a.parquet"), image_column="image"), "train")
    for source in (ArchiveSource(str(tmp_path / "a.tar"), None), table, FolderSource(str(tmp_path))):
        subset = SubsetSource(source, np.array([1]))
        assert [image_size(source, i) for i in (0, 1)] == [(30, 20), (20, 30)]
        assert image_size(subset, 0) == (20, 30)


def test_an_image_set_reads_batches_of_one_shape_and_replaces_an_image_by_one_of_its_shape(tmp_path: Path) -> None:
    make_pictures(tmp_path, 6)
    for name in ("000", "002"):
        (tmp_path / "ant" / f"{name}.png").write_bytes((tmp_path / "ant" / f"{name}.png").read_bytes()[:80])
    preprocess = Preprocess(height=8, width=12, shapes=((12, 8),))
    for cache_mib in (0, 64):
        images = ImageSet(FolderSource(str(tmp_path)), preprocess, cache_mib=cache_mib, max_failed_share=0.5)
        assert np.bincount(images.buckets).tolist() == [12, 12]
        order = images.order(0, 4)
        for _ in range(2):
            for start in range(0, 48, 4):
                batch = images.batch(*order.at(np.arange(start, start + 4)))["images"]
                assert sorted(batch.shape) == [3, 4, 8, 12], "channels first or last"
        assert len(images.failures) == 2
        with pytest.raises(DataError, match="several shapes"):
            images.readable(np.arange(4))
        assert len(first_readable(images, 5)) == 5


def test_images_of_many_channels_take_shapes_too(tmp_path: Path) -> None:
    for name, sides in (("a", (20, 30)), ("b", (30, 20)), ("c", (30, 20))):
        np.save(tmp_path / f"{name}.npy", np.zeros((*sides, 4), np.uint16))
    preprocess = Preprocess(height=8, width=12, mode="channels", channels=4, bits=16, shapes=((12, 8),))
    images = ImageSet(FolderSource(str(tmp_path), arrays=True), preprocess)
    assert images.buckets.tolist() == [0, 1, 1]
    assert images.pixels(np.array([1, 2])).shape == (2, 12, 8, 4)
    assert preprocess(np.zeros((30, 20, 4), np.uint16)).shape == (12, 8, 4)


def test_random_crops_have_the_shape_of_their_image(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    preprocess = Preprocess(height=8, width=12, shapes=((12, 8),))
    images = ImageSet(FolderSource(str(tmp_path)), preprocess, augment=Augment(crop="random_resized", flip=True))
    order = images.order(0, 2)
    shapes = {tuple(images.batch(*order.at(np.arange(i, i + 2)))["images"].shape) for i in range(0, 8, 2)}
    assert shapes == {(2, 8, 12, 3), (2, 12, 8, 3)}


def test_a_shuffle_window_and_data_in_a_store_are_refused(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images", 2)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in sorted((tmp_path / "images" / "ant").iterdir()):
            archive.add(path, path.name)
    source = ArchiveSource(str(tmp_path / "a.tar"), None)
    preprocess = Preprocess(height=8, width=12, shapes=((12, 8),))
    assert len(ImageSet(source, preprocess).order(0, 2).at(np.arange(2))[0]) == 2
    with pytest.raises(ConfigError, match="shuffled within a window"):
        ImageSet(source, preprocess, window=4).order(0, 2)
    source.streamed = Streamed(100, 1000)
    with pytest.raises(ConfigError, match="data in a store"):
        ImageSet(source, preprocess)
