"""`hfgen train`: flags for the launcher and the script, recipes by name, exit statuses, and signals."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from hfgen import MODELS
from hfgen.cli import main
from hfgen.commands.machine.launch import SHARED_FLAGS, find_recipe, find_script, split_flags
from tests.training.data.file_server import running_server
from training.config.flags import DataArguments, RunArguments
from training.config.scripts import SCRIPTS


ROOT = Path(__file__).resolve().parents[3]
FAMILIES = [architecture.family for architecture in MODELS.values()]
TINY = shlex.split(
    "--hidden_channels 4 8 --hidden_size 16 --latent_dim 4 --nll_samples 2 --per_device_train_batch_size 4 "
    "--max_train_samples 64 --max_eval_samples 16 --disable_tqdm --mixed_precision no --dataset_name digits"
)


def start(*words: str, cwd: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "hfgen", "train", *words], cwd=cwd, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "for_launcher", "shared", "for_script"),
    [
        ("r --latent_dim 4", "", "", "r --latent_dim 4"),
        ("--num_processes 2 r --seed=3 --use_fsdp", "--num_processes 2 --use_fsdp", "", "r --seed=3"),
        ("--num-machines=2 --main_process_ip 10.0.0.1 --hidden_channels 4 8",
         "--num-machines=2 --main_process_ip 10.0.0.1", "", "--hidden_channels 4 8"),
        ("--mixed_precision bf16", "", "--mixed_precision bf16", "--mixed_precision bf16"),
        ("--mixed_precision=auto --cpu", "--cpu", "", "--mixed_precision=auto"),
        ("--help --module --nonsense x", "", "", "--help --module --nonsense x"),
    ],
)  # fmt: skip
def test_a_flag_goes_to_whoever_knows_it(words: str, for_launcher: str, shared: str, for_script: str) -> None:
    expected = tuple(part.split() for part in (for_launcher, shared, for_script))
    assert split_flags(words.split(), launch_command_parser()) == expected


def test_shared_flags_are_those_that_launcher_and_scripts_have_in_common() -> None:
    launcher = {action.dest for action in launch_command_parser()._actions} - {"help"}
    classes: list[Any] = [RunArguments, DataArguments]
    classes += [architecture.config_class for architecture in MODELS.values()]
    classes += [script.extra for script in SCRIPTS.values() if script.extra is not None]
    assert launcher & {field.name for cls in classes for field in dataclasses.fields(cls)} == SHARED_FLAGS


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_has_its_script_recipe_and_template(family: str) -> None:
    home, _ = find_script(family)
    first_words = family.replace("_", "-")
    assert (home / f"train_{family}.py").is_file() and list((home / "recipes").glob(f"{first_words}-*.yaml"))
    assert (ROOT / "model_cards" / f"template_{family}.md").is_file()


def test_a_recipe_is_found_by_name_or_path(tmp_path: Path) -> None:
    recipes = ROOT / "training" / "recipes"
    (tmp_path / "mine.yaml").write_text("seed: 1")
    assert find_recipe(str(tmp_path / "mine.yaml"), "vae", recipes) == str(tmp_path / "mine.yaml")
    found = find_recipe("vae-binarized-mnist", "vae", recipes)
    assert Path(found).samefile(recipes / "vae-binarized-mnist.yaml")
    with pytest.raises(ValueError, match=r"one of gan-mnist, got 'vae-binarized-mnist'"):
        find_recipe("vae-binarized-mnist", "gan", recipes)


@pytest.mark.parametrize(
    ("words", "text"),
    [(["--num_processes", "x"], "--num_processes"), (["--multi_gpu", "--cpu"], "at a time"), (["nope"], "got 'nope'")],
)
def test_mistakes_are_reported_before_anything_starts(
    words: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HFGEN_COMMAND", "HFGEN_REPORTS", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, "")
    assert main(["train", "vae", *words, "--output_dir", "out"]) == 1
    errors = capsys.readouterr().err
    assert text in errors and "usage" not in errors


@pytest.mark.parametrize("words", [["train", "gpt", "--lerning_rate", "1"], ["train", "gpt", "--help"], ["--help"]])
def test_flags_and_help_do_not_wait_for_torch(words: list[str]) -> None:
    program = (
        "import sys\nsys.argv = ['hfgen']\nfrom hfgen.cli import main\n"
        f"try:\n    status = main({words})\nexcept SystemExit as stop:\n    status = stop.code\n"
        "print('status', status, sorted({'torch', 'accelerate', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.endswith(f"status {1 if '--lerning_rate' in words else 0} []\n"), done.stderr
    assert ("did you mean learning_rate?" in done.stderr) == ("--lerning_rate" in words)


def test_a_script_reports_a_wrong_flag_before_it_imports_torch() -> None:
    command = [sys.executable, "-X", "importtime", "training/train_vae.py", "--nonsense", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1 and "unknown argument --nonsense" in done.stderr
    assert not re.search(r"\| +torch$", done.stderr, flags=re.MULTILINE)


def test_hfgen_registers_its_classes_in_every_program_but_its_own_command(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import hfgen")  # while sys.argv[0] is "-m"
    (tmp_path / "mine" / "__main__.py").write_text(
        "import transformers\nprint(transformers.AutoConfig.for_model('hfgen_vae').model_type)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "mine"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.stdout == "hfgen_vae\n", done.stderr


def test_without_accelerate_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train", "vae"]) == 1
    assert "pip install 'hfgen[training]'" in capsys.readouterr().err


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_failure_is_the_scripts_own_paragraph_and_status_1(processes: str, tmp_path: Path) -> None:
    process = start("vae", "--num_processes", processes, "--nonsense", "1", "--output_dir", "out", cwd=tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert output.count("unknown argument --nonsense") == 1
    assert "Traceback" not in output and "ChildFailedError" not in output and "CalledProcess" not in output


@pytest.mark.parametrize(("processes", "by_terminal"), [(1, False), (2, True)], ids=["SIGTERM", "Ctrl-C"])
def test_a_training_by_a_recipes_name_saves_a_checkpoint_when_stopped(
    processes: int, by_terminal: bool, tmp_path: Path
) -> None:
    """SIGTERM goes only to the command; Ctrl-C in a terminal goes to its whole group of processes."""
    process = start("vae", "vae-binarized-mnist", "--num_processes", str(processes), *TINY, "--max_train_steps",
                    "1000000", "--logging_steps", "1", "--output_dir", "out", cwd=tmp_path)  # fmt: skip
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    if by_terminal:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == (0 if processes == 1 else 128 + signal.SIGTERM)
    (saved,) = (tmp_path / "out" / "checkpoints").glob("step-*")
    line = json.loads(metrics.read_text().splitlines()[-1])
    assert saved.name == f"step-{line['step']:06d}"
    assert "Traceback" not in output and "were not passed" not in output, output


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, from a copy: a build leaves folders behind."""
    home = tmp_path_factory.mktemp("wheel")
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    for name in ("hfgen", "training", "model_cards"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, home)
    subprocess.run([sys.executable, "-c", code, str(home)], cwd=home, check=True, capture_output=True)
    (built,) = home.glob("*.whl")
    return built


