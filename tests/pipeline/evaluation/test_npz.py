"""Samples in one .npz file: numpy reads what was written, also from other writers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from foundation.errors import DataError
from pipeline.evaluation.npz import NpzSource, PixelSpool

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (23, 6, 5, 3)).astype(np.uint8)


def written(path: Path, pixels: np.ndarray, labels: np.ndarray | None) -> Path:
    with contextlib.closing(PixelSpool()) as spool:
        for start in range(0, len(pixels), 10):
            spool.add(pixels[start : start + 10])
        assert len(spool) == len(pixels)
        spool.write_npz(path, labels)
    return path


@pytest.mark.parametrize("labels", [None, np.arange(23) % 7])
def test_numpy_reads_it_back(tmp_path: Path, labels: np.ndarray | None) -> None:
    with np.load(written(tmp_path / "a.npz", PIXELS, labels), allow_pickle=False) as file:
        assert file.files == ["arr_0"] + ["arr_1"] * (labels is not None)
        assert np.array_equal(file["arr_0"], PIXELS) and file["arr_0"].dtype == np.uint8
        if labels is not None:
            assert np.array_equal(file["arr_1"], labels) and file["arr_1"].dtype == np.int64


def test_grey_becomes_three_channels_and_equal_samples_equal_bytes(tmp_path: Path) -> None:
    one, other = (written(tmp_path / name, PIXELS[..., :1], None) for name in ("a.npz", "b.npz"))
    assert np.array_equal(np.load(one)["arr_0"], np.repeat(PIXELS[..., :1], 3, -1))
    assert one.read_bytes() == other.read_bytes()


def test_images_of_another_shape_are_refused() -> None:
    with contextlib.closing(PixelSpool()) as spool:
        spool.add(PIXELS)
        with pytest.raises(DataError, match="one shape"):
            spool.add(PIXELS[:, :4])
        with pytest.raises(DataError, match="not pixels"):
            spool.add(PIXELS.astype(float))


def test_it_is_a_source_of_images_with_the_classes_that_are_known(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez_compressed(path, PIXELS, np.arange(23) % 3)
    source = NpzSource(path, ("a", "b", "c"))
    assert source.labels is not None and source.labels.tolist() == (np.arange(23) % 3).tolist()
    assert len(source.ids) == 23 and np.array_equal(np.asarray(source.read(4)), PIXELS[4])
    some = source.some(np.array([7, 3]))
    assert some.ids == [source.ids[7], source.ids[3]] and np.array_equal(np.asarray(some.read(1)), PIXELS[3])
    assert NpzSource(path, ()).labels is None


def test_other_files_are_refused(tmp_path: Path) -> None:
    cases: dict[str, tuple[np.ndarray, ...]] = {
        "floats": (PIXELS.astype(float),),
        "shape": (PIXELS[0],),
        "empty": (PIXELS[:0],),
        "classes": (PIXELS, np.full(23, 5)),
    }
    for name, arrays in cases.items():
        path = tmp_path / f"{name}.npz"
        np.savez(path, *arrays)
        with pytest.raises(DataError, match=r"does not hold images|holds other classes"):
            NpzSource(path, ("a", "b"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="cannot be read"):
        NpzSource(tmp_path / "text.npz", ())
    np.savez(tmp_path / "pickled.npz", np.array([{}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        NpzSource(tmp_path / "pickled.npz", ())
