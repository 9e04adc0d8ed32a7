"""Files are named as what they are, by their first bytes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.image_tables import encoded

from foundation.errors import DataError
from foundation.images.kinds import HEAD_BYTES, kind_of, way_to_open
from foundation.images.preprocess import decode_image

WRITTEN = {
    **{"PNG": "PNG", "JPEG": "JPEG", "GIF": "GIF", "WEBP": "WebP", "TIFF": "TIFF", "BMP": "BMP", "ICO": "ICO"},
    **{"JPEG2000": "JPEG 2000", "AVIF": "AVIF", "PPM": "a portable pixmap (PBM, PGM, PPM)"},
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_formats_that_are_read_are_known_and_read(kind: str) -> None:
    data = encoded(Image.fromarray(np.zeros((20, 20, 3), np.uint8)), kind)
    found = kind_of(data[:HEAD_BYTES])
    assert found is not None and found.is_read and found.name == WRITTEN[kind]
    assert decode_image(data).size[0] > 0


FOREIGN = {
    "HEIC": b"\0\0\0\x24ftypmif1\0\0\0\0mif1heic",
    "raw photo (CR3)": b"\0\0\0\x18ftypcrx \0\0\0\x01",
    "raw photo (CR2)": b"II*\0\x10\0\0\0CR\x02\0",
    "video (MP4": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2mp41",
    "JPEG XL": b"\xff\x0a\xfa\x7f",
    "SVG": b'<?xml version="1.0"?>\n<!-- by hand -->\n<svg xmlns="x">',
    "HTML": b"\xef\xbb\xbf <!DOCTYPE html>",
    "PDF": b"%PDF-1.7",
    "Photoshop": b"8BPS\0\x01",
    "OpenEXR": b"\x76\x2f\x31\x01",
    "DICOM": bytes(128) + b"DICM",
    "tar archive": bytes(257) + b"ustar",
    "zip archive": b"PK\x03\x04",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
    "AppleDouble": b"\0\x05\x16\x07\0\x02",
    "parquet": b"PAR1",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_kinds_are_named_with_the_way_out(name: str) -> None:
    kind = kind_of(FOREIGN[name])
    assert kind is not None and name in kind.name and kind.fix
    with pytest.raises(DataError) as refused:
        decode_image(FOREIGN[name])
    assert kind.name in str(refused.value) and kind.fix in str(refused.value)


@given(st.binary(max_size=300))
def test_any_bytes_have_a_kind_or_none(data: bytes) -> None:
    kind = kind_of(data)
    assert kind is None or kind.name


def test_a_file_given_as_a_folder_says_how_to_use_it() -> None:
    assert way_to_open(Path("x.TAR")) == ("a tar archive", "--data.source.type archives reads it")
    assert "type dataset" in way_to_open(Path("x.parquet"))[1] and way_to_open(Path("x"))[0] == "a file"
