"""A headless Chromium for tests of pages: what it prints, asks for and shows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

LOCAL = ("127.0.0.1", "localhost")


@dataclass
class Watched:
    """A page, and what went wrong on it.

    Attributes:
        page: of Playwright.
        errors: of the console and of scripts.
        outside: requests to other machines.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def watch(self) -> Watched:
        """Begin to note both."""
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("request", self._note)
        return self

    def _note(self, request: Any) -> None:
        local = request.url.startswith(("data:", "blob:", "file:")) or any(f"//{each}" in request.url for each in LOCAL)
        if not local:
            self.outside.append(request.url)

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright drives the browser")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, address: str, *, width: int = 1280, scheme: str = "light") -> Iterator[Watched]:
    """A page in a window of its own."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
    watched = Watched(context.new_page()).watch()
    watched.page.goto(address)
    yield watched
    context.close()
