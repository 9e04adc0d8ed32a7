"""Pages: every kind of block is drawn, text is escaped, and nothing comes from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from pipeline.report.blocks import (
    Bar,
    Bars,
    Film,
    HeatMap,
    Listing,
    Notes,
    Picture,
    Rows,
    Section,
    Slider,
    Table,
    embed,
)
from pipeline.report.charts import Chart, Series
from pipeline.report.page import is_page, render_page

HARM = "</script><b>&\"'"
PICTURE = embed(Image.new("RGB", (8, 8)), HARM)
BLOCKS = [
    Picture(PICTURE, HARM),
    Rows([(HARM, PICTURE)], HARM),
    Slider(PICTURE, PICTURE, (HARM, HARM), HARM),
    Film(HARM, [(HARM, PICTURE), (HARM, PICTURE)], HARM),
    Table([(HARM, HARM)], (HARM, HARM), HARM),
    Bars(HARM, [Bar(HARM, 1.0, HARM)], HARM, 0.5),
    HeatMap(HARM, [[1.0, 2.0]], 1.0, 2.0, HARM, HARM),
    Notes([HARM], are_warnings=True),
    Listing(HARM, HARM),
    Chart(HARM, HARM, HARM, [Series(HARM, [0, 1], [1.0, 2.0], dots=True)], HARM),
]


class Tags(HTMLParser):
    """Tags that are open, and all that were met."""

    VOID = {"meta", "img", "input", "link", "br"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.met: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.met.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.met.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_any_text_is_escaped_in_every_kind_of_block() -> None:
    page = render_page(HARM, HARM, [Section(HARM, BLOCKS, HARM, HARM)]).decode()
    tags = Tags(page)
    assert not tags.open and not any(tag == "b" for tag, _ in tags.met)
    assert sum(tag == "script" for tag, _ in tags.met) == 2, "the page's own, and the values of the chart"


def test_a_page_needs_nothing_from_elsewhere_and_every_picture_has_words() -> None:
    page = render_page("run", "", [Section("one", BLOCKS)]).decode()
    tags = Tags(page)
    assert not re.search(r"https?://", page) and not any(tag == "link" for tag, _ in tags.met)
    assert all(each.get("alt") for tag, each in tags.met if tag == "img")
    assert [tag for tag, _ in tags.met if tag == "h1"] == ["h1"]


def test_sections_without_blocks_are_left_out_and_the_others_linked() -> None:
    page = render_page("run", "", [Section("empty"), Section("full", [Notes(["a"])])]).decode()
    assert "empty" not in page and 'href="#full"' in page and '<section id="full"' in page


@pytest.mark.parametrize("renewed", [False, True])
def test_a_page_of_a_run_in_training_loads_itself_again(renewed: bool) -> None:
    assert ('http-equiv="refresh"' in render_page("run", "", [], renewed=renewed).decode()) == renewed


def test_a_page_is_known_by_its_head(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert not is_page(path)
    path.write_bytes(render_page("a run", "", []))
    assert is_page(path)
    path.write_text("<!doctype html><html lang='en'><head><title>old - Tessera</title>")  # as earlier versions wrote
    assert is_page(path)
    path.write_text("<!doctype html><title>mine</title>")
    assert not is_page(path)
