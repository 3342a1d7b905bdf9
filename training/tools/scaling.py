"""Measures how speed and memory grow with processes, data and model size, and what torch.compile is worth.

    python -m training.tools.scaling            # a third of an hour, on an otherwise idle machine
    python -m training.tools.scaling --quick    # the same at tiny sizes, to check that it works

It writes scaling.json and scaling.png beside itself. Every measurement runs in a process of its own, and all except
those of the data run the training scripts as users do. Variants take turns, so that a machine that changes its speed
favors none.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measuring.runs import ROOT, as_words, describe, run_task


MODULE = "training.tools.scaling"
RECIPES = {"autoencoder": "autoencoder-mnist", "vae": "vae-binarized-mnist", "gan": "gan-mnist",
           "gpt": "gpt-tiny-shakespeare"}  # fmt: skip
# Nothing but training.
BARE = {
    "max_eval_samples": 256, "eval_steps": 1_000_000, "logging_steps": 2, "checkpointing_steps": 1_000_000,
    "disable_tqdm": True, "lr_scheduler_type": "constant",
}  # fmt: skip
OWN = {"autoencoder": {}, "vae": {"nll_samples": 0}, "gan": {"quality_samples": 0}, "gpt": {"sample_length": 1}}
CONTEXT = 64  # tokens in a window of the GPTs
SHORT_TEXT, STREAM_BATCH = 16, 256  # tokens per streamed example, including its closing token; examples per batch


@dataclass(frozen=True)
class Sizes:
    """The extent of the measurements.

    Attributes:
        seconds: of training in each run.
        repeats: of every measurement but those with a million streamed examples or more.
        examples: of the streamed datasets.
        models: (hidden_size, layers) of the GPTs.
        matrix: rows of the square matrices whose product gives the machine's peak.
        families: those to measure.
        is_quick: a few steps on built-in data with small batches, instead of seconds on the recipes' data.
    """

    seconds: float
    repeats: int
    examples: tuple[int, ...]
    models: tuple[tuple[int, int], ...]
    matrix: int
    families: tuple[str, ...]
    is_quick: bool

    @property
    def length(self) -> dict[str, float]:
        """The flag for the length of a run."""
        return {"max_train_steps": 8} if self.is_quick else {"max_train_seconds": self.seconds}


FULL = Sizes(
    6,
    2,
    (10**4, 10**5, 10**6, 10**7),
    ((64, 2), (128, 4), (256, 6), (512, 16)),
    2048,
    tuple(RECIPES),
    False,
)
QUICK = Sizes(0.2, 1, (10**3, 10**4), ((32, 1), (64, 2)), 512, ("vae",), True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)"
    )
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent, help="where the two files go")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return print(json.dumps(run_child(json.loads(arguments.child))))
    target = arguments.output_dir / "scaling.json"
    results = json.loads(target.read_text(encoding="utf-8")) if target.exists() and not arguments.quick else {}
    for part in arguments.parts:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            results[part] = PARTS[part](QUICK if arguments.quick else FULL, Path(folder))
        results[part]["seconds_measured"] = round(time.perf_counter() - started)
        results["machine"] = describe()
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if all(part in results for part in PARTS):
        plot(results, target.with_suffix(".png"))


def measure_processes(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Measures each family at one global batch size, as one process with one or two threads and as two processes."""
    variants = {"1 process, 1 thread": (1, 1), "2 processes, 1 thread": (2, 1), "1 process, 2 threads": (1, 2)}
    found: dict[str, Any] = {}
    for family in sizes.families:

        def measure(variant: str, family: str = family) -> dict[str, float]:
            processes, threads = variants[variant]
            flags = family_flags(family, sizes)
            flags["per_device_train_batch_size"] //= processes
            return run_training(family, {**flags, **sizes.length}, folder, processes, threads)

        found[family] = interleave(variants, sizes.repeats, measure)
    return found


