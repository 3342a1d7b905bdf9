"""`hfgen export`: what it writes is in tests/export; this is the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hfgen import export
from hfgen.cli import main
from hfgen.export.folders import SUFFIXES
from tests.commands.tiny_models import save_vae


def test_export_names_the_folder_and_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vae(tmp_path / "vae")
    calls: list[Any] = []

    def export_folder(source: Path, target: Path, dtypes: list[str], name: str) -> dict[str, Any]:
        calls.append((source, target, dtypes, name))
        return {"family": "vae", "graphs": {"a": {"files": {"fp32": {"path": "onnx/a.onnx", "bytes": 12345}}}}}

    monkeypatch.setattr(export, "export_folder", export_folder)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "vae", "--onnx"]) == 0
    assert capsys.readouterr().out == "Wrote vae-onnx: onnx/a.onnx (12,345 bytes).\n"
    assert main(["export", "vae", "out", "--dtype", "int8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == "out"
    assert calls == [
        (Path("vae"), Path("vae-onnx"), list(SUFFIXES), "vae"),
        (Path("vae"), Path("out"), ["int8"], "vae"),
    ]


def test_export_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_vae(tmp_path / "vae")
    assert main(["export", str(tmp_path / "vae"), str(tmp_path / "vae")]) == 1
    assert "hfgen export: OUT must be a new or empty folder" in capsys.readouterr().err
