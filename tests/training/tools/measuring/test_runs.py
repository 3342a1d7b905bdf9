"""Recipes by name, flags as words, and modules that answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.tools.measuring import runs
from training.tools.measuring.rows import own_column
from training.tools.measuring.runs import RECIPES, answer_task, as_words, family_of


def test_family_of_a_recipe_is_the_longest_that_fits() -> None:
    assert {path.stem: family_of(path.stem) for path in RECIPES.glob("*.yaml")}["vae-binarized-mnist"] == "vae"
    assert family_of("gpt-tiny-shakespeare") == "gpt"
    with pytest.raises(ValueError, match="must begin with a family"):
        family_of("vaexyz-mnist")


def test_flags_become_words() -> None:
    flags = {"hidden_channels": [4, 8], "disable_tqdm": True, "torch_compile": False, "seed": 1}
    assert as_words(flags) == ["--hidden_channels", "4", "8", "--disable_tqdm", "--seed", "1"]


def test_a_module_answers_its_task_on_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["module.py", "--child", json.dumps({"seconds": 2})])
    answer_task("Doubles.", lambda task: {"seconds": 2 * task["seconds"]})
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"seconds": 4}


@pytest.mark.parametrize("flags, expected", [("fma avx2 amx_bf16 amx_tile", True), ("fma avx512_bf16", False)])
def test_tiles_are_found_among_what_the_processor_can_do(
    flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: A\nflags\t\t: {flags}\n")
    monkeypatch.setattr(runs, "CPUINFO", tmp_path / "cpuinfo")
    assert runs.has_bf16_tiles() is expected
    assert own_column() == ("bf16 tiles" if expected else "no bf16 tiles")
    monkeypatch.setattr(runs, "CPUINFO", tmp_path / "missing")
    assert not runs.has_bf16_tiles()
