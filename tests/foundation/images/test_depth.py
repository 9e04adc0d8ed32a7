"""Images of more than 8 bits: white is one value for all images, known or asked for."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from support.image_sets import met, usable
from support.image_tables import encoded

from foundation.errors import ConfigError, DataError
from foundation.images.config import DataConfig, Preprocess
from foundation.images.depth import brightest, require_white
from foundation.images.failures import BadImage
from foundation.images.image_set import open_image_sets
from foundation.images.preprocess import decode_image
from foundation.images.source_config import FolderData

TWELVE = (np.arange(64, dtype=np.uint16) * 65).reshape(8, 8)
"""12-bit values, 0..4095"""


def pixels(data: bytes, white_level: int | None = None) -> list[int]:
    image = Preprocess(height=8, width=8, mode="L", white_level=white_level)(decode_image(data))
    return [int(image.min()), int(image.max())]


def tagged(**tags: int) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[{"photometric": 262, "subfile": 254}[name]] = value
    return encoded(Image.fromarray(TWELVE), "TIFF", tiffinfo=info)


def stack(n: int, subfile: int = 0) -> bytes:
    more = []
    for _ in range(n - 1):
        page = Image.fromarray(TWELVE)
        page.encoderinfo = {"tiffinfo": {254: subfile}}
        more.append(page)
    return encoded(Image.fromarray(TWELVE), "TIFF", save_all=True, append_images=more)


def test_white_level_scales_every_image_alike() -> None:
    for kind in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(TWELVE), kind)
        assert pixels(data) == [0, 16] and pixels(data, 4095) == [0, 255]
        assert brightest(decode_image(data)) == 4095
        assert pixels(encoded(Image.fromarray(TWELVE // 2), kind), 4095) == [0, 127]  # a dark image stays dark
    with pytest.raises(BadImage, match=r"values above white(.|\n)*4095(.|\n)*at most white, 1023"):
        pixels(encoded(Image.fromarray(TWELVE)), 1023)
    assert pixels(encoded(Image.fromarray((TWELVE // 16).astype(np.uint8))), 4095) == [0, 255]  # 8 bits say it


def test_headers_that_say_which_value_is_white_are_believed() -> None:
    raw = TWELVE.astype(">u2").tobytes()
    assert pixels(b"P5 8 8 4095\n" + raw) == pixels(b"P5 8 8 65535\n" + raw, 4095) == [0, 255]
    assert brightest(decode_image(b"P5 8 8 4095\n" + raw)) is None
    assert brightest(decode_image(b"P5 8 8 65535\n" + raw)) == 4095


def test_a_negative_is_shown_as_what_it_is() -> None:
    assert pixels(tagged(photometric=0)) == [239, 255] and pixels(tagged(photometric=0), 4095) == [0, 255]
    assert brightest(decode_image(tagged(photometric=0))) == 4095
    first = Preprocess(height=8, width=8, mode="L", white_level=4095)(decode_image(tagged(photometric=0)))[0, 0, 0]
    assert first == 255


def test_several_pages_and_previews_are_refused_and_smaller_versions_are_not() -> None:
    with pytest.raises(BadImage, match=r"holds 3 pages(.|\n)*each page as a file"):
        decode_image(stack(3))
    assert pixels(stack(3, subfile=1)) == [0, 16]
    with pytest.raises(BadImage, match=r"small preview, as in raw photos"):
        decode_image(tagged(subfile=1))


@pytest.mark.parametrize(
    ("kind", "reason"), [(np.float32, "32-bit floating point numbers"), (np.int32, "32-bit or signed whole numbers")]
)
def test_numbers_without_a_known_white_are_named(kind: type, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        pixels(encoded(Image.fromarray(TWELVE.astype(kind)), "TIFF"))


def test_colour_of_16_bits_is_known_to_be_cut_to_8() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = np.stack([TWELVE] * 3, -1).astype(">u2")
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))) + chunk(b"IEND", b"")
    largest = brightest(decode_image(data))
    assert largest is not None and largest < 4096
    with pytest.raises(BadImage, match=r"16 bits a colour(.|\n)*white_level cannot apply"):
        pixels(data, 4095)


def test_a_set_that_would_be_nearly_black_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(TWELVE // (i + 1)).save(tmp_path / f"{i}.png")
    Image.new("L", (8, 8), 200).save(tmp_path / "x.png")
    source = FolderData(path=str(tmp_path))

    def sets(white_level: int | None) -> list[int]:
        preprocess = Preprocess(height=8, width=8, mode="L", white_level=white_level)
        train, _ = open_image_sets(DataConfig(source=source, preprocess=preprocess, validation_share=0.3))
        return [int(train.pixels(np.arange(len(train))).max())]

    with pytest.raises(DataError, match=r"white_level 4095(.|\n)*white_level 65535"):
        sets(None)
    assert sets(4095)[0] > 60 and sets(65_535)[0] > 10
    Image.fromarray(TWELVE * 10).save(tmp_path / "bright.png")
    assert sets(None)


def test_the_likely_white_is_that_of_the_bits_in_use() -> None:
    for largest, likely in ((4000, 4095), (1000, 1023), (3, 511)):
        with pytest.raises(DataError, match=rf"white_level {likely} for"):
            require_white([None, largest], None)
    require_white([None, 9000], None)
    require_white([None], None)
    with pytest.raises(ConfigError, match="white_level"):
        Preprocess(white_level=100)


def test_a_phone_s_large_jpeg_is_decoded_smaller_and_other_large_images_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from foundation.images import preprocess

    monkeypatch.setattr(preprocess, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(preprocess, "_MAX_JPEG_PIXELS", 40_000)
    red = Image.new("RGB", (190, 200), (200, 10, 10))
    image = decode_image(encoded(red, "JPEG"), 10_000)
    assert image.size == (95, 100) and np.asarray(image)[0, 0, 0] > 190
    for data in (encoded(red), encoded(Image.new("RGB", (210, 200)), "JPEG")):
        with pytest.raises(BadImage, match=r"too large(.|\n)*at most 10,000 pixels(.|\n)*data.max_megapixels"):
            decode_image(data, 10_000)
    assert decode_image(encoded(red), 50_000).size == (190, 200)


def test_the_limit_is_a_field_of_the_data(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("L", (1100, 1000), i).save(tmp_path / f"{i}.png")
    source = FolderData(path=str(tmp_path))
    train, _ = open_image_sets(DataConfig(source=source, preprocess=Preprocess(height=8, width=8), max_megapixels=1))
    with pytest.raises(DataError, match=r"at most 1,000,000 pixels"):
        met(train)
    train, _ = open_image_sets(DataConfig(source=source, preprocess=Preprocess(height=8, width=8), max_megapixels=2))
    assert usable(train) == train.ids and len(train) == 2
