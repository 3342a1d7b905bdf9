"""The API reference: pages of public names, in which every reference leads somewhere."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from training.tools.reference import MODULES, dead_links, main, write_reference


SOURCE = '''
"""Things. See [`Thing`]{more}."""


class Thing:
    """A thing.

    Args:
        size: in meters.
    """

    def grow(self, by: {type} = 1) -> None:
        """Grows; see [`measured`]."""


def measured(thing: Thing) -> int:
    """Its size."""
    return 0


def undocumented() -> None:
    pass
'''


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Writes a module and gives its name, which differs for each test."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"things_{abs(hash(request.node.name))}"

    def write(more: str = "", annotation: str = "int") -> str:
        source = SOURCE.replace("{more}", more).replace("{type}", annotation)
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        return name

    yield write
    sys.modules.pop(name, None)


def test_references_become_links_and_what_is_undocumented_is_left_out(write_module, tmp_path: Path) -> None:
    name = write_module()
    assert write_reference(tmp_path / "out", [name]) == 2
    page = (tmp_path / "out" / f"{name}.html").read_text(encoding="utf-8")
    assert '<a href="#Thing">Thing</a>' in page and '<a href="#measured">measured</a>' in page
    assert "[<code>" not in page and "undocumented" not in page
    assert re.search(r"<strong>size:</strong> +in meters\.", page)
    assert dead_links(tmp_path / "out") == []
    assert write_reference(tmp_path / "out", [name]) == 2  # replaces the earlier one


def test_a_reference_that_leads_nowhere_is_an_error(write_module, tmp_path: Path) -> None:
    name = write_module(more=" and [`Gone`] and [`undocumented`]")
    with pytest.raises(ValueError, match=rf"{name}: \[`Gone`\] leads nowhere[^$]*\[`undocumented`\] leads nowhere"):
        write_reference(tmp_path / "out", [name])
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*.part"))


def test_a_warning_of_pdoc_is_an_error(write_module, tmp_path: Path) -> None:
    name = write_module(annotation='"Missing"')
    with pytest.raises(ValueError, match="Missing"):
        write_reference(tmp_path / "out", [name])


def test_a_folder_with_something_else_is_left_alone(write_module, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main([str(tmp_path / "out")]) == 1
    assert "must be a new folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="top"></h1><a href="b.html#there"></a><a href="#top"></a>')
    (tmp_path / "b.html").write_text('<a href="a.html#top"></a><a href="c.html"></a><a href="https://x.org"></a>')
    assert dead_links(tmp_path) == ["a.html: b.html#there leads nowhere", "b.html: c.html leads nowhere"]


def test_every_public_module_is_documented() -> None:
    assert all(import_module(name).__doc__ for name in MODULES)
