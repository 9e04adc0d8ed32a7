"""Images of any number of channels and of 16 bits: nothing is cut, mixed up or guessed."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from support.image_tables import encoded

from foundation.config import from_dict, to_dict
from foundation.config_fields import without_defaults
from foundation.errors import ConfigError, DataError
from foundation.images.array_image import ArrayImage
from foundation.images.config import Preprocess
from foundation.images.failures import BadImage
from foundation.images.preprocess import decode_any, to_pixels, to_unit_range
from foundation.images.source_config import ArchiveData, DatasetData, FolderData
from foundation.images.sources import open_sources
from foundation.images.views import TEN_CROP, view_pixels

DEEP = np.random.default_rng(0).integers(0, 65_536, (12, 10, 4)).astype(np.uint16)


def asked(channels: int = 4, side: tuple[int, int] = (12, 10), **more: Any) -> Preprocess:
    return Preprocess(height=side[0], width=side[1], mode="channels", channels=channels, **{"bits": 16, **more})


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def read(data: bytes, preprocess: Preprocess) -> np.ndarray:
    return preprocess(decode_any(data, arrays=True))


def test_an_array_of_the_asked_size_keeps_every_value_wherever_its_channels_are() -> None:
    for values in (DEEP, DEEP.transpose(2, 0, 1), DEEP[None], DEEP.astype(">u2")):
        pixels = read(npy(values), asked())
        assert pixels.dtype == np.uint16 and np.array_equal(pixels, DEEP)
    grey = read(npy(DEEP[..., 0]), Preprocess(height=12, width=10, mode="L", bits=16))
    assert np.array_equal(grey[..., 0], DEEP[..., 0])


def test_both_ways_between_pixels_and_the_unit_range_are_exact() -> None:
    every = np.arange(65_536, dtype=np.uint16).reshape(1, 256, 256, 1)
    images = to_unit_range(every)
    assert float(images.min()) == -1 and float(images.max()) == 1
    assert np.array_equal(to_pixels(images, 16), every)
    assert to_pixels(images, 8).dtype == np.uint8


def test_channels_are_resized_as_pillow_resizes_one() -> None:
    preprocess = asked(side=(6, 7), resize="lanczos")
    pixels = preprocess(DEEP)
    for i in range(4):
        one = Image.fromarray(DEEP[..., i].astype(np.float32))
        expected = np.asarray(ImageOps.fit(one, (7, 6), Image.Resampling.LANCZOS, centering=(0.5, 0.5)))
        assert np.array_equal(pixels[..., i], np.rint(expected.clip(0, 65_535)).astype(np.uint16))
    rgb = DEEP[..., :3].astype(np.uint8)
    plain = Preprocess(height=6, width=7, resize="bilinear")(Image.fromarray(rgb)).astype(int)
    assert abs(asked(3, (6, 7), bits=8, resize="bilinear")(rgb) - plain).max() <= 1


def test_views_and_crops_of_arrays_are_those_of_images() -> None:
    views = view_pixels(asked(), ArrayImage(DEEP), TEN_CROP)
    assert views.shape == (10, 12, 10, 4) and np.array_equal(views[1], DEEP[:, ::-1])
    assert np.array_equal(asked().crop_to_multiple(DEEP, 4), DEEP[:, 1:9])
    with pytest.raises(DataError, match=r"too small(.|\n)*10 x 12"):
        asked().crop_to_multiple(DEEP, 16)


def test_eight_bits_fill_sixteen_and_white_scales_both() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wide = Preprocess(height=16, width=16, mode="L", bits=16)
    assert np.array_equal(wide(Image.fromarray(ramp))[..., 0], ramp.astype(np.uint16) * 257)
    twelve = (ramp.astype(np.uint16) * 16 + 15)[..., None].repeat(2, 2)
    pixels = asked(2, (16, 16), white_level=4095)(twelve)
    assert pixels.max() == 65_535 and np.array_equal(pixels, np.rint(twelve * (65_535 / 4095)).astype(np.uint16))
    with pytest.raises(BadImage, match=r"outside black and white(.|\n)*4095(.|\n)*0 to 1000 \(data.preprocess.white"):
        asked(2, (16, 16), white_level=1000)(twelve)


def test_a_grey_png_or_tiff_keeps_its_sixteen_bits() -> None:
    wide = Preprocess(height=12, width=10, mode="L", bits=16)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(read(encoded(Image.fromarray(DEEP[..., 0]), kind), wide)[..., 0], DEEP[..., 0])
    colour = Preprocess(height=12, width=10, bits=16)
    assert np.array_equal(read(encoded(Image.fromarray(DEEP[..., 0])), colour), DEEP[..., :1].repeat(3, 2))


@pytest.mark.parametrize("code", ["RGB;16B", "ppm", "jp2"])
def test_colours_that_pillow_cuts_to_eight_bits_are_refused_with_sixteen(code: str) -> None:
    pixels = DEEP[..., :3].astype(">u2").tobytes()
    if code == "ppm":
        data = b"P6 10 12 65535\n" + pixels
    elif code == "jp2":
        data = encoded(Image.fromarray(DEEP[..., :3].astype(np.uint8)), "JPEG2000")
    else:
        data = _png_of_deep_colours()
    with pytest.raises(BadImage, match=r"Pillow reads only the upper 8(.|\n)*TIFF or .npy"):
        read(data, Preprocess(height=12, width=10, bits=16))
    assert read(data, Preprocess(height=12, width=10, mode="RGBA")).dtype == np.uint8
    if code.startswith("RGB"):
        with pytest.raises(BadImage, match="white_level cannot apply"):
            read(data, Preprocess(height=12, width=10, mode="RGBA", white_level=4095))
    fine = b"P6 10 12 255\n" + DEEP[..., :3].astype(np.uint8).tobytes()
    assert read(fine, Preprocess(height=12, width=10, bits=16)).shape == (12, 10, 3)


def _png_of_deep_colours() -> bytes:
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP[..., :3])
    head = struct.pack(">IIBBBBB", 10, 12, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_arrays_that_can_be_read_in_two_ways_are_refused_until_the_axis_is_named() -> None:
    both = np.zeros((4, 9, 4), np.uint16)
    with pytest.raises(BadImage, match=r"channels may be first or last(.|\n)*4 x 9 x 4(.|\n)*channel_axis first, or"):
        asked()(both)
    assert asked(side=(9, 4), channel_axis="first")(both).shape == (9, 4, 4)
    with pytest.raises(BadImage, match=r"another number of channels(.|\n)*12 x 10 x 4(.|\n)*3 \(data.preprocess.mode"):
        asked(3)(DEEP)
    with pytest.raises(BadImage, match=r"another number of channels(.|\n)*12 x 10"):
        asked()(DEEP[..., 0])
    with pytest.raises(BadImage, match="not height x width"):
        asked()(np.zeros((2, 3, 4, 5), np.uint16))


def test_numbers_of_other_types_need_a_range_and_must_lie_in_it() -> None:
    floats = DEEP.astype(np.float64) / 65_535
    with pytest.raises(BadImage, match=r"holds float64(.|\n)*values from(.|\n)*--data.preprocess.value_range"):
        asked()(floats)
    assert np.array_equal(asked(value_range=(0.0, 1.0))(floats), DEEP)
    signed = DEEP.astype(np.int32) - 30_000
    assert np.array_equal(asked(value_range=(-30_000.0, 35_535.0))(signed), DEEP)
    with pytest.raises(BadImage, match=r"outside black and white(.|\n)*0 to 0.5 \(data.preprocess.value_range\)"):
        asked(value_range=(0.0, 0.5))(floats)
    floats[3, 4] = np.nan
    with pytest.raises(BadImage, match=r"not finite(.|\n)*4 of 480"):
        asked(value_range=(0.0, 1.0))(floats)
    with pytest.raises(BadImage, match="holds no numbers"):
        asked()(DEEP.astype(complex))
    with pytest.raises(BadImage, match=r"is no complete \.npy file"):
        read(npy(DEEP)[:-1], asked())


def test_opacity_is_kept_on_request_and_hides_no_dark_fringes() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (250, 60, 30, 255)  # the other half is transparent black
    small = Preprocess(height=4, width=5, mode="RGBA", resize="bilinear")
    made = small(Image.fromarray(pixels))
    partly = made[(made[..., 3] > 0) & (made[..., 3] < 255)]
    assert len(partly) and abs(partly[:, :3].astype(int) - (250, 60, 30)).max() <= 1
    assert not made[made[..., 3] == 0].any()
    same = Preprocess(height=8, width=8, mode="RGBA")
    opaque = np.random.default_rng(1).integers(0, 256, (8, 8, 4), np.uint8) | np.array([0, 0, 0, 1], np.uint8)
    assert np.array_equal(same(Image.fromarray(opaque)), opaque)
    for mode in ("L", "LA", "P", "RGB"):
        assert same(Image.fromarray(opaque).convert(mode)).shape == (8, 8, 4)
    deep = Preprocess(height=12, width=10, mode="RGBA", bits=16)(DEEP | np.uint16(1))
    assert np.array_equal(deep, DEEP | np.uint16(1))


def test_sources_read_arrays_where_they_are_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.npy").write_bytes(npy(DEEP))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder / "0.npy", "0.npy")
    cells: list[tuple[str, Any]] = [("bytes", npy(DEEP)), ("lists", DEEP.tolist())]
    for name, value in cells:
        kind = pa.binary() if name == "bytes" else pa.list_(pa.list_(pa.list_(pa.uint16())))
        pq.write_table(pa.table({"image": pa.array([value] * 2, kind)}), tmp_path / f"{name}.parquet")
    sources = (
        FolderData(path=str(folder)),
        ArchiveData(path=str(tmp_path / "a.tar")),
        *(DatasetData(path=str(tmp_path / f"{name}.parquet")) for name, _ in cells),
    )
    for config in sources:
        source, _ = open_sources(config, arrays=True)
        assert np.array_equal(asked()(source.read(0)), DEEP), config.type_name
    with pytest.raises(DataError, match=r"no image files(.|\n)*a NumPy array: --data.preprocess.mode channels"):
        open_sources(sources[0])
    with pytest.raises(DataError, match=r"white_value(.|\n)*no effect(.|\n)*--data.preprocess.white_level"):
        open_sources(DatasetData(path=str(tmp_path / "lists.parquet"), white_value=10_000.0), arrays=True)


def test_settings_that_contradict_one_another_are_refused() -> None:
    for wrong in (
        {"mode": "channels"},
        {"mode": "channels", "channels": 65},
        {"channels": 3},
        {"bits": 12},
        {"bits": 16, "value_range": (1.0, 1.0)},
        {"bits": 16, "value_range": (0.0, float("inf"))},
        {"value_range": (0.0, 1.0)},
        {"preview_channels": (0, 1, 2)},
        {"mode": "channels", "channels": 4, "preview_channels": (0, 1, 4)},
        {"mode": "channels", "channels": 4, "preview_channels": (0, 1)},
    ):
        with pytest.raises(ConfigError):
            Preprocess(**wrong)
    for right in (asked(), Preprocess(), Preprocess(mode="RGBA")):
        assert from_dict(Preprocess, to_dict(right)) == right


def test_settings_of_earlier_versions_keep_their_fingerprint() -> None:
    names = {"height", "width", "mode", "resize", "crop", "background"}
    assert set(without_defaults(Preprocess())) == set(without_defaults(Preprocess(mode="L"))) == names
