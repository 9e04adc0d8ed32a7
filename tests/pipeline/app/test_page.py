"""The page as programs see it: its API answers or refuses, and never fails."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import ImageGenerator
from pipeline.app.limits import Limits
from pipeline.app.studio import NO_CLASS, Studio

pytest.importorskip("gradio", reason="pip install 'tessera-images[app]' serves the page")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from pipeline.app.page import GeneratorPage, heat_over


@pytest.fixture(scope="module")
def client(finished_run: Path) -> Iterator[Client]:
    studio = Studio(ImageGenerator.from_pretrained(finished_run), str(finished_run), Limits(images=6))
    with GeneratorPage(studio, "A run.").running() as address:
        yield Client(address, verbose=False)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)).save(path)
    return path


def test_the_api_has_four_ways_to_use_it(client: Client) -> None:
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/draw", "/inpaint", "/complete", "/look"}


def test_pictures_are_drawn_by_seed(client: Client) -> None:
    first, second = (client.predict("3", "5", 2, 2.0, 1.0, api_name="/draw") for _ in range(2))
    paths = [[each["image"] for each in found] for found in (first, second)]
    assert len(paths[0]) == 2
    for one, other in zip(*paths, strict=True):
        assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))


def test_a_painted_picture_and_a_completion(client: Client, picture: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    marked = Image.new("L", (20, 20))
    marked.paste(255, (0, 0, 10, 10))
    marked.save(mask)
    fields = ("3", "1", 2, 2.0, 1.0)
    inpainted = client.predict(handle_file(picture), handle_file(mask), *fields, api_name="/inpaint")
    completed = client.predict(handle_file(picture), 0.5, *fields, api_name="/complete")
    assert len(inpainted) == len(completed) == 2


def test_codes_of_a_picture(client: Client, picture: Path) -> None:
    shown, table, words = client.predict(handle_file(picture), NO_CLASS, api_name="/look")
    path = shown if isinstance(shown, str) else shown["path"]
    assert Image.open(path).width > 256 and len(table["data"]) == 4 and "bits" in words


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (("3", "x", 2, 2.0, 1.0), "seed"),
        (("3", "-4", 2, 2.0, 1.0), "seed"),
        (("3", "1", 99, 2.0, 1.0), "images"),
        (("walrus", "1", 2, 2.0, 1.0), "walrus"),
        (("3", "1", 2, 2.0, -3.0), "temperature"),
    ],
)
def test_wrong_values_are_refused_with_words(client: Client, fields: tuple, says: str) -> None:
    with pytest.raises((AppError, ValueError), match=says):
        client.predict(*fields, api_name="/draw")


@pytest.mark.parametrize("share", [None, "half", 2.0])
def test_a_share_that_is_none_is_refused_with_words(client: Client, picture: Path, share: object) -> None:
    with pytest.raises(AppError, match="share"):
        client.predict(handle_file(picture), share, "3", "1", 1, 2.0, 1.0, api_name="/complete")


def test_a_bad_upload_is_refused_with_words(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG nothing")
    with pytest.raises(AppError, match="cannot be decoded"):
        client.predict(handle_file(path), NO_CLASS, api_name="/look")


def test_the_heat_map_is_brightest_where_bits_are_most() -> None:
    bits = np.array([[1.0, 2.0], [3.0, 9.0]])
    found = np.asarray(heat_over(Image.new("L", (8, 8)), bits, 64)).astype(int).sum(2)
    cells = [found[8, 8], found[8, 40], found[40, 8], found[40, 40]]
    assert cells == sorted(cells) and heat_over(Image.new("RGB", (8, 8)), np.ones((2, 2)), 64).size == (64, 64)
