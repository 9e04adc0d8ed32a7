"""The report and the comparison in a browser: nothing overlaps, everything works, anyone can read them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import chromium, opened

from pipeline.report.compare import write_comparison

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import shutil

    folder = tmp_path_factory.mktemp("pages")
    other = Path(shutil.copytree(finished_run, folder / "other"))
    write_comparison([finished_run, other], folder / "compare.html")
    return {"report": (finished_run / "report.html").as_uri(), "compare": (folder / "compare.html").as_uri()}


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "compare"])
def test_pages_fit_the_window_and_ask_for_nothing(
    browser: Any, pages: dict[str, str], name: str, width: int, scheme: str
) -> None:
    with opened(browser, pages[name], width=width, scheme=scheme) as watched:
        assert watched.errors == [] and watched.outside == [] and watched.overflow <= 0
        boxes = watched.page.eval_on_selector_all(
            "figure", "all => all.map(each => each.getBoundingClientRect().toJSON())"
        )
        for i, one in enumerate(boxes):
            for other in boxes[i + 1 :]:
                apart = one["right"] <= other["left"] + 1 or other["right"] <= one["left"] + 1
                assert apart or one["bottom"] <= other["top"] + 1 or other["bottom"] <= one["top"] + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "compare"])
def test_pages_can_be_read_by_anyone(browser: Any, pages: dict[str, str], name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    with opened(browser, pages[name], scheme=scheme) as watched:
        found = axe.Axe().run(watched.page).response["violations"]
    serious = [
        (each["id"], each["nodes"][0]["html"][:120]) for each in found if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_values_sliders_and_films_follow_the_hand(browser: Any, pages: dict[str, str]) -> None:
    with opened(browser, pages["report"]) as watched:
        page = watched.page
        chart = page.locator(".chart svg").first
        chart.hover(position={"x": 200, "y": 80})
        assert "step" in page.locator(".chart .values").first.inner_text()
        chart.focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator(".chart .values").first.is_visible()
        handle = page.locator(".slider input").first
        handle.fill("20")
        assert page.locator(".slider .pair").first.evaluate("each => each.style.getPropertyValue('--cut')") == "20%"
        film = page.locator(".film").first
        film.locator("input").fill("0")
        assert film.locator(".frame").first.is_visible() and film.locator("output").inner_text() == "step 0"
        assert watched.errors == []
