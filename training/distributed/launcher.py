"""What the launcher says through environment variables, and the cores it leaves. No other file reads these variables.

`accelerate launch`, `torchrun` and SLURM scripts all describe a run's processes in the environment.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import psutil


def rank() -> int:
    """This process's rank among all processes of the run."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of processes in the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def machines() -> int:
    """Number of machines, one elastic agent each; 0 without an elastic launcher."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "0"))


def restarts() -> int:
    """How often the elastic launcher has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def keeps_store() -> bool:
    """True if the elastic launcher hosts the store in which processes find each other, across restarts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_launched() -> bool:
    """True if `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def seconds_since_start() -> float:
    """Seconds since the command was started: the launcher's process, or this one if there is no launcher."""
    process = psutil.Process()
    parent = process.parent() if is_launched() else None
    return time.time() - (process if parent is None else parent).create_time()


def on_cpu() -> bool:
    """True if the run must not use a GPU."""
    return _is_true("ACCELERATE_USE_CPU")


def defaulted_to_one_thread() -> bool:
    """True if `accelerate launch` set OMP_NUM_THREADS to 1, its default, which would leave most cores idle."""
    return is_launched() and os.environ.get("OMP_NUM_THREADS") == "1"


def mixed_precision() -> Literal["no", "bf16", "fp16"] | None:
    """The precision that the launcher was asked for; None if it says nothing, or says what no script can do (fp8).

    `accelerate launch` always sets the variable, to "no" by default. Only its command line tells the two apart.
    """
    value = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if value in ("bf16", "fp16"):
        return value  # type: ignore[return-value]
    return "no" if any(word.startswith("--mixed_precision") for word in _words_of_the_launcher()) else None


def _words_of_the_launcher() -> list[str]:
    """The command line of `accelerate launch`, up to the script, which has flags of its own."""
    try:
        words = psutil.Process().parent().cmdline() if is_launched() else []
    except (psutil.Error, AttributeError):
        return []
    scripts = [index for index, word in enumerate(words) if Path(word).stem.startswith("train_") or ".train_" in word]
    return words[: scripts[0]] if scripts else []


def asks_for_fsdp() -> bool:
    """True if `accelerate launch --use_fsdp` started this process."""
    return _is_true("ACCELERATE_USE_FSDP")


def hide_fsdp_request() -> None:
    """Keeps accelerate from preparing FSDP itself; see fsdp.py for why."""
    os.environ["ACCELERATE_USE_FSDP"] = "false"


def available_cores() -> int:
    """Number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_true(name: str) -> bool:
    """As accelerate reads its variables. Its own function would import torch, which a wrong flag need not wait for."""
    return os.environ.get(name, "").lower() in ("1", "true", "t", "yes", "y", "on")
