"""TIFF files of several channels and of 16-bit colours, written by tifffile."""

import io
import sys
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from support.image_tables import encoded

from foundation.errors import DataError
from foundation.images.array_image import ArrayImage
from foundation.images.config import Preprocess
from foundation.images.failures import BadImage
from foundation.images.preprocess import decode_any, decode_image

DEEP = np.random.default_rng(0).integers(0, 65_536, (12, 10, 5)).astype(np.uint16)
CONTIG = {"planarconfig": "contig", "photometric": "minisblack"}


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def read(data: bytes, channels: int = 5, **more: Any) -> np.ndarray:
    preprocess = Preprocess(height=12, width=10, mode="channels", channels=channels, **{"bits": 16, **more})
    return preprocess(decode_any(data, arrays=True))


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (DEEP, {**CONTIG, "compression": "zlib"}),
        (DEEP.transpose(2, 0, 1), {"planarconfig": "separate", "photometric": "minisblack"}),
        (DEEP, {}),  # tifffile writes a page for each row, and the shape beside them
        (DEEP.transpose(2, 0, 1), {}),  # and a page for each channel
        (DEEP, {**CONTIG, "bigtiff": True}),
        (DEEP, {**CONTIG, "byteorder": ">"}),
    ],
)
def test_every_layout_of_channels_is_read_in_full(values: np.ndarray, options: dict[str, Any]) -> None:
    assert np.array_equal(read(tiff(values, **options)), DEEP)


def test_colours_of_sixteen_bits_are_not_cut() -> None:
    data = tiff(DEEP[..., :3], photometric="rgb")
    assert decode_image(data).mode == "RGB"  # of 8 bits
    assert np.array_equal(Preprocess(height=12, width=10, bits=16)(decode_any(data, arrays=True)), DEEP[..., :3])
    with_alpha = tiff(DEEP[..., :4] | np.uint16(1), photometric="rgb", extrasamples=["unassalpha"])
    pixels = Preprocess(height=12, width=10, mode="RGBA", bits=16)(decode_any(with_alpha, arrays=True))
    assert np.array_equal(pixels, DEEP[..., :4] | np.uint16(1))


def test_files_that_pillow_reads_in_full_stay_its_images() -> None:
    rgb = Image.fromarray(DEEP[..., :3].astype(np.uint8))
    for image in (rgb, Image.fromarray(DEEP[..., 0]), rgb.convert("L")):
        assert isinstance(decode_any(encoded(image, "TIFF"), arrays=True), Image.Image)
    assert isinstance(decode_any(tiff(DEEP, **CONTIG), arrays=True), ArrayImage)
    floats = Image.fromarray(DEEP[..., 0].astype(np.float32))
    assert np.array_equal(read(encoded(floats, "TIFF"), 1, value_range=(0.0, 65_535.0))[..., 0], DEEP[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(orientation: int) -> None:
    square = DEEP[:10]
    found = decode_any(tiff(square, **CONTIG, extratags=[(274, 3, 1, orientation, True)]), arrays=True)
    exif = Image.Exif()
    exif[274] = orientation
    one = Image.open(io.BytesIO(encoded(Image.fromarray(square[..., 1].astype(np.uint8)), "PNG", exif=exif)))
    expected = np.asarray(ImageOps.exif_transpose(one))
    assert isinstance(found, ArrayImage) and np.array_equal(found.values[..., 1].astype(np.uint8), expected)


def test_white_is_zero_is_turned_round() -> None:
    inverted = tiff(DEEP[..., :2], planarconfig="contig", photometric="miniswhite")
    assert np.array_equal(read(inverted, 2), 65_535 - DEEP[..., :2])


def test_files_that_may_mean_several_things_are_refused() -> None:
    stack = tiff(DEEP[None].repeat(3, 0), **CONTIG)
    with pytest.raises(BadImage, match="not one image of rows, columns and channels"):
        read(stack)
    several = io.BytesIO()
    with tifffile.TiffWriter(several) as writer:
        writer.write(DEEP[..., 0], metadata=None)
        writer.write(DEEP[:5, :5, 0], metadata=None)
    with pytest.raises(BadImage, match="holds 2 images"):
        read(several.getvalue())
    premultiplied = tiff(DEEP[..., :4], photometric="rgb", extrasamples=["assocalpha"])
    with pytest.raises(BadImage, match="multiplied by their opacity"):
        read(premultiplied, 4)
    cmyk = tiff(DEEP[..., :4], photometric="separated", planarconfig="contig")
    with pytest.raises(BadImage, match=r"colours of another kind(.|\n)*separated"):
        read(cmyk, 4)
    data = tiff(DEEP, **CONTIG)
    with pytest.raises(BadImage, match="cannot be decoded"):
        read(data[: len(data) // 2])
    with pytest.raises(BadImage, match="too large"):
        decode_any(data, 50, arrays=True)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=r"need tifffile(.|\n)*tessera-images\[tiff\]"):
        read(tiff_bytes())
    grey = encoded(Image.fromarray(DEEP[..., 0]), "TIFF")
    assert np.array_equal(read(grey, 1)[..., 0], DEEP[..., 0])


def tiff_bytes() -> bytes:
    """A file of two channels, by hand."""
    import struct

    tags = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 16), (262, 3, 1, 1), (273, 4, 1, 100), (277, 3, 1, 2)]
    tags += [(278, 3, 1, 2), (279, 4, 1, 16)]
    entries = b"".join(struct.pack("<HHI", *tag[:3]) + struct.pack("<I", tag[3]) for tag in tags)
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    return head.ljust(100, b"\0") + bytes(16)