def measure_compile(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Measures each family with --torch_compile off and on, with one thread per core."""
    found: dict[str, Any] = {}
    for family in sizes.families:
        flags = family_flags(family, sizes)
        threads = len(os.sched_getaffinity(0))
        rate = run_training(family, {**flags, **sizes.length}, folder, 1, threads)
        steps = max(8, int(rate["examples_per_second"] / flags["per_device_train_batch_size"] * sizes.seconds))

        def measure(variant: str, family: str = family, flags: dict = flags, steps: int = steps) -> dict[str, float]:
            length = {"max_train_steps": steps, "torch_compile": variant == "on"}
            return run_training(family, {**flags, **length}, folder, 1, len(os.sched_getaffinity(0)))

        found[family] = interleave(("off", "on"), sizes.repeats, measure)
        found[family] |= worth(found[family]["off"], found[family]["on"])
    return found


def worth(off: dict[str, Any], on: dict[str, Any]) -> dict[str, float | None]:
    """Computes what compiling costs once and gains from then on.

    Returns:
        seconds_to_compile; speedup, a ratio; pays_after_seconds of training, None if never.
    """
    seconds = on["seconds_to_first_line"]["median"] - off["seconds_to_first_line"]["median"]
    speedup = on["examples_per_second"]["median"] / off["examples_per_second"]["median"]
    # Compiled, t - s seconds do the work of speedup * (t - s) seconds: it pays when that equals t.
    pays = round(seconds * speedup / (speedup - 1), 1) if speedup > 1 else None
    return {"seconds_to_compile": round(seconds, 2), "speedup": round(speedup, 3), "pays_after_seconds": pays}


def family_flags(family: str, sizes: Sizes) -> dict[str, Any]:
    """Returns the flags of the family's recipe, except for its length."""
    import yaml

    recipe = yaml.safe_load((ROOT / "training" / "recipes" / f"{RECIPES[family]}.yaml").read_text(encoding="utf-8"))
    for name in ("max_train_steps", "max_train_seconds", "output_dir"):
        del recipe[name]
    if sizes.is_quick:
        recipe = {k: v for k, v in recipe.items() if k not in ("dataset_name", "dataset_path", "dataset_sha256")}
        recipe["per_device_train_batch_size"] = 8
    return {**recipe, **BARE, **OWN[family]}


def run_training(family: str, flags: dict[str, Any], folder: Path, processes: int, threads: int) -> dict[str, float]:
    """Runs a training script in fresh processes.

    Returns:
        examples_per_second in the second half of the run; seconds_to_first_line of its metrics; of the process that
        needs most, peak_mb (resident) and peak_anonymous_mb (without files and code mapped into memory).
    """
    own_folder = Path(tempfile.mkdtemp(dir=folder))
    output_dir = own_folder / "run"
    command = [sys.executable, str(ROOT / "training" / f"train_{family}.py"), *as_words(flags), "--output_dir",
               str(output_dir), "--cpu_threads", str(threads)]  # fmt: skip
    port = free_port()
    started = []
    for rank in range(processes):
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true",
               "TORCHINDUCTOR_CACHE_DIR": str(own_folder / "compiled")}  # fmt: skip
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_PORT": str(port),
                    "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
        with open(own_folder / f"log-{rank}", "w") as log:
            started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
    peaks = watch_memory(started)
    if any(process.returncode for process in started):
        raise RuntimeError(f"{' '.join(command)} failed:\n{(own_folder / 'log-0').read_text()[-3000:]}")
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [line for line in lines if "learning_rate" in line]
    batch = flags["per_device_train_batch_size"] * processes
    return {"examples_per_second": rate_of(logged) * batch, "seconds_to_first_line": logged[0]["seconds"], **peaks}


def rate_of(lines: list[dict[str, float]]) -> float:
    """Returns steps per second in the second half of a run, from its logged lines; the first half is warm-up.

    Raises:
        ValueError: there are fewer than two lines.
    """
    if len(lines) < 2:
        raise ValueError(f"lines must contain at least 2 entries, got {len(lines)}. Run for longer.")
    first, last = lines[(len(lines) - 1) // 2], lines[-1]
    return (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])


def watch_memory(processes: list[subprocess.Popen]) -> dict[str, float]:
    """Waits for processes; returns the peaks, in MB, of the one that needs the most memory."""
    peaks = {"peak_mb": 0.0, "peak_anonymous_mb": 0.0}
    while any(process.poll() is None for process in processes):
        for process in processes:
            status = read_status(process.pid)
            peaks["peak_mb"] = max(peaks["peak_mb"], status.get("VmHWM", 0))
            peaks["peak_anonymous_mb"] = max(peaks["peak_anonymous_mb"], status.get("RssAnon", 0))
        time.sleep(0.05)
    return peaks


