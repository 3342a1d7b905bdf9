"""The results of the GAN beside those of a DCGAN, on the machine that this runs on.

    python training/tools/gan.py                            # every row, on an otherwise idle machine
    python training/tools/gan.py default dcgan example --avx2   # as on a processor without AVX-512 and bf16
    python training/tools/gan.py presets --seconds 5 --quality_samples 500   # other flags go to each training
    python training/tools/gan.py --trials penalty-on-all    # experiments, from gan_trials.yaml

It prints the tables and writes gan.json beside this file: new figures replace those of the same row, line and column,
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
from collections.abc import Callable

from .gan_rows import course, on_mnist, variations
from .gan_rows.figures import figure
from .gan_rows.stacked_digits import measure_stacked
from .gan_rows.step_cost import measure_cost
from .measuring.rows import Lines, Session, Tool, run_command


ROWS: dict[str, Callable[[Session, str], Lines]] = {
    "default": on_mnist.measure_default,
    "dcgan": on_mnist.measure_dcgan,
    "example": on_mnist.measure_example,
    "conditional": on_mnist.measure_conditional,
    "presets": on_mnist.measure_presets,
    "cost": measure_cost,
    "throughput": on_mnist.measure_throughput,
    "variations": variations.measure_variations,
    "stopping": course.measure_stopping,
    "broken": course.measure_broken,
    "stacked": measure_stacked,
}


TOOL = Tool(Path(__file__), ROWS, figure, metric="classifier_fid", tables={"variations": variations.table},
            check=variations.check)  # fmt: skip


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--repeats", type=int, default=3, help="of the throughput (default: 3)")
    own.add_argument(
        "--variations", type=int, nargs="+", help="the numbers of some of them, in the order of the table, from 1 on"
    )
    run_command(TOOL, __doc__, own)


if __name__ == "__main__":
    main()
