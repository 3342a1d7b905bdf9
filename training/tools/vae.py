"""The results of the VAEs beside those of others, one row after another, on the machine that this runs on.

    python training/tools/vae.py                            # every row, on an otherwise idle machine
    python training/tools/vae.py plain pythae --avx2        # as on a processor without AVX-512 and bf16
    python training/tools/vae.py plain --seconds 10 --nll_seconds 5      # other flags go to each training
    python training/tools/vae.py --trials residual-block    # experiments, from vae_trials.yaml

It prints the table and writes vae.json beside this file: new figures replace those of the same row and column, and
each holds the processor, the versions, the seed and the seconds. The models are left in runs/.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


if __name__ == "__main__" and not __package__:  # started as a file: run it again as a module of its package
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    runpy.run_module(f"training.tools.{Path(__file__).stem}", run_name="__main__", alter_sys=True)
    sys.exit()

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from .measured_runs import AVX2, RECIPES, ROOT, describe, run_recipe, run_task
from .scaling import as_words
from .vae_table import COLUMNS, Runs, bits_of, table, trials_table


FIGURES = Path(__file__).with_suffix(".json")
TRIALS = Path(__file__).with_name("vae_trials.yaml")
PYTHAE = "pythae==0.1.2"
PLAIN, LADDER = "vae-binarized-mnist", "ladder-vae-binarized-mnist"
CIFAR = "../shared/data/cifar10"
# The usual 50,000 images of MNIST; the other 10,000 are those that a validation would use.
DYNAMIC = ("--dataset_name", "ylecun/mnist", "--dataset_path", "../shared/data/mnist",
           "--train_split", "train[:50000]", "--dynamic_binarization")  # fmt: skip
THROUGHPUT_SECONDS = 30.0
# Of the config, what the bare loop knows.
BARE_FIELDS = ("hidden_channels", "num_residual_blocks", "hidden_size", "latent_dim", "hidden_act")


@dataclass(frozen=True)
class Training:
    """A line of the table that is a recipe, run as a user runs it.

    Attributes:
        line: what the table calls it.
        recipe: its name.
        flags: in addition to those of the recipe.
    """

    line: str
    recipe: str
    flags: tuple[str, ...] = ()


TRAININGS = {
    "plain": [Training("VAE", PLAIN)],
    "ladder": [Training("ladder VAE", LADDER)],
    "ladder-hour": [Training("ladder VAE, an hour", LADDER, ("--max_train_seconds", "3600"))],
    "dynamic": [
        Training("VAE, dynamic binarization", PLAIN, DYNAMIC),
        Training("ladder VAE, dynamic binarization", LADDER, DYNAMIC),
    ],
    "cifar": [
        Training("ladder VAE, CIFAR-10", "ladder-vae-cifar10"),
    ],
}


@dataclass
class Session:
    """What the command line says, and the figures so far.

    Attributes:
        column: "all instructions" or "AVX2 alone".
        folder: for the models.
        figures: the content of vae.json.
        seconds: of each training, None for what its row says.
        seeds: of the recipes' trainings and of pythae's.
        flags: for each of the recipes' trainings.
        repeats: of the throughput.
        pythae_python: an interpreter that has pythae, and hfgen's requirements; None to make one.
    """

    column: str
    folder: Path
    figures: dict[str, Any]
    seconds: float | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    flags: list[str] = field(default_factory=list)
    repeats: int = 3
    pythae_python: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that limit the processor to the instructions of the column."""
        return AVX2 if self.column == COLUMNS[1] else {}

    @property
    def length(self) -> list[str]:
        """The flag for the length of a training, if one was given."""
        return [] if self.seconds is None else ["--max_train_seconds", f"{self.seconds:g}"]

    def flag(self, name: str, default: float) -> float:
        """The value of one of the flags for trainings, for what is measured beside them in the same way."""
        return float(self.flags[self.flags.index(f"--{name}") + 1]) if f"--{name}" in self.flags else default


# Lines of the table, each as soon as it is measured.
Lines = Iterator[tuple[str, Runs]]


def train(session: Session, row: str, training: Training) -> Runs:
    """Runs a recipe once for each seed.

    Raises:
        ValueError: there is no such recipe, or a run failed.
    """
    runs = []
    for seed in session.seeds:
        # Without a seed the command is the recipe, unchanged.
        own = ["--seed", str(seed)] if seed else []
        flags = [*training.flags, *own, *session.length, *session.flags]
        output_dir = session.folder / row / f"seed-{seed}" / training.recipe
        runs.append({"seed": seed, **run_recipe(training.recipe, output_dir, flags, session.environment)})
    return runs


