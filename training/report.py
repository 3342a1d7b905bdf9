"""What a run leaves beside its weights: results, plots, the description of the machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import write_json


@contextmanager
def save_staged(output_dir: Path) -> Iterator[Path]:
    """A folder to write to, whose files are moved to output_dir once all of them are complete."""
    staging = output_dir / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in sorted(staging.iterdir()):
            os.replace(path, output_dir / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_results(output_dir: Path, results: dict[str, Any]) -> None:
    """Writes results.json: complete, or the one that was there."""
    temporary = output_dir / ".results.json"
    write_json(temporary, results)
    os.replace(temporary, output_dir / "results.json")


def describe_machine(processes: int, device: torch.device) -> dict[str, Any]:
    """Hardware and versions, as results.json and the card give them."""
    hardware = f"{torch.get_num_threads()} threads of {_processor()}"
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    packages = ("torch", "transformers", "accelerate", "datasets")
    return {
        "hardware": hardware,
        "processes": processes,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def plot_losses(metrics: Path, target: Path, headline: str) -> None:
    """The losses of training and the headline metric of evaluation over the steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    training = [line for line in lines if "learning_rate" in line]
    evaluations = [line for line in lines if line.get(f"eval_{headline}") is not None]
    names = [name for name in (training[0] if training else {}) if name.endswith("loss")]
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    for name in names:
        axes.plot([line["step"] for line in training], [line[name] for line in training], label=name, linewidth=1.2)
    if evaluations:
        axes.plot(
            [line["step"] for line in evaluations],
            [line[f"eval_{headline}"] for line in evaluations],
            "o-",
            color="black",
            markersize=4,
            linewidth=1,
            label=f"evaluation: {headline}",
        )
    values = [line[name] for line in training[len(training) // 10 :] for name in names if line[name] is not None]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target)
    plt.close(figure)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