def read_status(pid: int | str) -> dict[str, float]:
    """Returns the sizes that Linux reports for a process, in MB; empty if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return {}
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith(" kB")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def interleave(variants: Iterable[str], repeats: int, measure: Callable[[str], dict[str, float]]) -> dict[str, Any]:
    """Measures A B C A B C ...; returns median, minimum and maximum of each quantity by variant."""
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for _ in range(repeats):
        for variant, values in found.items():
            values.append(measure(variant))
            print(variant, {name: round(value, 3) for name, value in values[-1].items()}, flush=True)
    return {variant: spread(values) for variant, values in found.items()}


def spread(measured: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Returns median, minimum and maximum of each quantity."""
    table = {name: [values[name] for values in measured] for name in measured[0]}
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": len(values)}
        for name, values in table.items()
    }


def measure_data(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Measures only the feed: a pass over streamed datasets of growing size, and a resume at its end."""
    found: dict[str, Any] = {}
    for examples in sizes.examples:
        dataset = folder / str(examples)
        write_dataset(dataset, examples)
        repeats = sizes.repeats if examples < 10**6 else 1
        steps = examples // STREAM_BATCH

        def measure(variant: str, dataset: Path = dataset, steps: int = steps) -> dict[str, float]:
            first = 0 if variant == "pass" else steps - 1
            return run_task(MODULE, {"kind": "stream", "dataset": str(dataset), "first": first, "stop": steps,
                                      "state": f"{dataset}-state.json"})  # fmt: skip

        found[str(examples)] = interleave(("pass", "resume"), repeats, measure)
    for variant in ("pass", "resume"):
        for quantity in ("seconds", "peak_mb"):
            # Only the larger ones: one-time work, such as building the tokenizer's table, dominates the smaller ones.
            larger = sizes.examples[len(sizes.examples) // 2 - 1 :] if not sizes.is_quick else sizes.examples
            values = {size: found[str(size)][variant][quantity]["median"] for size in larger}
            found[f"slope_of_{variant}_{quantity}"] = round(slope(values), 3)
    return found


def slope(values: dict[int, float]) -> float:
    """Returns the exponent k of the best fit size**k: 1 is linear growth, 0 is none."""
    points = [(math.log(size), math.log(value)) for size, value in values.items()]
    x_mean, y_mean = (statistics.fmean(axis) for axis in zip(*points))
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def write_dataset(folder: Path, examples: int, shards: int = 10) -> None:
    """Writes Parquet shards of short texts, and a test split; many rows share a text, which takes no disk space."""
    import numpy as np
    import pyarrow
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz "), SHORT_TEXT - 1)) for _ in range(1000)]
    (folder / "data").mkdir(parents=True)
    for name, count in [
        ("test-00000", 1000),
        *((f"train-{shard:05d}", examples // shards) for shard in range(shards)),
    ]:
        rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array(rng.integers(1000, size=count)), texts)
        table = pyarrow.table({"text": rows.cast(pyarrow.string())})
        parquet.write_table(table, folder / "data" / f"{name}.parquet", row_group_size=10_000)


def run_child(task: dict[str, Any]) -> dict[str, float]:
    return stream(task) if task["kind"] == "stream" else multiply(task)


def stream(task: dict[str, Any]) -> dict[str, float]:
    """Reads the batches from `first` to `stop` as a training does; its seconds exclude the start of Python.

    A pass leaves its state before the last batch in the file `state`, as a checkpoint would; a resume begins there.
    """
    import torch

    from ..config.flags import DataArguments
    from ..data.feeds.batches import GlobalBatch
    from ..data.text import load_text

    data = load_text(DataArguments(dataset_name=task["dataset"], streaming=True), seed=0, context=SHORT_TEXT)
    started = time.perf_counter()
    file = Path(task["state"])
    state = json.loads(file.read_text(encoding="utf-8")) if task["first"] else None
    feed = data.train.batches(task["first"], GlobalBatch(STREAM_BATCH), torch.device("cpu"), state)
    for step in range(task["first"], task["stop"]):
        if step == task["stop"] - 1 and not task["first"]:
            file.write_text(json.dumps(data.train.state()), encoding="utf-8")
        next(feed)
    seconds = time.perf_counter() - started
    status = read_status("self")
    return {"seconds": seconds, "peak_mb": status["VmHWM"], "anonymous_mb": status["RssAnon"]}


def measure_models(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Measures GPTs of growing size; utilization is 6 * parameters * tokens over the rate of a matrix product."""
    threads, batch = len(os.sched_getaffinity(0)), 4 if sizes.is_quick else 16
    names = [f"{width} x {layers}" for width, layers in sizes.models]
    parameters: dict[str, int] = {}

    def measure(name: str) -> dict[str, float]:
        if name == "matrix product":
            return run_task(MODULE, {"kind": "multiply", "size": sizes.matrix, "threads": threads})
        width, layers = map(int, name.split(" x "))
        model = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": max(1, width // 64),
                 "max_position_embeddings": CONTEXT, "per_device_train_batch_size": batch}  # fmt: skip
        flags = {**BARE, **OWN["gpt"], **model, "optimizer": "adamw", "learning_rate": 1e-4, "logging_steps": 1,
                 **(sizes.length if sizes.is_quick else {"max_train_seconds": 2 * sizes.seconds})}  # fmt: skip
        values = run_training("gpt", flags, folder, 1, threads)
        newest = max(folder.glob("*/run/results.json"), key=lambda path: path.stat().st_mtime)
        parameters[name] = json.loads(newest.read_text(encoding="utf-8"))["num_parameters"]
        del values["seconds_to_first_line"]
        return {**values, "seconds_a_step": batch / values.pop("examples_per_second")}

    found = interleave([*names, "matrix product"], sizes.repeats, measure)
    peak = found["matrix product"]["flops_per_second"]["median"]
    for name in names:
        work = 6 * parameters[name] * batch * CONTEXT
        seconds = found[name]["seconds_a_step"]["median"]
        found[name] |= {"num_parameters": parameters[name], "utilisation": round(work / seconds / peak, 4)}
    return {**found, "tokens_a_step": batch * CONTEXT}


