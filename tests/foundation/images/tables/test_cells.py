"""Every kind of column in which people keep images: each is read, or refused with the true reason."""

import base64
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.image_tables import arrays, encoded, opened, png, reds, write_parquet

from foundation.errors import DataError
from foundation.storage import retrying

VALUES = [40, 60, 80, 100]
IMAGES = arrays()
FILES = [png(value) for value in VALUES]
BASE64 = [base64.b64encode(data).decode() for data in FILES]
PATHS = [f"img/{i}.png" for i in range(4)]
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def nested(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.list_(pa.list_(kind)))


def fixed() -> pa.Array:
    values = pa.array(np.concatenate([each.ravel() for each in IMAGES]))
    for size in (3, 6, 6):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


READ: dict[str, Any] = {
    "bytes": pa.array(FILES),
    "large bytes": pa.array(FILES, pa.large_binary()),
    "bytes view": pa.array(FILES, pa.binary_view()),
    "dictionary of bytes": pa.array(FILES).dictionary_encode(),
    "structs of bytes": pa.array([{"bytes": data, "path": None} for data in FILES], STRUCT),
    "structs of paths": pa.array([{"bytes": None, "path": path} for path in PATHS], STRUCT),
    "paths": pa.array(PATHS),
    "paths view": pa.array(PATHS, pa.string_view()),
    "dictionary of paths": pa.array(PATHS).dictionary_encode(),
    "Windows paths": pa.array([path.replace("/", "\\") for path in PATHS]),
    "lists of one file": pa.array([[data] for data in FILES]),
    "lists of one struct": pa.array([[{"bytes": data, "path": None}] for data in FILES]),
    "lists of one path": pa.array([[path] for path in PATHS]),
    "whole numbers, channels last": pa.array([each.tolist() for each in IMAGES]),
    "whole numbers, channels first": pa.array([each.transpose(2, 0, 1).tolist() for each in IMAGES]),
    "uint8": pa.array([each.tolist() for each in IMAGES], nested(pa.uint8())),
    "large lists": pa.array([each[..., 0].tolist() for each in IMAGES], pa.large_list(pa.list_(pa.int16()))),
    "lists of fixed sizes": fixed(),
    "lists of one image of numbers": pa.array([[each.tolist()] for each in IMAGES]),
    "fractions up to 1": pa.array([(each / 255).tolist() for each in IMAGES]),
    "float32, channels first": pa.array(
        [(each.transpose(2, 0, 1) / 255).tolist() for each in IMAGES], nested(pa.float32())
    ),
    "fractions up to 255": pa.array([(each * 1.0).tolist() for each in IMAGES]),
    ".npy": pa.array([npy(each) for each in IMAGES]),
    ".npy of fractions": pa.array([npy(each / 255) for each in IMAGES]),
    "data URIs": pa.array([f"data:image/png;base64,{text}" for text in BASE64]),
    "base64": pa.array(BASE64),
    "base64 for addresses": pa.array([text.replace("+", "-").replace("/", "_").rstrip("=") for text in BASE64]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for path, data in zip(PATHS, FILES, strict=True):
        (tmp_path / path).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("kind", READ)
def test_every_kind_of_column_is_read(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # paths are relative to the file that names them
    assert reds(opened(write_parquet(folder / "x.parquet", image=READ[kind]))) == VALUES


@pytest.mark.parametrize("kind", ["Image", "Array3D", "Array2D", "List(Image)"])
def test_columns_that_datasets_declares_are_read_from_parquet_and_from_disk(tmp_path: Path, kind: str) -> None:
    import datasets

    feature, values = {
        "Image": (datasets.Image(), [Image.fromarray(each) for each in IMAGES]),
        "Array3D": (datasets.Array3D((6, 6, 3), "uint8"), IMAGES),
        "Array2D": (datasets.Array2D((6, 6), "float32"), [each[..., 0] / 255 for each in IMAGES]),
        "List(Image)": (datasets.List(datasets.Image()), [[Image.fromarray(each)] for each in IMAGES]),
    }[kind]
    rows = datasets.Dataset.from_dict({"image": values}, features=datasets.Features({"image": feature}))
    rows.to_parquet(str(tmp_path / "x.parquet"))
    rows.save_to_disk(str(tmp_path / "saved"))
    assert reds(opened(tmp_path / "x.parquet")) == reds(opened(tmp_path / "saved")) == VALUES


GONE = "the cell names a file that is not there"
NOT_READ: dict[str, tuple[Any, str]] = {
    "paths of nothing": (pa.array(["img/9.png"]), GONE),
    "captions": (pa.array(["a cat on a mat, " * 30]), GONE),
    "empty texts": (pa.array([""]), "text that is no path"),
    "web addresses": (pa.array(["https://example.org/0.png"]), "holds a web address(.|\n)*allow_download true"),
    "addresses of clouds": (pa.array(["s3://bucket/0.png"]), "an address of s3://"),
    "files in archives": (pa.array(["zip://0.png::/a.zip"]), "an address of zip://"),
    "damaged data URIs": (pa.array(["data:image/png;base64,abc"]), "damaged base64"),
    "lists of two": (pa.array([[FILES[0], FILES[1]]]), "holds 2 images"),
    "empty lists": (pa.array([[]], pa.list_(pa.binary())), "an empty list"),
    "empty cells": (pa.array([None], pa.binary()), "the cell is empty"),
    "structs of nothing": (pa.array([{"bytes": None, "path": None}], STRUCT), "neither an image nor the path"),
    "flat lists": (pa.array([[40] * 36]), "not height x width"),
    "rows of different lengths": (pa.array([[[40], [40, 40]]]), "rows of different lengths(.|\n)*1 to 2"),
    "gaps in numbers": (pa.array([[[40, None]]]), "numbers with gaps"),
    "no numbers": (pa.array([np.full((6, 6), np.nan).tolist()]), "out of range(.|\n)*nan"),
    "two orders of channels": (pa.array([np.full((3, 6, 3), 99).tolist()]), "channels may be first or last"),
    "no channels": (pa.array([np.full((6, 6, 6), 99).tolist()]), "no axis has 1, 3 or 4 channels"),
    "HEIC": (pa.array([b"\0\0\0\x18ftypheic" + bytes(30)]), "HEIC(.|\n)*convert it to PNG or JPEG"),
    "cut .npy": (pa.array([npy(IMAGES[0])[:-9]]), r"no complete \.npy file"),
}


@pytest.mark.parametrize("kind", NOT_READ)
def test_a_cell_that_is_no_image_has_the_true_reason(folder: Path, kind: str) -> None:
    column, reason = NOT_READ[kind]
    found = reds(opened(write_parquet(folder / "x.parquet", image=column)))[0]
    assert isinstance(found, str)
    with pytest.raises(DataError, match=reason):
        raise DataError(found)


@pytest.mark.parametrize("column", [pa.array([1, 2]), pa.array([{"url": "x"}]), pa.nulls(2), pa.array([[{"a": 1}]])])
def test_a_column_of_another_type_is_refused_when_it_is_opened(tmp_path: Path, column: pa.Array) -> None:
    with pytest.raises(DataError, match=r"data.source.image_column: holds no images"):
        opened(write_parquet(tmp_path / "x.parquet", image=column))


def test_a_path_is_relative_to_its_file_first_and_to_the_dataset_second(tmp_path: Path) -> None:
    for i, part in enumerate(("a", "b")):
        write_parquet(tmp_path / f"data/{part}/x.parquet", image=["0.png", "common.png"])
        (tmp_path / f"data/{part}/0.png").write_bytes(png(i))
    (tmp_path / "0.png").write_bytes(png(8))
    (tmp_path / "common.png").write_bytes(png(9))
    with pytest.raises(DataError, match=r"images and tables(.|\n)*x.parquet(.|\n)*type folder"):
        opened(tmp_path)
    card = "---\nconfigs:\n- config_name: default\n  data_files: data/*/x.parquet\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert reds(opened(tmp_path)) == [0, 9, 1, 9]


def test_paths_that_datasets_wrote_are_relative_to_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(folder)
    (folder / "elsewhere").mkdir()
    rows = datasets.Dataset.from_dict({"image": PATHS}).cast_column("image", datasets.Image())
    rows.to_parquet("elsewhere/x.parquet")
    rows.save_to_disk("elsewhere/saved")
    assert reds(opened(Path("elsewhere/x.parquet"))) == reds(opened(Path("elsewhere/saved"))) == VALUES


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = 200 if self.path.endswith((".png", ".html")) else 404
        self.send_response(status)
        self.end_headers()
        self.wfile.write(png(40) if self.path.endswith(".png") else b"<html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_web_addresses_are_fetched_where_that_is_allowed(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying.time, "sleep", lambda _: None)
    addresses = [f"{server}/0.png", f"{server}/none", f"{server}/a.html", "http://127.0.0.1:1/x.png"]
    source = opened(write_parquet(tmp_path / "x.parquet", image=addresses), allow_download=True)
    image, none, page, refused = reds(source)
    assert image == 40 and "404" in str(none) and "an HTML page" in str(page) and "refused" in str(refused)


def test_an_image_in_a_struct_is_named_with_a_dot(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", row=[{"img": data, "label": "a"} for data in FILES])
    source = opened(path, image_column="row.img", label_column="row.label")
    assert reds(source) == VALUES and source.class_names == ("a",)
    with pytest.raises(DataError, match=r"no such column(.|\n)*row.img"):
        opened(path, image_column="row.image")


def test_jpeg_bytes_in_a_column_of_fixed_length_are_read(tmp_path: Path) -> None:
    data = encoded(Image.new("L", (6, 6), 40), "JPEG")
    assert reds(opened(write_parquet(tmp_path / "x.parquet", image=pa.array([data], pa.binary(len(data)))))) == [40]
