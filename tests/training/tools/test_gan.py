"""The command of the GAN's tables: its rows, its trials, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hfgen import GANConfig
from training.config.parser import parse
from training.config.scripts import SCRIPTS
from training.tools import gan
from training.tools.gan import ROWS, TOOL
from training.tools.measuring.rows import read_trials
from training.tools.measuring.runs import RECIPES, as_words


def test_without_rows_all_are_measured_and_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(session: Any, row: str) -> Any:
        yield f"line of {row}", [{"metrics": {"classifier_fid": 5.0}, "seconds_trained": 3.0}]

    for row in ROWS:
        monkeypatch.setitem(ROWS, row, measure)
    monkeypatch.setitem(TOOL.tables, "variations", lambda row, figures: f"table of {row}: {', '.join(figures)}")
    monkeypatch.setattr("sys.argv", ["gan.py", "--figures", str(tmp_path / "figures.json")])
    gan.main()
    printed = capsys.readouterr().out
    for row in ROWS:
        line = f"| line of {row} | classifier FID **5.00**; 3 s of training |"
        assert line in printed or printed.rstrip().endswith(f"table of {row}: line of {row}")


def test_flags_of_every_trial_are_possible() -> None:
    trials = read_trials(TOOL.trials)
    assert len(trials) > 5 and any(trial.against is None for trial in trials.values())
    for trial in trials.values():
        recipe = RECIPES / f"{trial.recipe}.yaml"
        arguments = parse(SCRIPTS["gan"], [str(recipe), *as_words(trial.flags)], config_class=GANConfig)
        assert arguments.run.max_train_seconds == 90
        assert arguments.model["num_labels"] == 10
