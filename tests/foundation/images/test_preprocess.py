import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_sets import met, usable
from support.tiny_run import ROOT

from foundation.errors import DataError
from foundation.images.config import DataConfig, Preprocess
from foundation.images.image_set import ImageSet, open_image_sets
from foundation.images.preprocess import decode_image, image_grid, to_uint8, to_unit_range
from foundation.images.source_config import DatasetData, DigitsData, FolderData
from foundation.images.sources import FolderSource


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes, **settings: object) -> np.ndarray:
    return Preprocess(**settings)(decode_image(data))  # type: ignore[arg-type]


def test_every_value_survives_the_way_to_the_unit_range_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = to_unit_range(pixels)
    assert images.min() == -1 and images.max() == 1
    assert np.array_equal(to_uint8(images), pixels)


def test_pixels_get_the_same_bits_by_numpy_and_on_a_device() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(6).reshape(2, 16, 16, 3)
    by_numpy, on_device = to_unit_range(pixels), to_unit_range(torch.from_numpy(pixels))
    assert torch.equal(by_numpy, on_device) and on_device.is_contiguous() and on_device.dtype == torch.float32
    for wrong in (torch.zeros(2, 8, 8, 3), torch.zeros(2, 8, 8, 65, dtype=torch.uint8), torch.zeros(8, 8, 3).byte()):
        with pytest.raises(DataError, match="images_BYXC"):
            to_unit_range(wrong)


def test_red_stays_red_and_the_top_stays_on_top() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :, 0] = 255
    pixels[4:, :, 2] = 255
    out = read(encoded(Image.fromarray(pixels)), height=8, width=8)
    assert np.array_equal(out, pixels)
    images = to_unit_range(out[None])
    assert images[0, 0, 0, 0] == 1 and images[0, 2, 0, 0] == -1


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    out = read(encoded(Image.fromarray(ramp)), height=8, width=8, mode="L")
    assert np.abs(out[..., 0].astype(float) - ramp / 257).max() <= 0.51


def test_transparency_shows_the_background() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (read(encoded(image), height=4, width=4, background=(10, 20, 30)) == (10, 20, 30)).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 100, 50] + [0] * 765)
    assert (read(encoded(palette, transparency=0), height=4, width=4) == 255).all()


def test_exif_orientation_is_applied() -> None:
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, :2] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the left becomes the top
    out = read(encoded(Image.fromarray(pixels), "PNG", exif=exif), height=4, width=2)
    assert out[:2].min() == 255 and out[2:].max() == 0


def test_images_cover_the_frame_and_are_cropped_at_the_centre() -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    assert read(encoded(Image.fromarray(pixels)), height=8, width=8).min() == 255


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "cannot be decoded"),
        (encoded(Image.new("RGB", (64, 64), "red"))[:60], "cannot be decoded"),
        (
            encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "JPEG")[:900],
            "cannot be decoded",
        ),
        (encoded(Image.new("1", (20_000, 4))), "too large"),
        (encoded(Image.new("1", (9_000, 9_000))), "too large"),
    ],
)
def test_damaged_and_huge_images_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_image(data)


def test_a_folder_of_mixed_images_loses_nothing_but_the_bad_ones(mixed_folder: Path) -> None:
    images = met(ImageSet(FolderSource(str(mixed_folder)), Preprocess(height=16, width=16)))
    assert {each.image_id for each in images.failures} == {"corrupt.png", "empty.jpg"}
    assert all(each.reason for each in images.failures)
    assert images.n_usable + len(images.failures) == len(images) == 32
    assert images.labels is None and images.class_names == ()
    pixels, kept = images.readable(np.arange(len(images)))
    assert pixels.shape == (30, 16, 16, 3) and kept.sum() == 30
    with pytest.raises(DataError, match=r"(corrupt.png|empty.jpg): cannot be read"):
        images.pixels(np.arange(len(images)))


def test_too_many_bad_images_stop_the_run_and_are_listed(mixed_folder: Path) -> None:
    config = DataConfig(source=FolderData(path=str(mixed_folder)), max_failed_share=0.001, validation_share=0.5)
    for images in open_image_sets(config):
        if {*images.ids} & {"corrupt.png", "empty.jpg"}:
            with pytest.raises(DataError, match=r"max_failed_share(.|\n)*(corrupt.png|empty.jpg)"):
                images.batch(np.arange(len(images)), np.zeros(len(images), int))


