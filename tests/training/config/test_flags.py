"""What a flag declares: its meaning on a resume and whether it belongs to the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from training.config.flags import as_recipe, flag, on_resume, recipe_of, switch
from training.config.parser import parse
from training.config.scripts import SCRIPTS, Script
from training.output.run_folder import is_finished, write_results


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_every_flag_declares_what_it_means_on_a_resume(script: Script) -> None:
    arguments = parse(script, ["--output_dir", "out"])
    meanings = on_resume(arguments)
    assert set(meanings) == set(as_recipe(arguments))
    assert set(meanings.values()) == {"refuse", "warn", "free"}
    assert meanings["seed"] == meanings["optimizer"] == meanings["dataset_name"] == "refuse"
    assert meanings["learning_rate"] == meanings["mixed_precision"] == "warn"
    assert meanings["max_train_steps"] == meanings["eval_split"] == meanings["on_nonfinite"] == "free"


def test_no_flag_gets_a_meaning_by_default() -> None:
    for make in (flag, switch):
        with pytest.raises(TypeError, match="on_resume"):
            make(None, "A flag.")

    @dataclass
    class Undeclared:
        forgotten: int = field(default=1, metadata={"help": "Not made by flag()."})

    with pytest.raises(KeyError, match="meaning"):
        parse(Script("vae", "", {}, Undeclared), ["--output_dir", "out"])


def test_run_is_finished_until_something_changes_what_it_computes(tmp_path: Path) -> None:
    def arguments(*flags: str):
        return parse(SCRIPTS["vae"], ["--output_dir", "out", *flags])

    first = arguments("--latent_dim", "4")
    assert not is_finished(tmp_path, first)
    write_results(tmp_path, {"recipe": recipe_of(first)})
    elsewhere = (
        "--hub_strategy",
        "every_save",
        "--checkpoints_total_limit",
        "9",
        "--dataset_path",
        "x",
        "--latent_dim",
    )
    assert is_finished(tmp_path, arguments(*elsewhere, "4"))
    assert not any(is_finished(tmp_path, arguments(*flags)) for flags in ([], ["--latent_dim", "5"], ["--seed", "1"]))
    (tmp_path / "results.json").write_text("[")
    assert not is_finished(tmp_path, first)
