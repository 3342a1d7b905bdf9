"""The losses of the first 12 steps, as recorded in losses.json: a guard against changing results by accident.

    python -m tests.training.invariants.test_losses             compares, and prints the largest difference of each run
    python -m tests.training.invariants.test_losses --rewrite   records

Configurations that must agree form a class with one recorded trajectory: one process, one that accumulates, and two
processes at the same global batch. Streamed data come in another order, so they form a class of their own, and so does
a GAN that accumulates or has two processes: its generator normalizes over the examples that a process has at once.
There is no dropout, which draws from the process's own generator.

Bits differ between CPUs, so losses.json states a tolerance per family, relative to the largest value of a loss: 10
times the largest difference measured on one machine between instruction sets (ATEN_CPU_CAPABILITY=default with
ONEDNN_MAX_CPU_ISA=SSE41, AVX2, AVX-512), numbers of threads, and members of a class. A learning rate that is off by
1 % differs by more.

When may losses.json be rewritten? Only in a commit that is meant to change results: a loss, a default, an
initialization, the order of the data, a seed. Its message says which trajectories changed and why, and shows that the
change is an improvement or a correction. A refactoring never rewrites the file. If only another machine or another
release of torch fails here, measure the spread, widen the tolerance, and say what it was measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import pytest
import torch

from tests.runs import COMMON, FAMILIES, NO_DROPOUT, ONE, TWO, SharedRun, metrics, shared_run, streamed
from training.config.scripts import GAN_PRESETS, SCRIPTS


RECORD = Path(__file__).with_name("losses.json")
EACH_STEP = ("--logging_steps", "1")
# Under the GAN's default learning rate, rounding errors of one part in ten million grow to one in a hundred in 12
# steps, so that no tolerance could tell them from a change. Its preset sngan is followed in its place.
CALM = {"gan": ("--preset", "sngan")}
KINDS = ("one process", "accumulated", "two processes", "streamed")
# Largest differences from the record that were measured as described above.
SPREAD = {"autoencoder": 1.1e-6, "vae": 5.1e-5, "ladder_vae": 1.4e-6, "codec": 1.1e-6, "gan": 1.1e-6, "gpt": 3.3e-6}
Losses = dict[str, list[float]]  # name -> one value per step


def start(family: str, kind: str, *flags: str) -> SharedRun:
    own = [*EACH_STEP, *(NO_DROPOUT if family == "gpt" else []), *CALM.get(family, ()), *flags]
    if kind == "streamed":
        return shared_run(family, *ONE, *own, *streamed(family))
    batch = {"one process": ONE, "accumulated": COMMON[:4], "two processes": TWO}[kind]
    return shared_run(family, *batch, *own, processes=2 if kind == "two processes" else 1)


def class_of(family: str, kind: str) -> str:
    has_own = kind == "streamed" or (family == "gan" and kind != "one process")
    return f"{family}, {kind}" if has_own else family


def losses(folder: Path) -> Losses:
    steps = [line for line in metrics(folder) if "learning_rate" in line]
    return {name: [line[name] for line in steps] for name in steps[0] if name.endswith("loss")}


def largest_difference(found: Losses, recorded: Losses) -> float:
    """Over all losses and steps, relative to the largest value of a loss; infinite if other losses were logged."""
    if {name: len(values) for name, values in found.items()} != {name: len(v) for name, v in recorded.items()}:
        return float("inf")
    return max(
        abs(value - expected) / max(map(abs, recorded[name]))
        for name in recorded
        for value, expected in zip(found[name], recorded[name])
    )


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, str], SharedRun]:
    return {(family, kind): start(family, kind) for family in FAMILIES for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_recorded(family: str, kind: str, runs: dict[tuple[str, str], SharedRun]) -> None:
    record = json.loads(RECORD.read_text())
    recorded, tolerance = record["losses"][class_of(family, kind)], record["relative_tolerance"][family]
    found = losses(runs[family, kind].folder)
    assert largest_difference(found, recorded) < tolerance, f"found {found}, recorded {recorded}; see {__file__}"


@pytest.mark.parametrize("family", FAMILIES)
def test_one_percent_of_the_learning_rate_is_noticed(family: str) -> None:
    record = json.loads(RECORD.read_text())
    defaults = SCRIPTS[family].defaults | (GAN_PRESETS["sngan"] if family == "gan" else {})
    rate = defaults["learning_rate"]
    changed = losses(start(family, "one process", "--learning_rate", str(1.01 * rate)).folder)
    assert largest_difference(changed, record["losses"][family]) > 2 * record["relative_tolerance"][family]


def rewrite(found: dict[str, Losses]) -> None:
    """One line per trajectory, so that a diff shows which ones changed."""
    cpu = next((line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())  # fmt: skip
    head = {
        "recorded_on": f"{cpu}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}",
        "relative_tolerance": {family: float(f"{10 * spread:.2g}") for family, spread in SPREAD.items()},
    }
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    for name, trajectory in found.items():
        values = {loss: [float(f"{value:.9g}") for value in series] for loss, series in trajectory.items()}
        series = ",\n".join(f"   {json.dumps(loss)}: {json.dumps(value)}" for loss, value in values.items())
        lines.append(f"  {json.dumps(name)}: {{\n{series}\n  }}" + ("," if name != list(found)[-1] else ""))
        if len(lines) == 3:
            lines.insert(2, ' "losses": {')
    RECORD.write_text("\n".join(["{", *lines, " }", "}"]) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewrite", action="store_true", help="record, instead of comparing with the record")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="flags for all trainings, to measure with"
    )
    args = parser.parse_args()
    runs = {(family, kind): start(family, kind, *args.flags) for family in FAMILIES for kind in KINDS}
    found = {name: losses(run.folder) for name, run in runs.items()}
    if args.rewrite:
        # The first of a class is recorded; the others must agree with it when the test runs.
        classes = {class_of(*name): value for name, value in reversed(found.items())}
        rewrite(dict(sorted(classes.items())))
        return 0
    record = json.loads(RECORD.read_text())
    for (family, kind), trajectory in found.items():
        print(f"{family}, {kind}: {largest_difference(trajectory, record['losses'][class_of(family, kind)]):.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