def test_class_subfolders_become_sorted_labels(tmp_path: Path) -> None:
    for name in ("zebra", "ant"):
        (tmp_path / name / "deep").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "deep" / "a.png")
    source = FolderSource(str(tmp_path))
    assert source.ids == ["ant/deep/a.png", "zebra/deep/a.png"]
    assert source.class_names == ("ant", "zebra") and source.labels is not None
    assert source.labels.tolist() == [0, 1]
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"loose(.|\n)*loose.png"):
        FolderSource(str(tmp_path))


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder(.|\n)*nowhere"):
        open_image_sets(DataConfig(source=FolderData(path=str(tmp_path / "nowhere"))))
    with pytest.raises(DataError, match="no image files"):
        open_image_sets(DataConfig(source=FolderData(path=str(tmp_path))))


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": encoded(Image.new("RGB", (6, 6), (i, 0, 0))), "path": None} for i in range(20)]
    cells[7] = {"bytes": b"damaged", "path": None}
    table = pa.table({"image": cells, "kind": ["b" if i % 2 else "a" for i in range(20)]})
    pq.write_table(table, tmp_path / "images.parquet")
    return tmp_path / "images.parquet"


def test_a_parquet_file_is_read_with_text_labels(parquet: Path) -> None:
    source = DatasetData(path=str(parquet), label_column="kind")
    config = DataConfig(
        source=source, preprocess=Preprocess(height=6, width=6), validation_share=0.25, max_failed_share=0.5
    )
    train, validation = open_image_sets(config)
    assert train.class_names == ("a", "b")
    assert sorted(usable(train) + usable(validation)) == [f"train/{i:08d}" for i in range(20) if i != 7]
    assert [each.image_id for each in train.failures + validation.failures] == ["train/00000007"]
    for images in (train, validation):
        assert images.labels is not None
        for i, image_id in enumerate(images.ids):
            row = int(image_id.split("/")[1])
            if row == 7:
                continue
            assert images.pixels(np.array([i]))[0, 0, 0, 0] == row
            assert images.labels[i] == row % 2


def test_missing_columns_and_files_are_refused_by_name(parquet: Path) -> None:
    for changes, fragment in (
        ({"label_column": "knd"}, r"label_column(.|\n)*'kind'\?"),
        ({"image_column": "imag"}, r"image_column(.|\n)*'image'\?"),
        ({"path": str(parquet) + "x"}, r"no such file|cannot be opened"),
    ):
        with pytest.raises(DataError, match=fragment):
            open_image_sets(DataConfig(source=DatasetData(**{"path": str(parquet), **changes})))


def test_the_held_out_split_is_the_same_every_time_and_disjoint() -> None:
    config = DataConfig(source=DigitsData(), preprocess=Preprocess(height=8, width=8, mode="L"), validation_share=0.2)
    train, validation = open_image_sets(config)
    assert len(train) + len(validation) == 1797 and 310 < len(validation) < 410
    assert not set(train.ids) & set(validation.ids)
    assert open_image_sets(config)[1].ids == validation.ids


def test_pixels_on_demand_equal_pixels_in_memory(mixed_folder: Path) -> None:
    source, preprocess = FolderSource(str(mixed_folder)), Preprocess(height=16, width=16)
    everything, zeros = np.arange(32), np.zeros(32, int)
    in_memory, on_demand = ImageSet(source, preprocess), ImageSet(source, preprocess, cache_mib=0)
    assert in_memory.in_memory and not on_demand.in_memory
    for _ in range(2):
        one, other = in_memory.batch(everything, zeros), on_demand.batch(everything, zeros)
        assert np.array_equal(one["images"], other["images"])


def test_a_grid_puts_images_row_by_row() -> None:
    images = np.stack([np.full((2, 2, 1), value, np.uint8) for value in (10, 20, 30)])
    grid = np.asarray(image_grid(images, 2, scale=2, gap=1))
    assert grid.shape == (9, 9)
    assert grid[0, 0] == 10 and grid[0, 5] == 20 and grid[5, 0] == 30 and grid[4, 4] == 255


@pytest.mark.parametrize("block", ["4578696600004dd7002a00000008", "4578696600004d4d002a"])
def test_damaged_exif_is_a_reason_not_a_crash(tmp_path: Path, block: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "bad.png", exif=bytes.fromhex(block))
    images = met(ImageSet(FolderSource(str(tmp_path)), Preprocess(height=8, width=8)))
    assert [(each.image_id, "EXIF" in each.reason) for each in images.failures] == [("bad.png", True)]


def test_reasons_are_the_same_every_time(mixed_folder: Path) -> None:
    (mixed_folder / "page.jpg").write_text("<html>")
    sets = [met(ImageSet(FolderSource(str(mixed_folder)), Preprocess(height=8, width=8))) for _ in range(2)]
    assert sets[0].failures == sets[1].failures and len(sets[0].failures) == 3


