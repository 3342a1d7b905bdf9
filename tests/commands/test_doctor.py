"""`hfgen doctor`: what it finds, and what it foresees."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from hfgen.cli import main
from hfgen.commands.machine import installation, trial
from hfgen.commands.machine.recipe_files import Recipe, read_recipe, recipe_names
from training.config.parser import parse
from training.config.scripts import SCRIPTS


def test_it_reports_what_is_installed_and_what_a_training_would_choose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"] == metadata.version("torch") and found["missing"] == []
    assert found["extras"]["training"] == [] and found["machine"]["cores"] >= 1
    for kind in ("images", "text"):
        assert found["choices"][kind]["mixed_precision"] in ("no", "bf16")
        assert found["choices"][kind]["reasons"]["mixed_precision"].startswith(("measured", "this GPU"))
    assert found["choices"]["text"]["attn_implementation"] in ("sdpa", "eager")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert found["choices"]["processor"] in text and "\nhfgen[training]             complete\n" in text


def test_what_is_missing_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("jinja2", "scikit-learn"):
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "diffusers" else real(name)

    monkeypatch.setattr(installation.metadata, "version", version)
    assert main(["doctor"]) == 1  # hfgen itself cannot do without jinja2
    rows = {line[:28].strip(): line[28:] for line in capsys.readouterr().out.splitlines()}
    assert rows["missing"].startswith("jinja2>=")
    assert (
        "lacks scikit-learn" in rows["hfgen[training]"] and "pip install 'hfgen[training]'" in rows["hfgen[training]"]
    )
    assert "lacks diffusers" in rows["hfgen[diffusers]"] and rows["hfgen[compression]"] == "complete"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of trials, which are not run: each ends at once, after 50 steps in 10 seconds."""
    started: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        started.append(command)
        output = Path(command[command.index("--output_dir") + 1])
        output.mkdir()
        results = {"steps": 50, "seconds_trained": 10.0, "mixed_precision": "no", "num_parameters": 7}
        (output / "results.json").write_text(json.dumps(results))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(trial.subprocess, "run", run)
    return started


@pytest.mark.parametrize("name", recipe_names())
def test_the_trial_of_a_recipe_has_flags_that_there_are(name: str, commands: list[list[str]]) -> None:
    recipe = read_recipe(name)
    found = trial.try_recipe(recipe, 10)
    words = commands[0][commands[0].index(recipe.family) + 1 :]
    arguments = parse(SCRIPTS[recipe.family], words)
    assert arguments.data.dataset_name in ("digits", "python-docs") and arguments.data.dataset_path is None
    assert arguments.run.max_train_seconds == 10
    assert found["steps"] == 5 * recipe.flags["max_train_seconds"]


def test_a_recipe_is_extrapolated_beside_the_published_run(
    commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "gan-mnist"]) == 0
    published = read_recipe("gan-mnist").results
    assert published is not None
    text = capsys.readouterr().out
    assert "240 s of training take about 1,200 steps here (5 per second" in text
    assert f"{published['steps']:,} steps in {published['seconds_trained']:,.0f} s on {published['hardware']}" in text


@pytest.mark.slow
def test_a_trial_trains_the_recipe(tmp_path: Path) -> None:
    flags = {"dataset_name": "ylecun/mnist", "max_train_seconds": 100, "hidden_channels": [4], "hidden_size": 8}
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(flags))  # which is YAML, too
    found = trial.try_recipe(Recipe("tiny", "vae", path, flags, "", None), 1)
    assert found["steps"] == pytest.approx(100 * found["steps_per_second"], abs=1) and found["steps_per_second"] > 0
    assert found["published"] is None


def test_a_recipe_of_other_data_is_refused(tmp_path: Path) -> None:
    recipe = Recipe("mine", "vae", tmp_path / "mine.yaml", {"dataset_name": "me/photos"}, "", None)
    with pytest.raises(ValueError, match=r"must be of one of the datasets .*, got 'me/photos'"):
        trial.try_recipe(recipe, 1)
