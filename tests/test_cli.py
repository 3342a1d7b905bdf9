"""The command `hfgen` as far as it needs no Hub; the rest of it is in hub_checks.py. Most commands have tests of their
own in commands/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hfgen.cli import main
from hfgen.commands import COMMANDS

from .runs import copy_run


ROOT = Path(__file__).resolve().parents[1]
NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]
# Whatever takes long to import.
HEAVY = {"torch", "transformers", "datasets", "numpy", "accelerate", "huggingface_hub", "PIL"}


def test_every_file_of_a_command_is_listed() -> None:
    files = {path.stem for path in (ROOT / "hfgen" / "commands").glob("*.py")}
    assert files == {*NAMES, "__init__", "arguments", "completions"}


@pytest.mark.parametrize("words", [[], *([name] for name in NAMES), ["train", "vae"], ["train", "gpt"]], ids=" ".join)
def test_help_imports_nothing_that_takes_long(words: list[str]) -> None:
    program = (
        "import sys\nsys.argv = ['hfgen']\nfrom hfgen.cli import main\n"
        f"try:\n    main({[*words, '--help']})\n"
        f"except SystemExit as stop:\n    assert not stop.code\nprint(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.startswith("usage: hfgen") and done.stdout.endswith("\n[]\n"), done.stderr


@pytest.mark.parametrize("command", NAMES)
def test_help_explains_every_argument(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "None" not in text and f"usage: hfgen {command}" in text


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["publish"],
        ["push", "folder"],
        ["pull"],
        ["sample", "x", "--count", "0"],
        ["train", "x"],
        ["compress", "x", "y"],
        ["interpolate", "x"],
        ["generate", "x", "--max_new_tokens", "many"],
        ["recipes", "x"],
        ["completion", "tcsh"],
    ],
)
def test_a_wrong_command_line_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "usage: hfgen" in capsys.readouterr().err


def test_card_replaces_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_run("gan", tmp_path / "run")
    (run / "README.md").write_text("old")
    assert main(["card", str(run)]) == 0
    assert (run / "README.md").read_text().startswith("---\n")
    assert main(["card", str(tmp_path)]) == 1
    assert "results.json is missing" in capsys.readouterr().err


def test_check_reports_what_is_wrong_with_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_run("vae", tmp_path / "run")
    assert main(["check", str(run)]) == 0
    assert capsys.readouterr().out == f"{run} would load ({run}).\n"
    assert main(["check", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": str(run), "folder": str(run)}
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"hidden_size": 17}))
    assert main(["check", str(run)]) == 1
    assert "hidden.weight" in capsys.readouterr().err


def test_an_expected_error_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["check", str(tmp_path)], ["info", str(tmp_path / "none.hfz")], ["doctor", "no-such-recipe"]):
        assert main(words) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert captured.err.startswith(f"hfgen {words[0]}: ")
