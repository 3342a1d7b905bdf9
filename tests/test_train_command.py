"""`hfgen train`: what goes to the launcher and what to the script, and how a failure reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from hfgen.cli import main
from hfgen.models import MODELS
from hfgen.train_command import split_flags

from .runs import ROOT, training_command


def hfgen(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hfgen", "train", *words]
    return subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=300)


@pytest.mark.parametrize(
    ("words", "for_launcher", "for_script"),
    [
        ("--output_dir x", "", "--output_dir x"),
        ("--num_processes 2 --output_dir x --seed 3", "--num_processes 2", "--output_dir x --seed 3"),
        ("--num_processes=2 --use_fsdp --fsdp_version 2 --seed 3", "--num_processes=2 --use_fsdp --fsdp_version 2",
         "--seed 3"),
        ("--mixed_precision bf16", "--mixed_precision bf16", "--mixed_precision bf16"),
        ("--mixed_precision auto", "", "--mixed_precision auto"),
        ("--gradient_accumulation_steps 4", "", "--gradient_accumulation_steps 4"),
        ("recipe.yaml --cpu --hidden_channels 4 8", "--cpu", "recipe.yaml --hidden_channels 4 8"),
    ],
)  # fmt: skip
def test_flags_go_to_whom_they_belong(words: str, for_launcher: str, for_script: str) -> None:
    split = split_flags(words.split(), launch_command_parser())

    assert split == (for_launcher.split(), for_script.split())


def test_a_run_of_two_processes_names_the_command_that_repeats_it(tmp_path: Path) -> None:
    _, *flags = training_command("vae", "run")
    done = hfgen("vae", "--multi_gpu", "--num_processes", "2", *flags, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    results = (tmp_path / "run" / "results.json").read_text()
    assert '"processes": 2' in results
    assert '"command": "hfgen train vae --multi_gpu --num_processes 2 --max_train_steps 2' in results


@pytest.mark.parametrize("launch", [[], ["--multi_gpu", "--num_processes", "2"]], ids=["one process", "two processes"])
def test_a_failure_ends_with_the_words_of_the_script(launch: list[str], tmp_path: Path) -> None:
    done = hfgen("vae", *launch, "--output_dir", "x", "--bogus", "3", cwd=tmp_path)

    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr and "ChildFailed" not in done.stderr
    assert done.stderr.rstrip().endswith("- unknown argument --bogus\nSee --help for all arguments.")


def test_an_unknown_recipe_or_model_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "vae", "vae-mnist"]) == 1
    assert "must be a file or one of vae-binarized-mnist, got vae-mnist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "diffusion"])
    assert all(architecture.family in capsys.readouterr().err for architecture in [*MODELS.values()][:1])


def test_a_wheel_contains_training_recipes_and_templates(tmp_path: Path) -> None:
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns(".git", "tests", "*.egg-info", "build", "__pycache__", "samples", "plots")
    shutil.copytree(ROOT, source, ignore=skipped)
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")

    names = set(zipfile.ZipFile(wheel).namelist())

    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "training").rglob("*.py")}
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "training" / "recipes").glob("*.yaml")}
    templates = {f"hfgen/model_cards/{path.name}" for path in (ROOT / "model_cards").glob("template_*.md")}
    assert recipes and len(templates) == len(MODELS)
    assert {f"hfgen/{name}" for name in modules | recipes} | templates <= names
    assert not any(name.startswith(("training/", "tests/")) for name in names)
