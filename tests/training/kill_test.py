"""Kills trainings with SIGKILL, resumes them by the same command, and compares the end with an uninterrupted run.

    python -m tests.training.kill_test --kills 30 --every_operation

Each family is killed at random moments, with one process and with two, and once before every write, flush, rename and
deletion of its saves and in the middle of every write; a GPT that is sharded over two processes is killed before every
fifth of these operations.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.runs import FAMILIES, SHARDED, Fault, differences, everything, shared_run, start, train


def kill_at_random(family: str, folder: Path, kills: int, seed: int, processes: int = 1, steps: int = 40) -> list[str]:
    """Kills a run after random times until it has been killed `kills` times, lets it end, and compares.

    Returns:
        names of what differs from the uninterrupted run.
    """
    rng = random.Random(seed)
    print(f"{family}, {processes} process(es): {kills} kills at random moments, seed {seed}", flush=True)
    # Long enough to be killed in the middle, and saved often, so that saves are hit as well.
    flags = ["--max_train_steps", steps, "--checkpointing_steps", 2]
    started = time.monotonic()
    assert train(family, folder / "whole", *flags, processes=processes).code == 0
    duration = time.monotonic() - started
    done = 0
    while done < kills:
        started = time.monotonic()
        run = start(family, folder / "run", *flags, processes=processes)
        run.processes[0].join(rng.uniform(0.3, 1) * duration)
        run.kill()
        if (folder / "run" / "results.json").exists():  # it reached its end: begin another one
            shutil.rmtree(folder / "run")
            duration = min(duration, time.monotonic() - started)  # the first one also waited for the server
        done += run.code == -signal.SIGKILL
    run = train(family, folder / "run", *flags, processes=processes)
    assert run.code == 0, f"exit status {run.code}: {run.output}"
    return differences(everything(folder / "whole"), everything(folder / "run"))


def kill_at_every_file_operation(family: str, folder: Path, every: int = 1, sharded: bool = False) -> list[str]:
    """Kills a run once before every Nth operation by which its saves change the disk, resumes it, and compares.

    Args:
        family: which training.
        folder: to work in.
        every: N; 1 for every operation.
        sharded: over two processes, of which the main one is killed.

    Returns:
        names of what differs from the uninterrupted run.
    """
    how: dict[str, Any] = {"processes": 2, "environment": SHARDED} if sharded else {}
    expected = everything(shared_run(family, processes=how.get("processes", 1), sharded=sharded).folder)
    operation, found = 1, []
    while True:
        run = train(family, folder, fault=Fault(at_file_operation=operation, rank=0), **how)
        if run.code == 0:
            kills = len(range(1, operation, every))
            print(f"{family}{', sharded' if sharded else ''}: killed at {kills} file operations", flush=True)
            return found
        assert run.code == -signal.SIGKILL, f"exit status {run.code}: {run.output}"
        run = train(family, folder, **how)
        assert run.code == 0, f"exit status {run.code}: {run.output}"
        found += differences(expected, everything(folder))
        shutil.rmtree(folder)
        operation += every


def kill(family: str, kills: int, every_operation: bool, seed: int) -> list[str]:
    """All kills of a family."""
    with tempfile.TemporaryDirectory() as folder:
        found = kill_at_random(family, Path(folder) / "random", kills, seed)
        found += kill_at_random(family, Path(folder) / "two", kills, seed + 1, processes=2)
        if every_operation:
            found += kill_at_every_file_operation(family, Path(folder) / "operations")
        if every_operation and family == "gpt":
            found += kill_at_every_file_operation(family, Path(folder) / "sharded", every=5, sharded=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="random kills per family and number of processes")
    parser.add_argument("--every_operation", action="store_true", help="also kill at each file operation")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--jobs", type=int, default=2, help="number of families at the same time")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {family: pool.submit(kill, family, args.kills, args.every_operation, args.seed)
                for family in args.families}  # fmt: skip
        # A family that fails does not hide the others.
        results = {
            family: [f"a run failed: {job.exception()}"] if job.exception() else job.result()
            for family, job in jobs.items()
        }
    for family, found in results.items():
        print(f"{family}: {'identical to the uninterrupted run' if not found else f'DIFFERENT in {found[:5]}'}")
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
