"""Whole trainings that take about a second, each in a process of its own that can be killed.

    run = train("vae", tmp_path / "run", "--seed", 1, fault=Fault(signal.SIGTERM, at_step=6))
    assert run.code == 0 and "Stopped after step 7" in run.output

The processes are forked from a server that has imported everything once, so a run costs no import. The server starts
when this module is imported, which pytest does while it collects.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file


ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("autoencoder", "vae", "ladder_vae", "codec", "gan", "gpt")
# 50 examples at 8 per step, so that epochs end within a step.
COMMON = shlex.split(
    "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 --max_train_samples 50 --max_eval_samples 37 "
    "--per_device_eval_batch_size 8 --max_train_steps 12 --logging_steps 5 --checkpointing_steps 4 --disable_tqdm "
    "--mixed_precision no --channels_last true"
)
OWN = {
    "autoencoder": shlex.split("--hidden_channels 4 8 --latent_dim 4 --noise_std 0.1"),
    "vae": shlex.split(
        "--hidden_channels 4 8 --hidden_size 16 --latent_dim 4 --num_prior_couplings 2 --prior_hidden_size 8 "
        "--nll_samples 2"
    ),
    "ladder_vae": shlex.split(
        "--hidden_channels 4 8 --hidden_size 16 --latent_dim 4 --num_prior_couplings 2 --prior_hidden_size 8 "
        "--nll_samples 2"
    ),
    "codec": shlex.split(
        "--hidden_channels 4 8 --num_residual_blocks 1 --latent_dim 4 --num_levels 3 --max_symbol 7 --wrap_around"
    ),
    "gan": shlex.split("--generator_channels 8 4 --latent_dim 4 --discriminator_steps 2 --quality_samples 0"),
    "gpt": shlex.split(
        "--hidden_size 16 --num_hidden_layers 2 --num_attention_heads 2 --max_position_embeddings 8 "
        "--attention_dropout 0.1 --hidden_dropout 0.1 --embedding_dropout 0.1 --sample_length 20 --ema_decay 0.9 "
        "--attn_implementation sdpa"
    ),
}
# Dropout draws from the process's own generator; every other random number belongs to an example.
NO_DROPOUT = shlex.split("--attention_dropout 0 --hidden_dropout 0 --embedding_dropout 0")
# One global batch of 8, in one process and in each of two.
ONE = shlex.split("--per_device_train_batch_size 8 --gradient_accumulation_steps 1")
TWO = shlex.split("--per_device_train_batch_size 4 --gradient_accumulation_steps 1")
# What `accelerate launch --use_fsdp --fsdp_version 2` sets.
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
# Left out when lines of metrics.jsonl are compared.
TIMES = ("seconds", "examples_per_second")
PRELOADED = ["accelerate.tracking", "datasets", "matplotlib.pyplot", "sklearn.datasets", "sklearn.manifold", "pytest",
             *(f"training.train_{family}" for family in FAMILIES)]  # fmt: skip


@dataclass
class Fault:
    """What happens to a run from inside.

    Attributes:
        signal: sent to itself ...
        at_step: ... in the middle of the step after this many (updates, in the GAN),
        at_evaluation: ... or as its Nth evaluation begins, counted from 1,
        at_file_operation: ... or before its Nth operation on a checkpoint folder, counted as by [`faulty_disk`].
        patch: called first, for what the attributes do not reach; a function of a module, which pickle finds by name.
        rank: the process it happens to; None for all.
    """

    signal: int = signal.SIGKILL
    at_step: int | None = None
    at_evaluation: int | None = None
    at_file_operation: int | None = None
    patch: Callable[[], None] | None = None
    rank: int | None = None


@dataclass
class Run:
    """A training in progress or finished."""

    processes: list[BaseProcess]
    log: Path
    output: str = field(default="", init=False)

    def wait(self, timeout: float = 120) -> Run:
        for process in self.processes:
            process.join(timeout)
            if process.is_alive():
                self.kill()
                raise TimeoutError(f"still running after {timeout} s:\n{self.log.read_text()}")
        self.output = self.log.read_text()
        self.log.unlink()
        return self

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    @property
    def code(self) -> int:
        """Exit status; the negative number of the signal that ended it."""
        return next((p.exitcode or 0 for p in self.processes if p.exitcode), 0)


def start(
    family: str,
    output_dir: Path | str | Sequence[Path],
    *flags: object,
    fault: Fault | None = None,
    processes: int = 1,
    environment: dict[str, str] | None = None,
) -> Run:
    """Starts a tiny training; later flags override the tiny settings. Several folders: one per process."""
    folders = [output_dir] * processes if isinstance(output_dir, str | Path) else output_dir
    argv = [*COMMON, *OWN[family], *map(str, flags)]
    if family == "gpt" and "--dataset_name" not in argv:
        argv += ["--dataset_name", str(text_file())]
    return _start([(family, [*argv, "--output_dir", str(folder)]) for folder in folders], fault, environment)


def start_script(
    family: str,
    argv: list[str],
    fault: Fault | None = None,
    processes: int = 1,
    environment: dict[str, str] | None = None,
) -> Run:
    """Starts a training with these arguments and no others."""
    return _start([(family, argv)] * processes, fault, environment)


def train(
    family: str, output_dir: Path | str | Sequence[Path], *flags: object, timeout: float = 120, **how: Any
) -> Run:
    """Runs a tiny training to its end; keyword arguments are those of [`start`]."""
    return start(family, output_dir, *flags, **how).wait(timeout)


@dataclass
class SharedRun:
    """A finished run that several tests read; not to be changed."""

    run: Run
    path: Path

    @functools.cached_property
    def folder(self) -> Path:
        assert self.run.wait().code == 0, self.run.output
        return self.path


@functools.cache
def shared_run(family: str, *flags: object, processes: int = 1, sharded: bool = False) -> SharedRun:
    """Starts a tiny training, once per session for the same arguments; `.folder` waits for its end.

    Tests that need several start all of them before they wait for one.
    """
    path = _temporary_folder() / family
    environment = SHARDED if sharded else None
    return SharedRun(start(family, path, *flags, processes=processes, environment=environment), path)


def text_file() -> Path:
    """A few thousand characters of English from the standard library."""
    path = Path(tempfile.gettempdir()) / f"hfgen-tests-{os.getuid()}.txt"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text((Path(os.__file__).parent / "this.py").read_text() * 5, encoding="utf-8")
        temporary.rename(path)
    return path


def write_dataset(family: str, folder: Path) -> Path:
    """Two shards of images or of documents."""
    import datasets
    from sklearn.datasets import load_digits

    folder.mkdir()
    digits = load_digits()
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))}
    for shard in range(2):
        rows = range(30 * shard, 30 * shard + 30)
        if family == "gpt":
            table = datasets.Dataset.from_dict({"text": [f"This is the document number {row}." for row in rows]})
        else:
            images = [(digits.images[row] * 15).astype("uint8") for row in rows]
            columns = {"image": images, "label": digits.target[list(rows)].tolist()}
            table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(folder / f"train-{shard:05d}-of-00002.parquet")
    table.to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


@functools.cache
def streamed(family: str) -> tuple[str, ...]:
    """The flags that stream a small dataset."""
    folder = write_dataset(family, _temporary_folder() / "data")
    return ("--dataset_name", str(folder), "--streaming", "--shuffle_buffer_size", "9")


def metrics(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def everything(output_dir: Path) -> dict[str, Any]:
    """All that a finished run computed: every tensor of its last checkpoint, published weights, every logged value."""
    last = max((output_dir / "checkpoints").glob("step-*"))
    files = [*last.glob("*.safetensors"), output_dir / "model.safetensors"]
    tensors = {
        f"{file.relative_to(output_dir)}:{name}": tensor.numpy().tobytes()
        for file in files
        for name, tensor in load_file(file).items()
    }
    results = json.loads((output_dir / "results.json").read_text())
    return {**tensors, "metrics": metrics(output_dir), "results": results["metrics"], "steps": results["steps"]}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The names of whatever is not equal to the bit."""
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def resume_command(output: str) -> list[str]:
    """The command that a stopped run printed."""
    (line,) = re.findall(r"Stopped after step \d+\. To .+:\n\n    (.+)\n", output)
    return shlex.split(line)


