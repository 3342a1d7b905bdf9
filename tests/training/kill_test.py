"""Kills trainings with SIGKILL, resumes them by the same command, and compares the end with an uninterrupted run.

    python -m tests.training.kill_test --kills 30 --every_operation

Each family is killed at so many random moments, and once before every write, fsync, rename and deletion of its saves.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.training.tiny_runs import FAMILIES, Fault, differences, everything, start, train


def kill_at_random(family: str, folder: Path, kills: int, seed: int) -> list[str]:
    """Kills a run after random times until it has been killed so often, lets it end, and compares.

    Returns:
        names of what differs from the uninterrupted run.
    """
    rng = random.Random(seed)
    print(f"{family}: {kills} kills, seed {seed}", flush=True)
    # Long enough to be killed in the middle, and saved often, so that saves are hit as well.
    flags = ["--max_train_steps", 40, "--checkpointing_steps", 2]
    started = time.monotonic()
    assert train(family, folder / "whole", *flags).code == 0
    duration = time.monotonic() - started
    done = 0
    while done < kills:
        run = start(family, folder / "run", *flags)
        run.processes[0].join(rng.uniform(0.3, 1) * duration)
        run.kill()
        if (folder / "run" / "results.json").exists():  # it came to its end: begin another one
            shutil.rmtree(folder / "run")
        done += run.code == -signal.SIGKILL
    run = train(family, folder / "run", *flags)
    assert run.code == 0, run.output
    return differences(everything(folder / "whole"), everything(folder / "run"))


def kill_at_every_file_operation(family: str, folder: Path, every: int = 1) -> list[str]:
    """Kills a run once before every (or every so-manieth) operation by which its saves change the disk, and compares.

    Returns:
        names of what differs from the uninterrupted run.
    """
    assert train(family, folder / "whole").code == 0
    operation, found = 1, []
    while True:
        run = train(family, folder / "run", fault=Fault(at_file_operation=operation))
        if run.code == 0:
            print(f"{family}: killed before {operation - 1} file operations")
            return found
        assert run.code == -signal.SIGKILL, run.output
        run = train(family, folder / "run")
        assert run.code == 0, run.output
        found += differences(everything(folder / "whole"), everything(folder / "run"))
        shutil.rmtree(folder / "run")
        operation += every


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="random kills of each family")
    parser.add_argument("--every_operation", action="store_true", help="kill before each file operation too")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    failed = False
    for family in args.families:
        with tempfile.TemporaryDirectory() as folder:
            found = kill_at_random(family, Path(folder) / "random", args.kills, args.seed)
            if args.every_operation:
                found += kill_at_every_file_operation(family, Path(folder) / "operations")
        print(f"{family}: {'identical to the uninterrupted run' if not found else f'DIFFERENT in {found[:5]}'}")
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
