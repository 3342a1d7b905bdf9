"""The scripts by their own command lines, and their models in an interpreter without hfgen."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.runs import (
    COMMON,
    FAMILIES,
    OWN,
    ROOT,
    as_recipe,
    differences,
    everything,
    shared_run,
    start_script,
    text_file,
)


ACCUMULATION = ["--gradient_accumulation_steps", "3"]
LOAD_WITHOUT_HFGEN = """
import json, sys
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer
found = {}
for family, folder in json.loads(sys.argv[1]).items():
    if family == "gpt":
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        ids = tokenizer("Now is better", return_tensors="pt")["input_ids"]
        found[family] = tokenizer.decode(model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)[0])
    else:
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        size = AutoImageProcessor.from_pretrained(folder).size
        found[family] = [size["height"], size["width"], sum(p.numel() for p in model.parameters())]
assert "hfgen" not in sys.modules and "training" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module", autouse=True)
def started(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[subprocess.Popen, Path]]:
    """The scripts as a user starts them: with python, and with a launcher, here with a flag that scripts have, too."""
    flags = [*COMMON, "--max_train_steps", "1", "--output_dir", "run"]
    without_accumulation = [*flags[:2], *flags[4:]]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *ACCUMULATION]
    commands = {
        "python": [sys.executable, ROOT / "training" / "train_vae.py", *OWN["vae"], *flags],
        "launch": [*launch, ROOT / "training" / "train_autoencoder.py", *OWN["autoencoder"], *without_accumulation],
    }
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    processes = {}
    for name, command in commands.items():
        folder = tmp_path_factory.mktemp(name)
        with open(folder / "log", "w") as log:
            processes[name] = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log), folder
    return processes


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each script once, from a recipe and with flags that override it."""
    runs = {}
    for family in FAMILIES:
        home = tmp_path_factory.mktemp(family)
        recipe = as_recipe([*COMMON, *OWN[family]])
        if family == "gpt":
            recipe["dataset_name"] = str(text_file())
        (home / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "max_train_steps": 500}))
        argv = [str(home / "recipe.yaml"), "--max_train_steps", "3", "--output_dir", str(home / "run")]
        runs[family] = start_script(family, argv), str(home / "run")
    for run, _ in runs.values():
        assert run.wait().code == 0, run.output
    return {family: folder for family, (_, folder) in runs.items()}


def test_models_load_without_hfgen(folders: dict[str, str], tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path), "PYTHONSAFEPATH": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run([sys.executable, "-c", LOAD_WITHOUT_HFGEN, json.dumps(folders)], cwd=tmp_path, env=env,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("gpt").startswith("Now is better")
    for family, (height, width, parameters) in found.items():
        results = json.loads((Path(folders[family]) / "results.json").read_text())
        assert (height, width, parameters) == (8, 8, results["num_parameters"])


def test_recipe_is_overridden_by_flags(folders: dict[str, str]) -> None:
    results = json.loads((Path(folders["vae"]) / "results.json").read_text())
    assert results["steps"] == 3 and results["arguments"]["latent_dim"] == 4


def test_script_runs_on_its_own_with_python(started: dict[str, tuple[subprocess.Popen, Path]]) -> None:
    process, folder = started["python"]
    assert process.wait(120) == 0, (folder / "log").read_text()
    assert (folder / "run" / "results.json").is_file()


def test_accelerate_launch_leaves_no_core_idle(started: dict[str, tuple[subprocess.Popen, Path]]) -> None:
    """By default, the launcher gives a single process on a CPU a single thread."""
    process, folder = started["launch"]
    assert process.wait(120) == 0, (folder / "log").read_text()
    hardware = json.loads((folder / "run" / "results.json").read_text())["hardware"]
    assert hardware.startswith(f"{len(os.sched_getaffinity(0))} threads")


def test_gradient_accumulation_of_the_launcher_counts_and_survives_a_resume(
    started: dict[str, tuple[subprocess.Popen, Path]],
) -> None:
    process, folder = started["launch"]
    assert process.wait(120) == 0, (folder / "log").read_text()
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["arguments"]["gradient_accumulation_steps"] == 3 and results["examples_seen"] == 3 * 4
    words = shlex.split(results["command"])
    assert words[:5] == ["accelerate", "launch", *ACCUMULATION, "training/train_autoencoder.py"]
    argv = [*words[5:-1], str(folder / "run"), "--max_train_steps", "2"]
    environment = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3"}
    resumed = start_script("autoencoder", argv, environment=environment).wait()
    assert resumed.code == 0 and "Resuming after step 1" in resumed.output, resumed.output


def test_gradient_accumulation_of_the_launcher_equals_the_flag_to_the_bit(tmp_path: Path) -> None:
    """accelerate reads the same variable, and would divide the loss once more."""
    assert COMMON[2:4] == ["--gradient_accumulation_steps", "2"]
    argv = [*COMMON[:2], *COMMON[4:], *OWN["vae"], "--output_dir", str(tmp_path)]
    run = start_script("vae", argv, environment={"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}).wait()
    assert run.code == 0, run.output
    assert differences(everything(shared_run("vae").folder), everything(tmp_path)) == []