def measure_trainings(session: Session, row: str) -> Lines:
    for training in TRAININGS[row]:
        yield training.line, train(session, row, training)


def measure_pythae(session: Session, row: str) -> Lines:
    """Trains pythae's models for as long as the plain recipe takes in all, or for --seconds."""
    seconds = session.seconds or plain_seconds(session)
    if session.pythae_python is not None:
        yield from run_pythae(session, session.pythae_python, seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield from run_pythae(session, build_pythae_environment(Path(folder)), seconds)


def plain_seconds(session: Session) -> float:
    """What the command of the plain recipe took in this column, on average.

    Raises:
        ValueError: it has not been measured.
    """
    runs = session.figures.get("rows", {}).get("plain", {}).get("VAE", {}).get(session.column)
    if not runs:
        raise ValueError(f"row plain must be measured first ({session.column}), got none. Or give --seconds.")
    return statistics.fmean(run["seconds"] for run in runs)


def run_pythae(session: Session, python: Path, seconds: float) -> Lines:
    """Trains and measures each of pythae's models."""
    recipe = read_recipe(PLAIN)
    data = {name: recipe[name] for name in ("dataset_name", "dataset_path") if name in recipe}
    most = session.flag("max_eval_samples", 0)
    common = {"data": data, "seconds": seconds, "max_eval_samples": int(most) or None,
              "nll_samples": int(session.flag("nll_samples", 1000)),
              "nll_seconds": session.flag("nll_seconds", 30)}  # fmt: skip
    for name in ("VAE", "IWAE", "HVAE"):
        runs = []
        for seed in session.seeds:
            task = {**common, "name": name, "seed": seed}
            found = run_task("training.tools.pythae_vae", task, python, session.environment)
            runs.append({"seed": seed, **found})
        yield f"pythae's {name}", runs


def build_pythae_environment(folder: Path) -> Path:
    """Makes an environment with pythae in it, and the packages of this one; returns its interpreter.

    Raises:
        ValueError: pip failed.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    packages = [path for path in sys.path if path.endswith("site-packages")]
    purelib = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = subprocess.run([python, "-c", purelib], capture_output=True, text=True, check=True).stdout.strip()
    Path(own, "hfgen-packages.pth").write_text("\n".join(packages) + "\n", encoding="utf-8")
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", PYTHAE], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"pip must install {PYTHAE}, got:\n{done.stderr[-2000:]}\nOr give --pythae_python.")
    return python


def measure_throughput(session: Session, row: str) -> Lines:
    """Trains the plain recipe and the bare loop in turns: A B A B ..."""
    recipe, seconds = read_recipe(PLAIN), session.seconds or THROUGHPUT_SECONDS
    environment = session.environment
    threads = len(os.sched_getaffinity(0))
    config = {name: recipe[name] for name in BARE_FIELDS if name in recipe}
    data = {name: recipe[name] for name in ("dataset_name", "dataset_path") if name in recipe}
    rate = float(recipe["learning_rate"])  # YAML takes 6e-3 for a word
    task = {"data": data, "config": config, "batch_size": recipe["per_device_train_batch_size"],
            "learning_rate": rate, "seconds": seconds, "threads": threads, "seed": 0}  # fmt: skip
    # Nothing is measured at the end but the speed.
    flags = ["--max_train_seconds", f"{seconds:g}", "--nll_samples", "0", "--max_eval_samples", "256"]
    runs = []
    for number in range(session.repeats):
        ours = run_recipe(PLAIN, session.folder / row / f"run-{number}" / PLAIN, [*flags, *session.flags], environment)
        bare = run_task("training.tools.bare_vae", task, environment=environment)
        speed = ours["examples_seen"] / ours["seconds_trained"]
        runs.append({**ours, "seed": 0, "images_per_second": speed, "bare": bare,
                     "ratio": speed / bare["images_per_second"]})  # fmt: skip
    yield "VAE, images/s", runs


def measure_cifar(session: Session, row: str) -> Lines:
    """Compresses the test images by other means, then trains."""
    from ..config.flags import DataArguments
    from ..data.images import load_images
    from .image_codecs import codec_bits

    most = int(session.flag("max_eval_samples", 0)) or None
    images = load_images(DataArguments(dataset_name=CIFAR), 0).eval_pixels[:most]
    for name, bits in codec_bits(images).items():
        yield name, [{"bits_per_dim": bits}]
    for line, runs in measure_trainings(session, row):
        yield line, [{**run, **bits_of(run["metrics"])} for run in runs]


ROWS: dict[str, Callable[[Session, str], Lines]] = {
    "plain": measure_trainings,
    "ladder": measure_trainings,
    "ladder-hour": measure_trainings,
    "dynamic": measure_trainings,
    "pythae": measure_pythae,
    "throughput": measure_throughput,
    "cifar": measure_cifar,
}


def read_recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def record(figures: dict[str, Any], row: str, line: str, column: str, runs: Runs) -> None:
    """Replaces the figures of a line in a column; all others stay."""
    figures.setdefault("rows", {}).setdefault(row, {}).setdefault(line, {})[column] = runs


@dataclass(frozen=True)
class Trial:
    """An experiment: an entry of vae_trials.yaml.

    Attributes:
        name: of the trial.
        change: what differs from `against`.
        prediction: of the NLL, written before the run.
        flags: of the training, by name.
        recipe: that the flags are added to.
        seeds: one run for each.
        against: the trial to compare with, or None.
    """

    name: str
    change: str
    prediction: str
    flags: dict[str, Any]
    recipe: str = PLAIN
    seeds: tuple[int, ...] = (0,)
    against: str | None = None


def read_trials(path: Path = TRIALS) -> dict[str, Trial]:
    """Returns the trials by name.

    Raises:
        ValueError: two have one name, or one is compared with a trial that does not exist.
    """
    trials: dict[str, Trial] = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        if entry["name"] in trials:
            raise ValueError(f"name must be new in {path.name}, got {entry['name']!r} again. Rename the trial.")
        trials[entry["name"]] = Trial(**entry)
    for trial in trials.values():
        if trial.against is not None and trial.against not in trials:
            raise ValueError(f"against must be a trial ({', '.join(trials)}), got {trial.against!r}.")
    return trials


def run_trial(session: Session, trial: Trial) -> dict[str, Any]:
    """Returns what vae.json holds of a trial in a column."""
    seeds = replace(session, seeds=list(trial.seeds))
    training = Training(trial.name, trial.recipe, tuple(as_words(trial.flags)))
    return {**vars(trial), "runs": train(seeds, f"trials/{trial.name}", training)}


def save(figures: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps({"machine": describe(), **figures}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: {' '.join(ROWS)}")
    parser.add_argument("--avx2", action="store_true", help="use no instructions beyond AVX2, and so none for bf16")
    parser.add_argument("--seconds", type=float, help="of each training (default: what its recipe or row says)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="a run for each (default: 0)")
    parser.add_argument("--repeats", type=int, default=3, help="of the throughput (default: 3)")
    parser.add_argument(
        "--pythae_python", type=Path, help=f"interpreter that has pythae (default: {PYTHAE} is installed for the run)"
    )
    parser.add_argument("--figures", type=Path, default=FIGURES, help="file of the figures (default: vae.json)")
    parser.add_argument("--trials", nargs="*", metavar="NAME", help="run trials instead of rows (default: all)")
    args, flags = parser.parse_known_args()
    figures = json.loads(args.figures.read_text(encoding="utf-8")) if args.figures.is_file() else {}
    figures.pop("machine", None)
    column = COLUMNS[args.avx2]
    folder = ROOT / ("runs-avx2" if args.avx2 else "runs")
    session = Session(column, folder, figures, args.seconds, args.seeds, flags, args.repeats, args.pythae_python)
    failures = run_all(session, args.rows, args.trials, args.figures)
    print(table(figures, list(ROWS)) if args.trials is None else trials_table(figures))
    if failures:
        sys.exit("\n".join(failures))


def run_all(session: Session, rows: list[str], trials: list[str] | None, path: Path) -> list[str]:
    """Measures rows, or runs trials, and saves each as soon as it is there.

    Returns:
        a sentence for each that failed; the others are measured all the same.

    Raises:
        SystemExit: a name is unknown; nothing was run.
    """
    known: Any = ROWS if trials is None else read_trials()
    names = (rows if trials is None else trials) or list(known)
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"name must be one of {', '.join(known)}, got {', '.join(unknown)}.")
    failures = []
    for name in names:
        try:
            if trials is None:
                for line, runs in known[name](session, name):
                    record(session.figures, name, line, session.column, runs)
                    save(session.figures, path)
            else:
                of_trial = session.figures.setdefault("trials", {}).setdefault(name, {})
                of_trial[session.column] = run_trial(session, known[name])
                save(session.figures, path)
        except ValueError as error:
            failures.append(f"{name}: {error}")
    return failures


if __name__ == "__main__":
    main()
