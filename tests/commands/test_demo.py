"""`hfgen demo`. tests/demo has what it writes, serves and pushes."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest

import hfgen.demo
from hfgen.cli import main
from hfgen.commands import demo
from hfgen.hub import Pushed

from .tiny_models import save_gan


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Instead of an explorer, a page that says hello; the list gets what was asked for."""
    asked: list[dict[str, Any]] = []

    def write_explorer(source: Path, output: Path, **options: Any) -> None:
        output.mkdir()
        (output / "index.html").write_text("hello")
        asked.append(options)

    monkeypatch.setattr(hfgen.demo, "write_explorer", write_explorer)
    return asked


def test_output_is_written_and_not_served(
    tmp_path: Path, written: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["demo", str(save_gan(tmp_path / "gan")), "--output", str(tmp_path / "page"), "--dtype", "int8"]

    assert main(words) == 0

    assert (tmp_path / "page" / "index.html").is_file() and f"Wrote {tmp_path / 'page'}" in capsys.readouterr().out
    assert (written[0]["dtype"], written[0]["name"]) == ("int8", str(tmp_path / "gan"))


def test_the_page_is_served_until_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def open_browser(address: str) -> None:
        with build_opener(ProxyHandler({})).open(address) as response:
            seen.append((address, response.read()))

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.webbrowser, "open", open_browser)
    monkeypatch.setattr(demo.time, "sleep", interrupted)
    before = threading.active_count()

    assert main(["demo", str(save_gan(tmp_path / "gan")), "--json"]) == 0

    ((address, content),) = seen
    assert content == b"hello" and json.loads(capsys.readouterr().out)["url"] == address
    assert threading.active_count() == before

    assert main(["demo", str(tmp_path / "gan"), "--no_browser"]) == 0 and len(seen) == 1


def test_a_space_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def push_space(folder: Path, repo: str, *, private: bool) -> Pushed:
        assert (folder / "index.html").read_text() == "hello" and private
        return Pushed(repo, f"https://hub/spaces/{repo}", "0" * 40, is_new=True)

    monkeypatch.setattr(hfgen.demo, "push_space", push_space)
    words = ["demo", str(save_gan(tmp_path / "gan"))]

    assert main([*words, "--space", "me/page", "--private"]) == 0
    assert "https://hub/spaces/me/page is the page" in capsys.readouterr().out
    assert main([*words, "--private"]) == 1
    assert "--private must come with --space" in capsys.readouterr().err
