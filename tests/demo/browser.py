"""Chromium without a network but the server of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hfgen.demo.runtime import RuntimeMissingError, fetch_runtime
from hfgen.demo.server import serve


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium, or a skipped test."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def runtime_folder() -> Path:
    """The folder of onnxruntime-web, or a skipped test."""
    try:
        return fetch_runtime()
    except RuntimeMissingError as error:
        pytest.skip(f"needs onnxruntime-web: {error}")


@dataclass
class Shown:
    """A page that is open.

    Attributes:
        page: Playwright's.
        problems: what the page wrote to its console, and errors that nothing caught.
        strangers: addresses elsewhere that it asked for, in vain.
    """

    page: Any
    problems: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def pixels(self, selector: str) -> list[int]:
        """Red values of a canvas."""
        return self.page.evaluate(
            "selector => { const canvas = document.querySelector(selector);"
            "const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
            "return [...data].filter((_, i) => i % 4 === 0); }",
            selector,
        )

    def wait_until(self, condition: str) -> None:
        """Waits for an expression of JavaScript. Playwright's own waiting evaluates text, which the page forbids."""
        for _ in range(400):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"This did not come true: {condition}")

    def wait_for_change(self, selector: str, before: list[int]) -> list[int]:
        """The pixels of a canvas once they are others."""
        for _ in range(400):
            if (now := self.pixels(selector)) != before:
                return now
            self.page.wait_for_timeout(30)
        raise AssertionError(f"{selector} shows what it showed before")


@contextmanager
def opened(browser: Any, folder: Path, *, hash: str = "", wait_for: str = "body[data-ready]") -> Iterator[Shown]:
    """Opens a folder's page, served on this machine."""
    with serve(folder) as address:
        context = browser.new_context(viewport={"width": 1000, "height": 800}, reduced_motion="reduce")
        shown = Shown(context.new_page())

        def route(request: Any) -> None:
            if request.request.url.startswith(address):
                request.continue_()
            else:
                shown.strangers.append(request.request.url)
                request.abort()

        context.route(lambda url: not url.startswith(("data:", "blob:")), route)
        shown.page.on("console", lambda message: shown.problems.append(f"{message.type}: {message.text}"))
        shown.page.on("pageerror", lambda error: shown.problems.append(str(error)))
        shown.page.goto(address + hash)
        shown.page.wait_for_selector(wait_for, state="attached", timeout=60_000)
        yield shown
        context.close()
