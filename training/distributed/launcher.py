"""What the launcher says in environment variables and on its command line, and the cores it leaves.

No other file reads these variables. `accelerate launch`, `torchrun` and SLURM scripts all describe a run's processes
in the environment.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil


# What `accelerate launch` looks like on a command line.
ACCELERATE = ("accelerate", "accelerate.exe", "accelerate.commands.accelerate_cli")
ACCELERATE_LAUNCH = ("accelerate-launch", "accelerate-launch.exe", "accelerate.commands.launch")


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
    """Seconds since the command was started: the launcher's process, or this one if there is no launcher or it has
    restarted its processes."""
    return time.time() - _STARTED


def settings() -> dict[str, str]:
    """Settings of the launcher for which scripts have flags, by name, as far as it was given any."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    found = {
        # "no" is also what the launcher says if nobody has asked for anything.
        "mixed_precision": _flag_of_launcher("mixed_precision") or (precision if precision != "no" else None),
        # accelerate sets the variable for DeepSpeed alone, and otherwise ignores its own flag.
        "gradient_accumulation_steps": os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
        or _flag_of_launcher("gradient_accumulation_steps"),
    }
    return {name: value for name, value in found.items() if value}


def _flag_of_launcher(name: str) -> str | None:
    """The value of a flag on the command line of `accelerate launch`, if that is what started this process."""
    try:
        words = psutil.Process(os.getppid()).cmdline() if is_launched() else []
    except psutil.Error:
        return None
    for position, word in enumerate(words):
        is_command = word == "launch" and Path(words[position - 1]).name in ACCELERATE
        if is_command or Path(word).name in ACCELERATE_LAUNCH:
            given = words[position + 1 :]
            if not any(part.partition("=")[0].replace("-", "_") == f"__{name}" for part in given):
                return None
            from accelerate.commands.launch import launch_command_parser  # imports torch, which takes a second

            value = getattr(launch_command_parser().parse_known_args(given)[0], name)
            return None if value is None else str(value)
    return None


def on_cpu() -> bool:
    """True if the run must not use a GPU."""
    return _is_true("ACCELERATE_USE_CPU")


def defaulted_to_one_thread() -> bool:
    """True if `accelerate launch` set OMP_NUM_THREADS to 1, its default, which would leave most cores idle."""
    return is_launched() and os.environ.get("OMP_NUM_THREADS") == "1"


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


def _time_of_start() -> float:
    """When the command was started. Call this before the process starts any others.

    In `bash -c "pip install hfgen && hfgen train vae"`, the shell replaces itself with its last command, which then
    looks as old as the shell. Such a process has already waited for other commands. Its start is then estimated from
    the processor time that it has used: starting Python is nearly all computation.
    """
    process, now = psutil.Process(), time.time()
    parent = process.parent() if is_launched() and not restarts() else None
    if parent is not None:  # what it has done so far ended with starting this process
        process, now = parent, _creation(process)
    times = process.cpu_times()
    if getattr(times, "children_user", 0) + getattr(times, "children_system", 0) > 0:
        return now - times.user - times.system
    return _creation(process)


def _creation(process: psutil.Process) -> float:
    """When a process was created. psutil adds its age to the time of boot, which Linux gives in whole seconds."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return process.create_time()
    return process.create_time() - psutil.boot_time() + time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


try:
    _STARTED = _time_of_start()
except psutil.Error:  # no permission to inspect the launcher's process
    _STARTED = time.time()