def test_a_wheel_holds_training_recipes_results_and_templates(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {path.relative_to(ROOT) for path in ROOT.glob("hfgen/**/*.py")}
    expected |= {"hfgen" / path.relative_to(ROOT) for path in ROOT.glob("training/**/*.py")}
    expected |= {"hfgen" / path.relative_to(ROOT) for path in ROOT.glob("training/recipes/*.yaml")}
    expected |= {"hfgen" / path.relative_to(ROOT) for path in ROOT.glob("model_cards/template_*.md")}
    expected |= {"hfgen" / path.relative_to(ROOT) for path in ROOT.glob("model_cards/*/results.json")}
    assert {path.as_posix() for path in expected} | {"hfgen/training/slurm.sbatch"} <= held


def test_an_installed_wheel_trains_a_recipe_whose_data_it_has_to_download(wheel: Path, tmp_path: Path) -> None:
    """As on a stranger's machine: no checkout, no local copy, an empty cache."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target",
                    str(tmp_path / "installed"), str(wheel)], check=True)  # fmt: skip
    text = "".join(f"Line {number} of what is not Shakespeare.\n" for number in range(500)).encode()
    recipe = yaml.safe_load((ROOT / "training" / "recipes" / "gpt-tiny-shakespeare.yaml").read_text(encoding="utf-8"))
    checksum = hashlib.sha256(text).hexdigest()
    command = shlex.split(
        f"-m hfgen train gpt gpt-tiny-shakespeare --num_processes 2 --dataset_sha256 {checksum} --output_dir out "
        "--hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 --sample_length 8 --max_train_steps 2 "
        "--per_device_train_batch_size 4 --mixed_precision no --disable_tqdm"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HFGEN_"))}
    environment |= {"PYTHONPATH": str(tmp_path / "installed"), "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with running_server({recipe["dataset_name"].removeprefix("https:/"): text}) as server:
        command += ["--dataset_mirror", server.url]
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.requests) == 1 and "HTTP Request" not in done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["dataset"], results["dataset_revision"]) == (recipe["dataset_name"], f"sha256:{checksum}")
    assert (results["steps"], results["processes"]) == (2, 2)
    (copy,) = tmp_path.rglob("input.txt")
    assert copy.read_bytes() == text
