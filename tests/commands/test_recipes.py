"""`hfgen recipes`: every recipe, with what README says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hfgen.cli import main
from hfgen.commands.machine.recipe_files import family_of, recipe_names


ROOT = Path(__file__).resolve().parents[2]
FILES = {path.stem: path for path in (ROOT / "training" / "recipes").glob("*.yaml")}


def test_the_list_has_every_recipe_and_the_numbers_of_readme(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.partition("\n\n")[0].splitlines()[1:]}
    assert set(rows) == set(FILES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "")
    for results in (ROOT / "model_cards").glob("*/results.json"):
        name = results.parent.name
        reached = rows[name].split(" s  ", 1)[1].strip()
        assert reached != "-" and reached in readme
        assert f"{yaml.safe_load(FILES[name].read_text())['max_train_seconds']:,} s" in rows[name]


def test_json_has_the_flags_of_the_recipes_of_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "gan", "--json"]) == 0
    (found,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert found["recipe"] == "gan-mnist" and found["family"] == "gan" and found["about"].startswith("A class-cond")
    assert found["flags"] == yaml.safe_load(FILES["gan-mnist"].read_text())
    results = json.loads((ROOT / "model_cards" / "gan-mnist" / "results.json").read_text())
    assert (found["metrics"], found["hardware"]) == (results["metrics"], results["hardware"])


def test_a_recipe_belongs_to_the_family_that_its_name_begins_with() -> None:
    assert family_of("ladder-vae-mnist-lossless") == "ladder_vae" and family_of("vae-binarized-mnist") == "vae"
    assert set(recipe_names("vae")) == {name for name in FILES if name.startswith("vae-")}
