"""Copies finished runs of the recipes into the repository: cards and images to model_cards/, numbers to README.md.

    python -m training.tools.collect runs/vae-binarized-mnist runs/gpt-tiny-shakespeare ...

No number in README's table is typed by hand: they all come from the results.json next to the cards, and a test
compares the two.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from hfgen.cards import headline, newest_samples, read_family, short_dataset_name


ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- results:", "<!-- /results -->"
AVX2_RESULTS = "results-avx2.json"
# What the vendor calls processors that the system names by numbers alone.
GENERATIONS = {"AMD EPYC (family 25, model 17)": "AMD EPYC, Zen 4", "AMD EPYC (family 26, model 2)": "AMD EPYC, Zen 5"}


def collect(run: Path, model_cards: Path) -> Path:
    """Copies what the repository shows of a run: the card, the results, the newest samples, the film and the plot.

    Of a run that was limited to AVX2, only the results.

    Raises:
        ValueError: the folder does not hold a finished run.
    """
    if not (run / "results.json").is_file():
        raise ValueError(f"{run} must be the output folder of a finished run, got one without results.json.")
    target = model_cards / run.name
    if "limited by" in json.loads((run / "results.json").read_text(encoding="utf-8")).get("hardware", ""):
        shutil.copy(run / "results.json", target / AVX2_RESULTS)
        return target
    slower = (target / AVX2_RESULTS).read_bytes() if (target / AVX2_RESULTS).is_file() else None
    shutil.rmtree(target, ignore_errors=True)
    (target / "samples").mkdir(parents=True)
    for picture in (*newest_samples(run).values(), *(run / "samples").glob("film.*")):
        shutil.copy(picture, target / "samples" / picture.name)
    if (run / "plots").is_dir():
        shutil.copytree(run / "plots", target / "plots")
    for name in ("README.md", "results.json"):
        if (run / name).is_file():
            shutil.copy(run / name, target / name)
    if slower is not None:
        (target / AVX2_RESULTS).write_bytes(slower)
    return target


def results_table(model_cards: Path) -> str:
    """The Markdown table of every collected run."""
    rows = ["| recipe | data | with bf16 instructions | with AVX2 alone | processor |", "|---|---|---|---|---|"]
    for path in sorted(model_cards.glob("*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        slower = path.with_name(AVX2_RESULTS)
        runs = [results, *([json.loads(slower.read_text(encoding="utf-8"))] if slower.is_file() else [])]
        measured = [_measured(run) for run in runs] + [""] * (2 - len(runs))
        processors = " / ".join(dict.fromkeys(map(_processor, runs)))
        name, dataset = path.parent.name, short_dataset_name(results["dataset"]).rpartition("/")[2]
        rows.append(
            f"| [{name}](model_cards/{name}/README.md), {results['num_parameters'] / 1e6:.1f} M parameters "
            f"| {dataset} ({results['split']}) | {' | '.join(measured)} | {processors} |"
        )
    return "\n".join(rows)


def _processor(results: dict[str, Any]) -> str:
    """The processor of a run, from its `hardware`: "2 threads of NAME, limited by ...", or the name of a GPU."""
    hardware = results.get("hardware", "").partition(", limited by ")[0]
    name = hardware.rpartition(" threads of ")[2]
    return GENERATIONS.get(name, name)


def _measured(results: dict[str, Any]) -> str:
    """The headline metrics of a run, and how long it trained."""
    metrics = read_family(results["model_type"]).headline_metrics
    first = next((key for key, _, _ in metrics if key in results["metrics"]), None)  # a detector has another one
    shown = [f"{label} {f'**{number}**' if key == first else number}" for key, label, number in headline(results)]
    return f"{', '.join(shown)}; {results['seconds_trained']:.0f} s, {results['steps']:,} steps"


def with_table(readme: str, table: str) -> str:
    """The README with the text between its two markers replaced."""
    head, rest = readme.split(BEGIN, 1)
    comment, rest = rest.split("\n", 1)
    _, tail = rest.split(END, 1)
    return f"{head}{BEGIN}{comment}\n{table}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="output folders of finished runs")
    args = parser.parse_args()
    try:
        for run in args.runs:
            print(collect(run, ROOT / "model_cards"))
    except ValueError as error:
        sys.exit(str(error))
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), results_table(ROOT / "model_cards")), "utf-8")


if __name__ == "__main__":
    main()