def multiply(task: dict[str, Any]) -> dict[str, float]:
    """Measures operations per second of a large matrix product, in the faster one of the precisions of trainings."""
    import torch

    torch.set_num_threads(task["threads"])
    a, b = (torch.randn(task["size"], task["size"]) for _ in range(2))

    def seconds(a: torch.Tensor, b: torch.Tensor) -> float:
        started = time.perf_counter()
        a @ b
        return time.perf_counter() - started

    pairs = [(a, b), (a.bfloat16(), b.bfloat16())]
    for pair in pairs:
        seconds(*pair)  # the first call generates code
    fastest = min(pairs, key=lambda pair: seconds(*pair))
    return {"flops_per_second": 2 * task["size"] ** 3 / min(seconds(*fastest) for _ in range(12))}


def plot(results: dict[str, Any], target: Path) -> None:
    """Draws four panels, one per part."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7.2), dpi=120)
    plot_processes(axes[0, 0], results["processes"])
    plot_data(axes[0, 1], results["data"])
    plot_models(axes[1, 0], results["models"])
    plot_compile(axes[1, 1], results["compile"])
    for panel in axes.flat:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout(h_pad=2.5, w_pad=2.5)
    figure.savefig(target)
    plt.close(figure)


def plot_processes(panel: Any, part: dict[str, Any]) -> None:
    families = [family for family in RECIPES if family in part]
    panel.set_title("Speed, relative to one process with one thread", loc="left", fontsize=10)
    for row, family in enumerate(families):
        rates = {name: values["examples_per_second"]["median"] for name, values in part[family].items()}
        base = rates.pop("1 process, 1 thread")
        for (name, rate), marker, color, lift in zip(rates.items(), "os", ("C0", "#333333"), (0.14, -0.14)):
            panel.plot(rate / base, row + lift, marker, color=color, markersize=6)
            text = f"  {rate / base:.2f}" + (f"   {name}" if row == len(families) - 1 else "")
            panel.text(rate / base, row + lift, text, va="center", fontsize=8, color=color)
    panel.axvline(1, color="#999999", linewidth=1)
    panel.set_xlim(0, 3.3)
    panel.set_ylim(-0.5, len(families) - 0.4)
    panel.set_yticks(range(len(families)), families)
    panel.set_xlabel("examples a second, ratio")


def plot_data(panel: Any, part: dict[str, Any]) -> None:
    sizes = sorted(int(name) for name in part if name.isdigit())
    peaks = [part[str(size)]["pass"]["peak_mb"]["median"] for size in sizes]
    panel.set_title(f"Streamed data: peak memory {min(peaks):.0f} to {max(peaks):.0f} MB", loc="left", fontsize=10)
    for variant, color in (("pass", "C0"), ("resume", "#333333")):
        seconds = [part[str(size)][variant]["seconds"]["median"] for size in sizes]
        panel.loglog(sizes, seconds, "o-", color=color, markersize=4, linewidth=1.3)
        label = {"pass": "a whole pass", "resume": "resume at its end"}[variant]
        label += f",\nslope {part[f'slope_of_{variant}_seconds']:.2f}"
        point, place = (-1, (-8, 4)) if variant == "pass" else (-2, (8, -4))
        panel.annotate(label, (sizes[point], seconds[point]), xytext=place, textcoords="offset points", color=color,
                       fontsize=8, ha="right" if variant == "pass" else "left",
                       va="bottom" if variant == "pass" else "top")  # fmt: skip
    panel.margins(y=0.15)
    bottom, top = panel.get_ylim()
    panel.set_ylim(bottom / 3, top * 2)  # room for the labels
    panel.set_xlabel("examples")
    panel.set_ylabel("seconds")


def plot_models(panel: Any, part: dict[str, Any]) -> None:
    models = sorted((v for v in part.values() if isinstance(v, dict) and "utilisation" in v),
                    key=lambda v: v["num_parameters"])  # fmt: skip
    sizes = [model["num_parameters"] for model in models]
    seconds = [model["seconds_a_step"]["median"] for model in models]
    ideal = [model["utilisation"] * second for model, second in zip(models, seconds)]
    panel.set_title(f"GPT, {part['tokens_a_step']:,} tokens a step, use of the machine", loc="left", fontsize=10)
    panel.loglog(sizes, seconds, "o-", color="C0", markersize=4, linewidth=1.3)
    panel.loglog(sizes, ideal, "--", color="#999999", linewidth=1)
    for model, size, second in zip(models, sizes, seconds):
        text = f"{model['utilisation']:.0%}, {model['peak_mb']['median'] / 1000:.1f} GB"
        panel.annotate(text, (size, second), xytext=(-2, 6), textcoords="offset points", ha="right", fontsize=8)
    panel.annotate("at the speed of a\nmatrix product", (sizes[-2], ideal[-2]), xytext=(8, -6), color="#777777",
                   textcoords="offset points", ha="left", va="top", fontsize=8)  # fmt: skip
    panel.set_xlim(left=sizes[0] / 6)
    panel.margins(y=0.15)
    panel.set_xlabel("parameters")
    panel.set_ylabel("seconds a step")


def plot_compile(panel: Any, part: dict[str, Any]) -> None:
    families = [family for family in RECIPES if family in part]
    panel.set_title("--torch_compile: speed, relative to without", loc="left", fontsize=10)
    for row, family in enumerate(families):
        values = part[family]
        pays = values["pays_after_seconds"]
        text = f"  {values['speedup']:.2f}, {values['seconds_to_compile']:.0f} s to compile, "
        text += f"pays after {pays:.0f} s" if pays is not None else "never pays"
        panel.plot(values["speedup"], row, "o", color="C0", markersize=6)
        panel.text(values["speedup"], row, text, va="center", fontsize=8)
    panel.axvline(1, color="#999999", linewidth=1)
    panel.set_xlim(0, max(part[family]["speedup"] for family in families) * 2.6)
    panel.set_ylim(-0.5, len(families) - 0.5)
    panel.set_yticks(range(len(families)), families)
    panel.set_xlabel("steps a second, ratio")


PARTS: dict[str, Callable[[Sizes, Path], dict[str, Any]]] = {
    "processes": measure_processes,
    "data": measure_data,
    "models": measure_models,
    "compile": measure_compile,
}


if __name__ == "__main__":
    main()
