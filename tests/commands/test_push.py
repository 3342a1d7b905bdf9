"""`hfgen push --layout`. tests/hub_checks.py has the pushes themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hfgen.hub
from hfgen.cli import main
from hfgen.hub import Pushed
from tests.convert.saved_gpt import save_gpt


def test_native_layout_is_published_with_the_training_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_gpt(tmp_path / "ours")
    (tmp_path / "ours" / "checkpoints" / "step-000009").mkdir()
    before = {path.name for path in (tmp_path / "ours").iterdir()}
    seen: dict[str, Any] = {}

    def push_folder(folder: Path, repo: str, **options: Any) -> Pushed:
        seen.update(options, names={path.name for path in folder.iterdir()}, card=(folder / "README.md").read_text())
        seen["saved"] = [path.name for path in (folder / "checkpoints").iterdir()]
        return Pushed(repo, f"https://hub/{repo}", "0" * 40, is_new=True)

    monkeypatch.setattr(hfgen.hub, "push_folder", push_folder)

    words = ["push", str(tmp_path / "ours"), "me/native", "--private", "--checkpoints", "last", "--layout", "native"]
    assert main(words) == 0

    assert "https://hub/me/native is now at commit" in capsys.readouterr().out
    assert not any(name.endswith(".py") for name in seen["names"]) and "tokenizer.json" in seen["names"]
    assert 'repo = "me/native"' in seen["card"] and "trust_remote_code" not in seen["card"]
    assert (seen["private"], seen["checkpoints"], seen["saved"]) == (True, "last", ["step-000009"])
    assert seen["command"] == f"hfgen push {tmp_path / 'ours'} me/native --private --checkpoints last --layout native"
    assert {path.name for path in (tmp_path / "ours").iterdir()} == before


def test_own_layout_is_published_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_gpt(tmp_path / "ours")
    pushed: list[Any] = []

    def push_folder(folder: Path, repo: str, **options: Any) -> Pushed:
        pushed.append((folder, repo, options))
        return Pushed(repo, f"https://hub/{repo}", "0" * 40, is_new=True)

    monkeypatch.setattr(hfgen.hub, "push_folder", push_folder)

    assert main(["push", str(tmp_path / "ours"), "me/ours", "--revision", "next"]) == 0

    assert pushed == [(tmp_path / "ours", "me/ours", {"private": False, "revision": "next", "checkpoints": "none"})]