def as_recipe(argv: list[str]) -> dict[str, Any]:
    """Flags as the mapping that a recipe holds."""
    values: dict[str, list[Any]] = {}
    for word in argv:
        if word.startswith("--"):
            values[word.removeprefix("--")] = name = []
        else:
            name.append(yaml.safe_load(word) if word != "no" else word)
    lists = ("hidden_channels", "generator_channels")
    return {k: v if k in lists else v[0] if v else True for k, v in values.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


# Faults: what changes a run while it is under way. `strike` gets the arguments of the call.


def before_calls(owner: Any, name: str, numbers: Collection[int], strike: Callable[..., None]) -> None:
    """Calls `strike` before the calls of a function or method that have these numbers, counted from 1."""
    original, calls = getattr(owner, name), 0

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in numbers:
            strike(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def faulty_disk(at: int, strike: Callable[[], None]) -> Any:
    """A disk for checkpoints on which `strike` is called before the Nth operation, counted from 1 in `.operations`.

    A write counts twice: the second time, half of the file is there.
    """
    from training.checkpoint.storage import Disk

    class FaultyDisk(Disk):
        operations = 0

        def count(self, half_done: Path | None = None) -> None:
            self.operations += 1
            if self.operations == at:
                if half_done is not None:
                    os.truncate(half_done, half_done.stat().st_size // 2)
                strike()

        def save_tensors(self, tensors: Any, path: Path, metadata: Any) -> None:
            self.count()
            super().save_tensors(tensors, path, metadata)
            self.count(half_done=path)

        def write_json(self, path: Path, content: Any) -> None:
            self.count()
            super().write_json(path, content)
            self.count(half_done=path)

        def delete_folder(self, path: Path) -> None:
            for file in path.iterdir():
                self.delete_file(file)
            self.count()
            super().delete_folder(path)

    def counted(name: str) -> Callable[..., None]:
        def operation(self: Any, *args: Any) -> None:
            self.count()
            getattr(Disk, name)(self, *args)

        return operation

    for name in ("make_folder", "flush", "rename", "delete_file"):
        setattr(FaultyDisk, name, counted(name))
    return FaultyDisk()


def _arrange(fault: Fault) -> None:
    from training import loop
    from training.checkpoint import storage
    from training.step import PhaseTrainer

    def strike(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), fault.signal)

    if fault.at_step is not None:
        before_calls(PhaseTrainer, "update", [fault.at_step + 1], strike)
    if fault.at_evaluation is not None:
        before_calls(loop, "evaluate", [fault.at_evaluation], strike)
    if fault.at_file_operation is not None:
        storage.disk = faulty_disk(fault.at_file_operation, strike)
    if fault.patch is not None:
        fault.patch()


def _start(commands: list[tuple[str, list[str]]], fault: Fault | None, environment: dict[str, str] | None) -> Run:
    """Starts one process per command, joined by the variables that a launcher sets if there are several."""
    descriptor, log = tempfile.mkstemp(suffix=".log")
    os.close(descriptor)
    port = free_port()
    started = []
    for rank, (family, argv) in enumerate(commands):
        env = {}
        if len(commands) > 1:
            env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(commands), "LOCAL_WORLD_SIZE": len(commands),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
        env = {name: str(value) for name, value in (env | (environment or {})).items()}
        process = _server().Process(target=_run, args=(family, argv, fault, env, log), daemon=True)
        process.start()
        started.append(process)
    return Run(started, Path(log))


def _run(family: str, argv: list[str], fault: Fault | None, env: dict[str, str], log: str) -> None:
    """The body of a training's process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(env)
    # The run ends with the tests and may still have workers for its data, forked like those of a script.
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    import torch

    torch.set_num_threads(1)
    if fault is not None and fault.rank in (None, int(os.environ.get("RANK", "0"))):
        _arrange(fault)
    from training.run_script import run_script

    sys.argv = [f"training/train_{family}.py", *argv]
    run_script(importlib.import_module(f"training.train_{family}").main)


@functools.cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Before Python 3.13 the server does not take over sys.path (gh-117378), and finds nothing to import.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
    forkserver.ensure_running()
    if path is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = path
    return context


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hfgen-runs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# Folders that trainings leave, for tests of what is done with them.

_FOR_CARDS = (
    "--max_train_steps 2 --per_device_train_batch_size 8 --max_train_samples 64 --max_eval_samples 16 --disable_tqdm "
    "--logging_steps 1 --checkpointing_steps 1 --mixed_precision no"
)
_OWN_FOR_CARDS = {
    "autoencoder": "--hidden_channels 4 8 --latent_dim 4",
    "vae": "--hidden_channels 4 8 --hidden_size 16 --latent_dim 4 --num_prior_couplings 2 --prior_hidden_size 8 "
    "--nll_samples 2",
    "ladder_vae": "--hidden_channels 4 8 --hidden_size 16 --latent_dim 4 --nll_samples 2",
    "codec": "--hidden_channels 4 8 --num_residual_blocks 1 --latent_dim 4 --num_levels 3 --max_symbol 7",
    "gan": "--generator_channels 8 4 --latent_dim 4 --quality_samples 0",
    "gpt": "--max_position_embeddings 16 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 "
    "--sample_length 20",
}
# One after the other in one process: most of the time goes into imports.
_RUN_COMMANDS = """
import runpy, sys
for line in sys.stdin.read().splitlines():
    sys.argv = line.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            sys.exit(f"{line}: {end.code}")
"""


def training_command(family: str, output_dir: Path | str, *flags: str) -> list[str]:
    """Script and flags of a training that takes a second."""
    words = f"{_FOR_CARDS} {_OWN_FOR_CARDS[family]} --output_dir {output_dir}".split()
    return [f"training/train_{family}.py", *words, *flags]


def run_commands(commands: list[list[str]], env: dict[str, str] | None = None) -> str:
    """Runs scripts in an interpreter with an environment of its own, and returns what they printed."""
    lines = "\n".join(" ".join(command) for command in commands)
    result = subprocess.run([sys.executable, "-c", _RUN_COMMANDS], input=lines, cwd=ROOT, env=env, text=True,
                            capture_output=True, timeout=300)  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@functools.cache
def trained_runs() -> Path:
    """A folder with a finished run of each family, named after it; not to be changed."""
    home = _temporary_folder()
    runs = [start_script(family, training_command(family, home / family)[1:]) for family in FAMILIES]
    for run in runs:
        assert run.wait().code == 0, run.output
    return home


def copy_run(family: str, target: Path) -> Path:
    """A run that a test may change."""
    return Path(shutil.copytree(trained_runs() / family, target))


def save_untrained(model: Any, folder: Path) -> Path:
    """A folder like a run's, of a model that no script of the tests trains."""
    from hfgen.image_processing import build_image_processor

    config = model.config
    model.register_for_auto_class("AutoModel")
    model.save_pretrained(folder)
    build_image_processor(config.num_channels, tuple(config.image_size)).save_pretrained(folder)
    content = {"model_type": config.model_type, "dataset": "digits", "split": "test", "metrics": {}, "steps": 0}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def conditional_color_models(home: Path) -> list[Path]:
    """The branches of the cards that the trained runs do not reach."""
    import torch

    import hfgen

    torch.manual_seed(0)
    common: dict[str, Any] = {"image_size": [8, 16], "num_channels": 3}
    vae = hfgen.VAEConfig(**common, num_labels=3, hidden_channels=[4, 4], latent_dim=2, latent_type="spatial",
                          likelihood="gaussian", beta=4.0)  # fmt: skip
    ladder = hfgen.LadderVAEConfig(**common, num_labels=3, hidden_channels=[4, 4], latent_dim=2,
                                   likelihood="gaussian", beta=4.0)  # fmt: skip
    gan = hfgen.GANConfig(**common, num_labels=3, latent_dim=4, generator_channels=[4, 4],
                          discriminator_channels=[4, 4], loss_type="wasserstein")  # fmt: skip
    autoencoder = hfgen.AutoencoderConfig(**common, hidden_channels=[4, 4], latent_dim=2, latent_type="spatial",
                                          noise_std=0.1, sparsity_weight=0.1)  # fmt: skip
    return [
        save_untrained(hfgen.VAEModel(vae), home / "vae-color"),
        save_untrained(hfgen.LadderVAEModel(ladder), home / "ladder_vae-color"),
        save_untrained(hfgen.GANModel(gan), home / "gan-color"),
        save_untrained(hfgen.AutoencoderModel(autoencoder), home / "autoencoder-color"),
    ]


if "pytest" in sys.modules and multiprocessing.current_process().name == "MainProcess":
    _server()
