"""Whole trainings of a second or so, each in a process of its own that can be killed.

The processes are forked from a server that has imported everything once, so that a run costs no import.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import re
import runpy
import shlex
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file


ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("autoencoder", "vae", "gan", "gpt")
# Small enough for a second; 50 examples at 8 a step, so that epochs end within a step.
COMMON = shlex.split(
    "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 --max_train_samples 50 --max_eval_samples 37 "
    "--per_device_eval_batch_size 8 --max_train_steps 12 --logging_steps 5 --checkpointing_steps 4 --disable_tqdm "
    "--mixed_precision no"
)
OWN = {
    "autoencoder": shlex.split("--hidden_channels 4 8 --latent_dim 4 --noise_std 0.1"),
    "vae": shlex.split("--hidden_channels 4 8 --hidden_size 16 --latent_dim 4 --nll_samples 2 --optimizer muon"),
    "gan": shlex.split("--generator_channels 8 4 --latent_dim 4 --discriminator_steps 2 --quality_samples 0"),
    "gpt": shlex.split(
        "--hidden_size 16 --num_hidden_layers 2 --num_attention_heads 2 --max_position_embeddings 8 "
        "--attention_dropout 0.1 --hidden_dropout 0.1 --embedding_dropout 0.1 --sample_length 20 --ema_decay 0.9"
    ),
}
# What `accelerate launch --use_fsdp --fsdp_version 2` sets.
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
# Lines of metrics.jsonl are compared without these.
TIMES = ("seconds", "examples_per_second")


@dataclass
class Fault:
    """What befalls a run from inside.

    Attributes:
        signal: sent to itself ...
        at_step: ... in the middle of the step after so many,
        at_evaluation: ... or in the first batch of its so-manieth evaluation, counted from 1,
        at_file_operation: ... or before its so-manieth write, fsync, rename or deletion of a checkpoint; or, as writes
            count twice, when half of one is done.
        code: statements to run first, to patch what the attributes do not reach.
        rank: the process that it befalls, None for all.
    """

    signal: int = signal.SIGKILL
    at_step: int | None = None
    at_evaluation: int | None = None
    at_file_operation: int | None = None
    code: str = ""
    rank: int | None = None


@dataclass
class Run:
    """A training under way or done."""

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


def start(family: str, output_dir: Path | str, *flags: object, fault: Fault | None = None, processes: int = 1,
          environment: dict[str, str] | None = None) -> Run:  # fmt: skip
    """Starts a tiny training; later flags override the tiny settings."""
    argv = [*COMMON, *OWN[family], "--output_dir", str(output_dir), *map(str, flags)]
    if family == "gpt" and "--dataset_name" not in argv:
        argv += ["--dataset_name", str(text_file())]
    return start_script(family, argv, fault, processes, environment)


def start_script(family: str, argv: list[str], fault: Fault | None = None, processes: int = 1,
                 environment: dict[str, str] | None = None) -> Run:  # fmt: skip
    """Starts a training script with these arguments and no others."""
    context = _server()
    descriptor, log = tempfile.mkstemp(suffix=".log")
    os.close(descriptor)
    port = _free_port() if processes > 1 else 0
    started = []
    for rank in range(processes):
        distributed = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}  # fmt: skip
        env = {k: str(v) for k, v in distributed.items()} if processes > 1 else {}
        env |= environment or {}
        process = context.Process(target=_run, args=(family, argv, fault, env, log), daemon=True)
        process.start()
        started.append(process)
    return Run(started, Path(log))


def train(family: str, output_dir: Path | str, *flags: object, fault: Fault | None = None, processes: int = 1,
          environment: dict[str, str] | None = None) -> Run:  # fmt: skip
    """Runs a tiny training to its end."""
    return start(family, output_dir, *flags, fault=fault, processes=processes, environment=environment).wait()


def text_file() -> Path:
    """English of a few thousand characters that the standard library carries."""
    path = Path(tempfile.gettempdir()) / f"hfgen-tests-{os.getuid()}.txt"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text((Path(os.__file__).parent / "this.py").read_text() * 5, encoding="utf-8")
        temporary.rename(path)
    return path


def metrics(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without the fields that tell the time."""
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
    """The names of what is not equal to the bit."""
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


@functools.cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.tiny_runs_preload"])
    # Before Python 3.13 the server does not take over sys.path (gh-117378), and finds nothing to import.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
    forkserver.ensure_running()
    if path is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = path
    return context


def _run(family: str, argv: list[str], fault: Fault | None, env: dict[str, str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(env)
    # It ends with the tests, and may have workers for its data all the same, forked as those of a script are.
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    import torch

    torch.set_num_threads(1)
    if fault is not None and fault.rank in (None, int(os.environ.get("RANK", "0"))):
        _arrange(fault)
    script = ROOT / "training" / f"train_{family}.py"
    sys.argv = [str(script), *argv]
    runpy.run_path(str(script), run_name="__main__")


def _arrange(fault: Fault) -> None:
    from training import loop
    from training import step as phases
    from training.checkpoint import storage as checkpoint

    def strike() -> None:
        os.kill(os.getpid(), fault.signal)

    def before(owner: Any, name: str, is_time: Any) -> None:
        original = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            if is_time(*args, **kwargs):
                strike()
            return original(*args, **kwargs)

        setattr(owner, name, patched)

    if fault.at_step is not None:
        before(phases.PhaseTrainer, "update", _CountDown(fault.at_step + 1))
    if fault.at_evaluation is not None:
        before(loop, "evaluate", _CountDown(fault.at_evaluation))
    if fault.at_file_operation is not None:
        watch_file_operations(checkpoint, _CountDown(fault.at_file_operation), before, strike)
    exec(fault.code, {})


def watch_file_operations(checkpoint: Any, is_time: Any, before: Any, strike: Any) -> None:
    """Calls `is_time` before every operation by which a save changes the disk, and in the middle of every write."""

    def tear(name: str, path_of: Any) -> None:
        original = getattr(checkpoint, name)

        def patched(*args: Any) -> Any:
            done = original(*args)
            if is_time():
                os.truncate(path_of(args), os.path.getsize(path_of(args)) // 2)
                strike()
            return done

        setattr(checkpoint, name, patched)

    tear("save_file", lambda args: args[1])
    tear("write_json", lambda args: args[0])
    for owner, name in (
        (checkpoint, "save_file"), (checkpoint, "flush"), (checkpoint, "write_json"), (checkpoint.os, "fsync"),
        (checkpoint.os, "rename"), (checkpoint.os, "unlink"), (checkpoint.os, "rmdir"), (checkpoint.os, "mkdir"),
    ):  # fmt: skip
        before(owner, name, is_time)


class _CountDown:
    """True at the n-th call."""

    def __init__(self, calls: int):
        self.left = calls

    def __call__(self, *_: Any, **__: Any) -> bool:
        self.left -= 1
        return self.left == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resume_command(output: str) -> list[str]:
    """The command that a stopped run told."""
    (line,) = re.findall(r"To go on:\n\n    (.+)\n", output)
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
