"""Files of images hold every channel and bit, in the units of the files that were read."""

from typing import Any

import numpy as np
import pytest

from foundation.images.config import Preprocess
from foundation.images.image_bytes import file_content, file_ending
from foundation.images.preprocess import decode_any


@pytest.mark.parametrize(
    ("ending", "settings"),
    [
        (".png", {"mode": "RGB"}),
        (".png", {"mode": "L"}),
        (".png", {"mode": "RGBA"}),
        (".png", {"mode": "L", "bits": 16}),
        (".png", {"mode": "L", "bits": 16, "white_level": 4095}),
        (".npy", {"mode": "RGB", "bits": 16}),
        (".npy", {"mode": "RGBA", "bits": 16}),
        (".npy", {"mode": "channels", "channels": 4}),
        (".npy", {"mode": "channels", "channels": 2, "bits": 16, "white_level": 10_000}),
    ],
)
def test_what_is_written_is_read_again(ending: str, settings: dict[str, Any]) -> None:
    preprocess = Preprocess(height=9, width=8, **settings)
    white = preprocess.white_level or preprocess.top_level
    steps = np.random.default_rng(0).integers(1, white + 1, (9, 8, preprocess.n_channels))
    pixels = np.rint(steps * (preprocess.top_level / white)).astype(preprocess.pixel_type)
    data = file_content(pixels, preprocess)
    assert file_ending(preprocess) == ending and data.startswith(b"\x89PNG" if ending == ".png" else b"\x93NUMPY")
    assert np.array_equal(preprocess(decode_any(data, arrays=not preprocess.is_plain)), pixels)