def test_classes_that_are_numbers_are_in_numeric_order(tmp_path: Path) -> None:
    for name in ("0", "10", "2"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    assert FolderSource(str(tmp_path)).class_names == ("0", "2", "10")


def test_links_are_mentioned_and_a_second_folder_is_called_by_its_name(tmp_path: Path, mixed_folder: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.png").symlink_to(mixed_folder / "grey.png")
    with pytest.raises(DataError, match=r"1 links \(symbolic links: follow them with --data.source.follow_links true"):
        FolderSource(str(tmp_path / "links"))
    source = FolderData(path=str(mixed_folder), validation_path=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"data.source.validation_path: no such folder"):
        open_image_sets(DataConfig(source=source))


def test_names_that_are_not_utf_8_are_kept_readable(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    images = ImageSet(FolderSource(str(tmp_path)), Preprocess(height=4, width=4))
    assert images.ids == ["caf\\xe9.png"] and len(images) == 1
    images.ids[0].encode()


def splits(folder: Path, train: list, validation: list, features: object = None) -> DatasetData:
    """A dataset on disk with two splits of the given labels."""
    from datasets import Dataset

    for first, (name, labels) in enumerate((("train", train), ("validation", validation))):
        cells = [{"bytes": encoded(Image.new("L", (4, 4), 100 * first + i)), "path": None} for i in range(len(labels))]
        rows = Dataset.from_dict({"image": cells, "label": labels})
        if features is not None:
            rows = rows.cast_column("label", features)
        (folder / name).mkdir(parents=True)
        rows.to_parquet(folder / name / "part.parquet")
    return DatasetData(path=str(folder), validation_split="validation", label_column="label")


def test_held_out_labels_follow_the_training_split_s_numbers(tmp_path: Path) -> None:
    source = splits(tmp_path / "a", ["ant", "bee", "cat", "ant"], ["bee", "cat"])
    train, validation = open_image_sets(DataConfig(source=source, preprocess=Preprocess(height=4, width=4)))
    assert train.class_names == validation.class_names == ("ant", "bee", "cat")
    assert validation.labels is not None and validation.labels.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"training split lacks(.|\n)*dog"):
        open_image_sets(DataConfig(source=splits(tmp_path / "b", ["ant", "bee"], ["dog"])))


def test_labels_that_cannot_be_classes_are_refused(tmp_path: Path) -> None:
    from datasets import ClassLabel

    two = ClassLabel(names=["a", "b"])
    with pytest.raises(DataError, match=r"outside its classes(.|\n)*-1\.\.1"):
        open_image_sets(DataConfig(source=splits(tmp_path / "a", [0, 1, -1], [0], two)))
    with pytest.raises(DataError, match="empty cells"):
        open_image_sets(DataConfig(source=splits(tmp_path / "b", [0, None], [0], two)))
    with pytest.raises(DataError, match="holds no classes"):
        open_image_sets(DataConfig(source=splits(tmp_path / "c", [[1], [2]], [[1]])))


def test_one_parquet_file_has_no_held_out_split(parquet: Path) -> None:
    with pytest.raises(DataError, match=r"validation_split(.|\n)*validation_share"):
        open_image_sets(DataConfig(source=DatasetData(path=str(parquet), validation_split="validation")))


def test_an_upright_image_of_the_right_mode_is_not_copied_and_its_pixels_stay():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    before = image.tobytes()
    preprocess = Preprocess(height=4, width=4)
    assert preprocess.prepare(image) is image
    assert np.array_equal(preprocess(image), np.asarray(image))
    Preprocess(height=2, width=3)(image)[:] = 0
    assert image.tobytes() == before


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
def test_reading_a_batch_in_a_thread_starts_no_threads_of_openmp() -> None:
    """A second team of OpenMP's threads shares the cores with the training's own, and makes its waits slower."""
    lines = (
        "import os, threading, numpy as np, torch",
        "from foundation.images.preprocess import to_unit_range",
        "torch.set_num_threads(2)",
        "torch.ones(1 << 20).mul_(2.0)",
        "count, found = (lambda: len(os.listdir('/proc/self/task'))), []",
        "def read():",
        "    before = count()",
        "    to_unit_range(np.zeros((64, 64, 64, 3), np.uint8))",
        "    found.append(count() - before)",
        "    torch.ones(1 << 20).mul_(2.0)",
        "    found.append(count() - before)",
        "thread = threading.Thread(target=read)",
        "thread.start()",
        "thread.join()",
        "print(*found)",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "1"], f"torch in a thread would have started one: {done.stdout}{done.stderr}"
