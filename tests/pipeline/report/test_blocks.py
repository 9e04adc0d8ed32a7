"""Blocks: pictures survive the page, and large ones become small enough for it."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.report.blocks import Bar, Bars, HeatMap, Section, embed


def decoded(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_a_small_picture_keeps_every_pixel() -> None:
    found = embed(noise(40, 60), "noise")
    assert found.is_exact and np.array_equal(np.asarray(decoded(found.source)), np.asarray(noise(40, 60)))


def test_a_large_picture_is_compressed_and_made_smaller() -> None:
    found = embed(noise(1200, 2400), "noise", most=500_000)
    assert not found.is_exact and found.width * found.height == pytest.approx(500_000, rel=0.01)
    assert decoded(found.source).size == (found.width, found.height) and found.width == 2 * found.height


def test_a_section_is_linked_by_its_title() -> None:
    assert Section("What the prior finds hard").anchor == "what-the-prior-finds-hard"


def test_bars_and_colours_cover_the_whole_range() -> None:
    assert Bars("bits", [Bar("a", 2.0, "2"), Bar("b", 4.0, "4")], mark=5.0).most == 5.0
    heat = HeatMap("bits", [[1.0, 3.0]], 1.0, 3.0, "bits")
    assert [heat.share(value) for value in (0.0, 1.0, 2.0, 3.0)] == [0, 0, 0.5, 1]
    assert HeatMap("bits", [[1.0]], 1.0, 1.0, "bits").share(1.0) == 0
