"""What the launcher says through environment variables, and the cores it leaves. No other file reads these variables.

`accelerate launch`, `torchrun` and SLURM scripts all describe a run's processes in the environment.
"""

from __future__ import annotations

import os

from accelerate.utils import parse_flag_from_env


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


def on_cpu() -> bool:
    """True if the run must not use a GPU."""
    return parse_flag_from_env("ACCELERATE_USE_CPU")


def defaulted_to_one_thread() -> bool:
    """True if `accelerate launch` set OMP_NUM_THREADS to 1, its default, which would leave most cores idle."""
    return is_launched() and os.environ.get("OMP_NUM_THREADS") == "1"


def asks_for_fsdp() -> bool:
    """True if `accelerate launch --use_fsdp` started this process."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def hide_fsdp_request() -> None:
    """Keeps accelerate from preparing FSDP itself; see fsdp.py for why."""
    os.environ["ACCELERATE_USE_FSDP"] = "false"


def available_cores() -> int:
    """Number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
