"""The results of the GPTs on tiny Shakespeare, and the race to them, on the machine that this runs on.

    python training/tools/gpt.py                            # every row, on an otherwise idle machine: 3 hours
    python training/tools/gpt.py race three-minutes --both  # and again as on a processor without AVX-512 and bf16
    python training/tools/gpt.py race --seeds 0 1 2
    python training/tools/gpt.py --trials zero-init         # experiments, from gpt_trials.yaml

It prints the tables and writes gpt.json beside this file: new figures replace those of the same row, line and column,
and each holds the processor, the versions, the seed and the seconds. The models are left in runs/.
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
from collections.abc import Callable

from .gpt_rows import generation
from .gpt_rows.figures import figure
from .gpt_rows.race import draw_race, measure_race
from .measuring.rows import Lines, Session, Tool, Training, run_command, train


SHORT, LONG = "gpt-tiny-shakespeare", "gpt-tiny-shakespeare-256"
TRAININGS = {
    "three-minutes": Training("3 minutes, context 64", SHORT, ("--max_train_seconds", "180")),
    "thirty-minutes": Training("30 minutes, context 256", LONG),
    # Larger than in half an hour, and with more dropout, as it sees the text four times as often.
    "two-hours": Training("2 hours, context 256", LONG, (
        "--max_train_seconds", "7200", "--hidden_size", "384", "--num_attention_heads", "6",
        "--hidden_dropout", "0.2", "--attention_dropout", "0.2", "--embedding_dropout", "0.1")),
}  # fmt: skip


def measure_training(session: Session, row: str) -> Lines:
    yield TRAININGS[row].line, train(session, row, TRAININGS[row])


ROWS: dict[str, Callable[[Session, str], Lines]] = {
    "race": measure_race,
    **dict.fromkeys(TRAININGS, measure_training),
    "generate": generation.measure_generation,
}


TOOL = Tool(
    Path(__file__), ROWS, figure, metric="loss", decimals=3, check=generation.check,
    tables={"race": draw_race, "generate": generation.draw_generation},
)  # fmt: skip


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32], help="generate: texts written together")
    own.add_argument("--tokens", type=int, default=256, help="generate: new ones of each text (default: 256)")
    own.add_argument("--repeats", type=int, default=5, help="generate: of each measurement (default: 5)")
    own.add_argument("--setting", type=json.loads, default={},
                     help='race: other settings of the bare loop, as JSON, to try it: \'{"steps": 10}\'')  # fmt: skip
    run_command(TOOL, __doc__, own)


if __name__ == "__main__":
    main()
