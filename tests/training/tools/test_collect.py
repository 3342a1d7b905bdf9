"""README's table is what was measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hfgen import MODELS
from training.config.parser import parse
from training.config.scripts import SCRIPTS
from training.tools.collect import ROOT, collect, results_table, with_table
from training.tools.measuring.runs import family_of


def test_readme_shows_the_numbers_of_the_collected_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert with_table(readme, results_table(ROOT / "model_cards")) == readme


def test_every_file_of_readmes_map_exists_and_every_module_is_on_it() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    file_map = readme.split("## Where things are", 1)[1]
    modules = [path for folder in ("hfgen", "training") for path in (ROOT / folder).rglob("*.py")]
    assert modules

    def is_named(module: Path) -> bool:
        # A folder may have a map of its own: its README, or the docstring of its package.
        own = (module.with_name("README.md"), module.with_name("__init__.py"))
        maps = [file_map, *(path.read_text(encoding="utf-8") for path in own if path.is_file())]
        return any(module.name in text for text in maps)

    missing = {path.name for path in modules if not is_named(path)} - {"__init__.py"}
    assert not missing
    named = {word.rpartition("/")[2] for word in file_map.split() if word.endswith(".py")}
    assert named <= {path.name for path in modules}


def test_every_test_that_the_fault_table_names_exists() -> None:
    table = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", table))
    assert len(named) > 15

    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    written = {name for text in texts for name in re.findall(r"^def (test_\w+)", text, flags=re.MULTILINE)}
    assert named <= written


def test_collect_takes_the_newest_samples_and_refuses_an_unfinished_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    for name in ("step-000010.png", "step-000010-traversal.png", "step-000200.png", "step-000200-traversal.png"):
        (run / "samples" / name).touch()
    with pytest.raises(ValueError, match=r"without results\.json"):
        collect(run, tmp_path / "cards")
    (run / "results.json").write_text(json.dumps({"metrics": {}}), encoding="utf-8")

    target = collect(run, tmp_path / "cards")

    assert {path.name for path in (target / "samples").iterdir()} == {"step-000200.png", "step-000200-traversal.png"}


def test_results_of_a_slower_processor_are_kept_beside_those_of_the_card(tmp_path: Path) -> None:
    results: dict[str, Any] = {
        "model_type": "hfgen_autoencoder", "dataset": "digits", "split": "test", "num_parameters": 1_000_000,
        "seconds_trained": 10.0, "steps": 5,
    }  # fmt: skip
    for folder, hardware, mse in (("a", "2 threads of A", 0.25), ("b", "2 threads of B, limited by X=AVX2", 0.5)):
        run = tmp_path / folder / "autoencoder-digits"
        (run / "samples").mkdir(parents=True)
        (run / "samples" / "step-1.png").touch()
        (run / "results.json").write_text(json.dumps({**results, "hardware": hardware, "metrics": {"mse": mse}}))
    for folder in ("a", "b", "a"):
        collect(tmp_path / folder / "autoencoder-digits", tmp_path / "cards")

    (row,) = results_table(tmp_path / "cards").splitlines()[2:]

    assert [cell.strip()[:19] for cell in row.split("|")[3:5]] == ["test MSE **0.2500**", "test MSE **0.5000**"]
    assert row.endswith("| A / B |")


def test_a_processor_that_the_system_names_by_numbers_has_its_usual_name_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "gan-mine").mkdir()
    results = {
        "model_type": "hfgen_gan", "dataset": "digits", "split": "test", "num_parameters": 10**6, "steps": 3,
        "seconds_trained": 1.0, "metrics": {}, "hardware": "2 threads of AMD EPYC (family 26, model 2)",
    }  # fmt: skip
    (tmp_path / "gan-mine" / "results.json").write_text(json.dumps(results), encoding="utf-8")

    assert results_table(tmp_path).endswith("| AMD EPYC, Zen 5 |")


def test_a_metric_that_was_not_measured_is_not_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "gan-mine").mkdir()
    results = {
        "model_type": "hfgen_gan", "dataset": "digits", "split": "test", "num_parameters": 10**6, "steps": 3,
        "seconds_trained": 1.0, "metrics": {"classifier_fid": None, "coverage": 0.5, "label_accuracy": None},
    }  # fmt: skip
    (tmp_path / "gan-mine" / "results.json").write_text(json.dumps(results), encoding="utf-8")

    assert "1.0 M parameters | digits (test) | coverage 0.50; 1 s, 3 steps |" in results_table(tmp_path)


def test_the_likelihood_names_its_bound_and_has_its_error_if_there_is_one(tmp_path: Path) -> None:
    """Older results know the number of samples from the flag, and no error."""
    old: dict[str, Any] = {
        "model_type": "hfgen_vae", "dataset": "digits", "split": "test", "num_parameters": 10**6, "steps": 3,
        "seconds_trained": 1.0, "metrics": {"nll": 88.5631}, "arguments": {"nll_samples": 100},
    }  # fmt: skip
    details = {"nll_samples": 1000, "nll_standard_error": 0.0312}
    for name, results in {"vae-a": old, "vae-b": {**old, "metrics_details": details}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results), encoding="utf-8")

    rows = results_table(tmp_path).splitlines()[2:]

    assert "test NLL (IW-100), nats **88.56**; 1 s" in rows[0]
    assert "test NLL (IW-1000), nats **88.56 ± 0.03**; 1 s" in rows[1]


def test_collect_copes_with_a_run_without_samples(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text(json.dumps({"metrics": {}}), encoding="utf-8")

    assert (collect(run, tmp_path / "cards") / "results.json").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_understood_by_its_script(path: Path) -> None:
    family = family_of(path.stem)
    (architecture,) = (entry for entry in MODELS.values() if entry.family == family)

    arguments = parse(SCRIPTS[architecture.family], [str(path)], architecture.config_class)

    assert arguments.run.output_dir == f"runs/{path.stem}"
    # Half an hour is what the literature's loss with this context is compared at.
    assert arguments.run.max_train_seconds <= (1800 if path.stem == "gpt-tiny-shakespeare-256" else 1200)
