"""Layouts of images as people have them: what is used, what fails, what is passed over and what is refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from support.image_sets import met
from support.image_tables import encoded, hub_clone, img2dataset_members, png, write_parquet, write_tar

from foundation.errors import DataError
from foundation.images.config import DataConfig, Preprocess
from foundation.images.image_set import open_image_sets, open_splits
from foundation.images.source_config import ArchiveData, DatasetData, DataSource, FolderData

HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(50)


@dataclass
class Layout:
    """What is expected of a layout.

    Attributes:
        write: makes it in a folder.
        works: sources with the numbers of used and failed images, and the classes.
        refused: sources with a pattern of the refusal.
    """

    write: Callable[[Path], object]
    works: list[tuple[Callable[[str], DataSource], int, int, tuple[str, ...]]]
    refused: list[tuple[Callable[[str], DataSource], str]]


def dataset(name: str = "", **settings: object) -> Callable[[str], DataSource]:
    return lambda folder: DatasetData(path=f"{folder}/{name}", **settings)  # type: ignore[arg-type]


def archives(**settings: object) -> Callable[[str], DataSource]:
    return lambda folder: ArchiveData(path=folder, **settings)  # type: ignore[arg-type]


def folder_of(name: str = "", **settings: object) -> Callable[[str], DataSource]:
    return lambda folder: FolderData(path=f"{folder}/{name}", **settings)  # type: ignore[arg-type]


def images(folder: Path, n: int, ending: str = "png") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{i}.{ending}").write_bytes(encoded(Image.new("L", (6, 6), i), "JPEG" if ending == "jpg" else "PNG"))
    return [f"{i}.{ending}" for i in range(n)]


def write_clone(folder: Path) -> None:
    hub_clone(folder, list(range(10)), ["cat", "dog"] * 5)
    (folder / ".gitattributes").write_text("*.parquet filter=lfs")


def write_saved(folder: Path) -> None:
    cells = {"image": [{"bytes": png(i), "path": None} for i in range(10)], "label": [0, 1] * 5}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = datasets.Dataset.from_dict(cells, features=features)
    datasets.DatasetDict({"train": rows.select(range(8)), "test": rows.select([8, 9])}).save_to_disk(str(folder))


def write_webdataset(folder: Path) -> None:
    for shard in range(2):
        write_tar(folder / f"{shard:05d}.tar", img2dataset_members(range(30 * shard, 30 * shard + 30)))
        write_parquet(folder / f"{shard:05d}.parquet", url=["https://example.org/1.jpg"] * 30, key=list("x" * 30))
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 30}')


def write_img2dataset_parquet(folder: Path) -> None:
    keys = [f"{i:09d}" for i in range(10)]
    write_parquet(folder / "00000.parquet", jpg=[png(i) for i in range(10)], caption=["a cat"] * 10, key=keys)


def write_coco(folder: Path) -> None:
    names = images(folder / "train2017", 10, "jpg")
    (folder / "annotations").mkdir()
    about = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "annotations/instances_train2017.json").write_text(json.dumps(about))


def write_metadata(folder: Path) -> None:
    rows = [f"{name},{'cat' if i % 2 else 'dog'}" for i, name in enumerate(images(folder, 10))]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))


def write_csv(folder: Path) -> None:
    rows = [f"img/{name};0{i % 2}" for i, name in enumerate(images(folder / "img", 10))]
    (folder / "train.csv").write_text("\n".join(["image;label", *rows, "img/none.png;00"]))


def write_paths(folder: Path) -> None:
    paths = [f"img/{name}" for name in images(folder / "img", 10)]
    write_parquet(folder / "train.parquet", image=[*paths, "s3://bucket/x.png"], label=["a"] * 11)


def write_tiff(folder: Path) -> None:
    folder.mkdir()
    for i in range(10):
        values = np.random.default_rng(i).integers(0, 4096, (6, 6), np.uint16)
        Image.fromarray(values).save(folder / f"{i}.tif")
    Image.fromarray(values).save(folder / "stack.tif", save_all=True, append_images=[Image.fromarray(values)])


def write_phone(folder: Path) -> None:
    images(folder, 10, "jpg")
    for i in range(5):
        (folder / f"IMG_{i}.HEIC").write_bytes(HEIC)
    (folder / "shared.jpg").write_bytes(HEIC)
    (folder / "IMG_9.MOV").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(30))


TIFF_8 = Preprocess(height=6, width=6, mode="L", white_level=4095)
LAYOUTS = {
    "clone of the hub": Layout(
        write_clone,
        [(dataset(label_column="label"), 10, 0, ("cat", "dog"))],
        [(dataset(split="test"), r"data.source.split: no such split"), (folder_of(), "no image files")],
    ),
    "save_to_disk": Layout(
        write_saved,
        [(dataset(label_column="label", validation_split="test"), 8, 0, ("cat", "dog"))],
        [(dataset(validation_split="val"), r"validation_split: no such split(.|\n)*test, train")],
    ),
    "img2dataset, tar": Layout(
        write_webdataset,
        [(archives(), 60, 0, ()), (archives(label_field="json.label"), 60, 0, ("0", "1"))],
        [
            (archives(label_field="json"), "JSON objects, not classes(.|\n)*json.label"),
            (archives(label_field="txt"), "hardly classes"),
            (dataset("00000.tar"), "is a tar archive, not a table(.|\n)*type archives"),
        ],
    ),
    "img2dataset, parquet": Layout(
        write_img2dataset_parquet,
        [(dataset(image_column="jpg"), 10, 0, ())],
        [(dataset(), r"no such column(.|\n)*--data.source.image_column jpg")],
    ),
    "COCO": Layout(
        write_coco,
        [(folder_of("train2017"), 10, 0, ())],
        [
            (dataset(), r"images and tables(.|\n)*instances_train2017.json"),
            (dataset("annotations/instances_train2017.json"), "with the lists images, annotations, categories"),
        ],
    ),
    "metadata.csv": Layout(write_metadata, [(dataset(label_column="label"), 10, 0, ("cat", "dog"))], []),
    "CSV of paths": Layout(
        write_csv,
        [(dataset(name, label_column="label"), 10, 1, ("00", "01")) for name in ("", "train.csv")],
        [(folder_of("train.csv"), "is a table(.|\n)*type dataset")],
    ),
    "parquet of paths": Layout(
        write_paths,
        [(dataset("train.parquet", label_column="label"), 10, 1, ("a",))],
        [(folder_of("train.parquet"), "is a table(.|\n)*type dataset")],
    ),
    "scientific TIFF": Layout(write_tiff, [(folder_of(), 10, 1, ())], []),
    "phone": Layout(write_phone, [(folder_of(), 10, 1, ())], [(dataset("IMG_0.HEIC"), "is HEIC, not a table")]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_real_layout_is_used_or_refused_with_a_way_out(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    layout, folder = LAYOUTS[name], tmp_path / "images"
    layout.write(folder)
    preprocess = TIFF_8 if name == "scientific TIFF" else Preprocess(height=6, width=6)
    for source, used, failed, classes in layout.works:
        config = DataConfig(
            source=source(str(folder)), preprocess=preprocess, max_failed_share=0.9, validation_share=0.4
        )
        splits = open_splits(config)
        sets = open_image_sets(config)
        has_part = splits["train"].ids[0] == splits["validation"].ids[0].replace("test", "train")
        found = [met(each) for each in ([sets[0]] if has_part else sets)]
        assert sum(each.n_usable for each in found) == used
        assert sum(len(part.failures) for part in found) == failed
        assert sets[0].class_names == classes
    for source, reason in layout.refused:
        with pytest.raises(DataError, match=reason):
            open_splits(DataConfig(source=source(str(folder))))


def test_the_reasons_of_failures_are_the_causes(tmp_path: Path) -> None:
    reasons = {}
    for write, source in ((write_csv, dataset("train.csv")), (write_paths, dataset("train.parquet"))):
        write(tmp_path / write.__name__)
        config = DataConfig(source=source(str(tmp_path / write.__name__)), max_failed_share=0.9)
        reasons[write] = next(each for part in open_image_sets(config) for each in met(part).failures)
    assert reasons[write_csv].code == "missing" and "img/none.png" in reasons[write_csv].reason
    assert reasons[write_paths].code == "remote" and "s3://" in reasons[write_paths].reason
    write_tiff(tmp_path / "tiff")
    source = FolderData(path=str(tmp_path / "tiff"))
    with pytest.raises(DataError, match=r"white_level 4095(.|\n)*white_level 65535"):
        open_image_sets(DataConfig(source=source, preprocess=Preprocess(mode="L"), max_failed_share=0.9))
    write_phone(tmp_path / "phone")
    config = DataConfig(source=FolderData(path=str(tmp_path / "phone")), max_failed_share=0.9)
    failures = [each for part in open_image_sets(config) for each in met(part).failures]
    assert len(failures) == 1 and "HEIC" in failures[0].reason and "convert it" in failures[0].reason
