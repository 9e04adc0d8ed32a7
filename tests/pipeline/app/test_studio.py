"""What the page does, without the page: the same pictures as commands, and refusals that name the field."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from foundation.errors import ConfigError, DataError, TesseraError
from pipeline import ImageGenerator
from pipeline.app.limits import Limits
from pipeline.app.studio import NO_CLASS, Studio, Wish
from pipeline.cli import main


@pytest.fixture(scope="module")
def studio(finished_run: Path) -> Studio:
    return Studio(ImageGenerator.from_pretrained(finished_run), str(finished_run), Limits(images=6))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def grey(height: int = 40, width: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width), np.uint8))


def test_pictures_come_row_by_row_and_end_as_a_call_makes_them(studio: Studio) -> None:
    steps = list(studio.draw(Wish("3", seed=5, images=3, guidance_scale=1.5)))
    shares = [each.share for each in steps]
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) > 1
    expected = studio.generator("3", 3, seed=5, guidance_scale=1.5)
    assert [list(map(int, (steps[-1].seeds)))] == [expected.seeds]
    for drawn, image in zip(steps[-1].pictures, expected.images, strict=True):
        assert np.array_equal(pixels(drawn), pixels(image))


def test_the_command_of_a_picture_draws_it_again(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    *_, drawn = studio.draw(Wish("7", seed=2, images=2, guidance_scale=3.0, temperature=0.9))
    words = shlex.split(studio.command(drawn, drawn.seeds[1]))
    assert words[0] == "tessera" and main([*words[1:], "-o", "out"]) == 0
    (path,) = Path("out").glob("7-seed*.png")
    assert np.array_equal(pixels(Image.open(path)), pixels(drawn.pictures[1]))


def test_what_is_not_painted_stays(studio: Studio) -> None:
    picture, mask = grey(8, 8), Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 4, 4))
    drawn = studio.inpaint(picture, mask, Wish("1", seed=0, images=2))
    for each in drawn.pictures:
        same = pixels(each) == pixels(picture)
        assert same[:, 6:].all() and same[6:].all() and not same[:3, :3].all()
    assert "edit inpaint" in studio.command(drawn, 0) and "--class-label 1" in studio.command(drawn, 0)


def test_the_upper_part_is_kept_of_a_picture_of_any_size(studio: Studio) -> None:
    drawn = studio.complete(grey(), 0.5, Wish(images=2, seed=1))
    assert len(drawn.pictures) == 2 and drawn.pictures[0].size == (8, 8)


def test_bits_of_codes_add_up_to_the_likelihood(studio: Studio) -> None:
    found = studio.look(grey(), "3")
    assert found.bits_HW.shape == found.codes_HW.shape == studio.generator.spec.grids[0]
    assert found.bits_HW.sum() == pytest.approx(found.bits)
    assert found.bits == pytest.approx(-float(studio.generator.score(grey(), "3")), rel=1e-5)


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        (Wish(images=7), "images"),
        (Wish(images=0), "images"),
        (Wish(seed=-1), "seed"),
        (Wish("walrus"), "walrus"),
        (Wish("3", guidance_scale=-1.0), "guidance_scale"),
        (Wish(temperature=float("nan")), "temperature"),
    ],
)
def test_wishes_beyond_the_limits_are_refused_by_field(studio: Studio, wish: Wish, field: str) -> None:
    with pytest.raises(TesseraError, match=field):
        next(studio.draw(wish))


def test_a_mask_must_fit_and_mark_something(studio: Studio) -> None:
    with pytest.raises(DataError, match=r"mask: has another size"):
        studio.inpaint(grey(), Image.new("L", (3, 3), 255), Wish())
    with pytest.raises(DataError, match=r"mask: marks nothing(.|\n)*paint over"):
        studio.inpaint(grey(), Image.new("L", (30, 40)), Wish())
    with pytest.raises(ConfigError, match="share"):
        studio.complete(grey(), 1.0, Wish())


def test_uploads_are_limited_and_damaged_ones_refused(studio: Studio, tmp_path: Path) -> None:
    small = Studio(studio.generator, "run", Limits(upload_mb=1, upload_pixels=1000))
    path = tmp_path / "picture.png"
    grey(40, 40).save(path)
    with pytest.raises(DataError, match="too large"):
        small.open_upload(path)
    assert studio.open_upload(path).size == (40, 40)
    path.write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match="cannot be decoded"):
        studio.open_upload(path)
    path.write_bytes(bytes(2 << 20))
    with pytest.raises(DataError, match="is too large"):
        small.open_upload(path)


@given(
    label=st.sampled_from(["0", "9", NO_CLASS, "ten", ""]),
    seed=st.none() | st.integers(-(2**70), 2**70),
    images=st.integers(-2, 8),
    scale=st.none() | st.floats(allow_nan=True),
    temperature=st.none() | st.floats(allow_nan=True),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_wish_is_drawn_or_refused(
    studio: Studio, label: str, seed: int | None, images: int, scale: float | None, temperature: float | None
) -> None:
    try:
        *_, drawn = studio.draw(Wish(label, seed, images, scale, temperature))
    except TesseraError:
        return
    assert len(drawn.pictures) == images
