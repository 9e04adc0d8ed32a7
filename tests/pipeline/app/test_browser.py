"""The page in a browser, as a person uses it."""

import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.browser import chromium, opened

from pipeline import ImageGenerator
from pipeline.app.limits import Limits
from pipeline.app.studio import Drawn, Studio, Wish

pytest.importorskip("gradio", reason="pip install 'tessera-images[app]' serves the page")

from gradio_client import Client
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError

from pipeline.app.page import GeneratorPage

pytestmark = pytest.mark.slow


class SlowStudio(Studio):
    """Takes a while for each row, so that a person can see them come."""

    def draw(self, wish: Wish) -> Iterator[Drawn]:
        for drawn in super().draw(wish):
            time.sleep(0.4)
            yield drawn


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(finished_run: Path) -> Iterator[str]:
    studio = SlowStudio(ImageGenerator.from_pretrained(finished_run), str(finished_run), Limits(queue=3))
    page = GeneratorPage(studio, "A run.")
    with page.running() as found:
        yield found


def draw(page: Any, seed: str) -> None:
    page.wait_for_function(f"document.querySelector('[placeholder=random]')?.value === '{seed}'")
    page.get_by_role("button", name="Draw", exact=True).click()
    pictures(page, 1)


def pictures(page: Any, n: int) -> None:
    """Wait until n pictures can be seen."""
    seen = "[...document.querySelectorAll('.grid-container img')].filter(each => each.offsetParent !== null).length"
    page.wait_for_function(f"{seen} >= {n}", timeout=60_000)


def test_a_link_fills_the_fields_rows_come_one_by_one_and_a_picture_says_its_command(
    browser: Any, address: str
) -> None:
    with opened(browser, f"{address}?class=7&seed=5&images=2") as watched:
        page = watched.page
        draw(page, "5")
        sources: list[str] = []
        for _ in range(60):
            for each in page.locator(".grid-container img").all():
                sources.append(each.get_attribute("src") or "")
            if len(set(sources)) >= 8:
                break
            page.wait_for_timeout(100)
        assert len(set(sources)) >= 8, "two pictures after each of four rows"
        page.wait_for_timeout(500)
        page.locator(".thumbnail-item").first.click()
        page.get_by_text("--class-labels 7").wait_for()
        assert page.get_by_text("--seed 5").is_visible()
        assert watched.errors == [] and watched.outside == []


def test_a_painted_part_is_drawn_again_and_the_rest_kept(browser: Any, address: str, tmp_path: Path) -> None:
    with opened(browser, f"{address}?class=3&seed=1&images=1") as watched:
        page = watched.page
        draw(page, "1")
        page.wait_for_timeout(3000)
        page.get_by_role("tab", name="Change a picture").click()
        page.get_by_role("button", name="Take the first drawn picture").click()
        page.wait_for_timeout(2500)
        box = page.locator("canvas").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 20, y - 20)
        page.mouse.down()
        for i in range(10):
            page.mouse.move(x - 20 + 4 * i, y - 20 + i % 3 * 15)
        page.mouse.up()
        page.wait_for_timeout(3000)  # the editor sends what is painted
        page.get_by_role("button", name="Draw the painted part").click()
        pictures(page, 1)
        page.get_by_role("tab", name="Remembered").click()
        pictures(page, 2)
        with page.expect_download() as waited:
            page.get_by_role("button", name="Download all").click()
        waited.value.save_as(tmp_path / "all.zip")
        assert watched.errors == [] and watched.outside == []
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        before, after = (
            np.asarray(Image.open(archive.open(name)).convert("L")).astype(int) for name in archive.namelist()
        )
    changed = np.abs(before - after) > 24
    assert changed.any() and not changed[:32].any() and not changed[-32:].any()


def test_a_file_that_is_no_picture_is_refused_with_words(browser: Any, address: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG nothing")
    with opened(browser, address) as watched:
        page = watched.page
        page.get_by_role("tab", name="Look at the codes").click()
        page.locator("#upload input[type=file]").set_input_files(path)
        page.wait_for_timeout(1500)
        page.get_by_role("button", name="Look", exact=True).click()
        page.get_by_text("cannot be decoded").first.wait_for()


def test_impatient_users_wait_or_are_refused_with_words(address: str) -> None:
    answers: list[str] = []

    def ask() -> None:
        try:
            Client(address, verbose=False).predict("3", "1", 1, 2.0, 1.0, api_name="/draw")
            answers.append("drawn")
        except (AppError, QueueError, ValueError) as error:
            answers.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [each for each in answers if each != "drawn"]
    assert len(answers) == 20 and refused and len(refused) < 20
    assert all("busy" in each or "full" in each.lower() for each in refused), set(refused)
