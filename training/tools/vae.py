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
import os
import statistics
import subprocess
import tempfile
import venv
from collections.abc import Callable

from .measuring.rows import Lines, Session, Tool, Training, data_of, read_recipe, run_command, train
from .measuring.runs import run_recipe, run_task
from .vae_rows.figures import bits_of, figure


PYTHAE = "pythae==0.1.2"
PLAIN, LADDER = "vae-binarized-mnist", "ladder-vae-binarized-mnist"
CIFAR = "../shared/data/cifar10"
# The usual 50,000 images of MNIST; the other 10,000 are those that a validation would use.
DYNAMIC = ("--dataset_name", "ylecun/mnist", "--dataset_path", "../shared/data/mnist",
           "--train_split", "train[:50000]", "--dynamic_binarization")  # fmt: skip
THROUGHPUT_SECONDS = 30.0
# Of the config, what the bare loop knows.
BARE_FIELDS = ("hidden_channels", "num_residual_blocks", "hidden_size", "latent_dim", "hidden_act")


TRAININGS = {
    "plain": [Training("VAE", PLAIN)],
    "ladder": [Training("ladder VAE", LADDER)],
    # Several times as many passes over the images as in the recipe's ten minutes, hence the dropout and a lower rate.
    "ladder-hour": [Training("ladder VAE, an hour", LADDER, (
        "--max_train_seconds", "3600", "--dropout", "0.1", "--learning_rate", "3e-3"))],
    "dynamic": [
        Training("VAE, dynamic binarization", PLAIN, DYNAMIC),
        Training("ladder VAE, dynamic binarization", LADDER, DYNAMIC),
    ],
    "cifar": [
        Training("ladder VAE, CIFAR-10", "ladder-vae-cifar10"),
    ],
}  # fmt: skip


def measure_trainings(session: Session, row: str) -> Lines:
    for training in TRAININGS[row]:
        yield training.line, train(session, row, training)


def measure_pythae(session: Session, row: str) -> Lines:
    """Trains pythae's models for as long as the plain recipe takes in all, or for --seconds."""
    seconds = session.seconds or plain_seconds(session)
    if session.options.pythae_python is not None:
        yield from run_pythae(session, session.options.pythae_python, seconds)
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
    most = session.flag("max_eval_samples", 0)
    common = {"data": data_of(PLAIN), "seconds": seconds, "max_eval_samples": int(most) or None,
              "nll_samples": int(session.flag("nll_samples", 1000)),
              "nll_seconds": session.flag("nll_seconds", 30)}  # fmt: skip
    for name in ("VAE", "IWAE", "HVAE"):
        runs = []
        for seed in session.seeds:
            task = {**common, "name": name, "seed": seed}
            found = run_task("training.tools.vae_rows.pythae_vae", task, python, session.environment)
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
    rate = float(recipe["learning_rate"])  # YAML takes 6e-3 for a word
    task = {"data": data_of(PLAIN), "config": config, "batch_size": recipe["per_device_train_batch_size"],
            "learning_rate": rate, "seconds": seconds, "threads": threads, "seed": 0}  # fmt: skip
    # Nothing is measured at the end but the speed.
    flags = ["--max_train_seconds", f"{seconds:g}", "--nll_samples", "0", "--max_eval_samples", "256"]
    runs = []
    for number in range(session.options.repeats):
        ours = run_recipe(PLAIN, session.folder / row / f"run-{number}" / PLAIN, [*flags, *session.flags], environment)
        bare = run_task("training.tools.vae_rows.bare_vae", task, environment=environment)
        speed = ours["examples_seen"] / ours["seconds_trained"]
        runs.append({**ours, "seed": 0, "images_per_second": speed, "bare": bare,
                     "ratio": speed / bare["images_per_second"]})  # fmt: skip
    yield "VAE, images/s", runs


def measure_cifar(session: Session, row: str) -> Lines:
    """Compresses the test images by other means, then trains."""
    from ..config.flags import DataArguments
    from ..data.images import load_images
    from .measuring.lossless_formats import codec_bits

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


TOOL = Tool(Path(__file__), ROWS, figure, metric="nll")


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--repeats", type=int, default=3, help="of the throughput (default: 3)")
    own.add_argument(
        "--pythae_python", type=Path, help=f"interpreter that has pythae (default: {PYTHAE} is installed for the run)"
    )
    run_command(TOOL, __doc__, own)


if __name__ == "__main__":
    main()
