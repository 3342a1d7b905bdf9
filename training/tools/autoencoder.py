"""The results of the Auto-Encoder beside those of methods that learn less, on the machine that this runs on.

    python training/tools/autoencoder.py                        # every row, on an otherwise idle machine
    python training/tools/autoencoder.py start --avx2           # as on a processor without AVX-512 and bf16
    python training/tools/autoencoder.py reduction --seconds 10 # other flags go to each training
    python training/tools/autoencoder.py one-class --classes 8  # the digit 8 alone is normal
    python training/tools/autoencoder.py codec-mnist --model runs/codec-mnist    # with a trained model
    python training/tools/autoencoder.py --trials start-muon    # experiments, from autoencoder_trials.yaml

Beside the Auto-Encoder are the models that compress: the codec, the VAE without loss, and the GPT, by the files of
`hfgen compress`. It prints the tables and writes autoencoder.json beside this file: new figures replace those of the
same row, line and column, and each holds the processor, the versions, the seed and the seconds. The models are left in
runs/.
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

from .autoencoder_rows import lossless_images, lossy_images, one_class, texts
from .autoencoder_rows.reconstruction import figure, measure_reduction, measure_start
from .measuring.rows import Lines, Session, Tool, run_command
from .measuring.table import RowTable


ROWS: dict[str, Callable[[Session, str], Lines]] = {
    "start": measure_start,
    "reduction": measure_reduction,
    "one-class": one_class.measure_classes,
    "one-class-cifar": one_class.measure_classes,
    "codec-mnist": lossy_images.measure_codec,
    "codec-cifar10": lossy_images.measure_codec,
    "lossless-mnist": lossless_images.measure_lossless,
    "lossless-binarized": lossless_images.measure_lossless,
    "text": texts.measure_text,
}
TABLES: dict[str, RowTable] = {
    "one-class": one_class.table,
    "one-class-cifar": one_class.table,
    "codec-mnist": lossy_images.table,
    "codec-cifar10": lossy_images.table,
    "lossless-mnist": lossless_images.table,
    "lossless-binarized": lossless_images.table,
    "text": texts.table,
}
# The recipes of rows that measure one model, which can be one that is there.
MODEL_ROWS = {**lossy_images.RECIPES, **lossless_images.RECIPES, **texts.RECIPES}


def check_flags(session: Session) -> None:
    """Refuses flags of this tool that would be left out.

    Raises:
        ValueError: a flag does not fit the rows.
    """
    options = session.options
    rows = [] if options.trials is not None else options.rows or list(ROWS)
    if options.model is not None:
        if len(rows) != 1 or rows[0] not in MODEL_ROWS:
            raise ValueError(
                f"--model must come with one of the rows {', '.join(MODEL_ROWS)}, got {rows or 'trials'}."
            )
        if session.flags or session.seconds is not None:
            raise ValueError("--model must come without flags of a training, as nothing is trained. Leave them out.")
        if not options.model.is_dir():
            raise ValueError(f"--model must be the folder of a model, got {options.model}, which is none.")
    if options.classes is not None and not set(rows) & set(one_class.DATASETS):
        raise ValueError(f"--classes must come with {' or '.join(one_class.DATASETS)}, got {rows or 'trials'}.")


TOOL = Tool(Path(__file__), ROWS, figure, metric="mse", decimals=4, tables=TABLES, check=check_flags)


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--classes", nargs="+", type=int, metavar="N", help="of one-class, by number (default: all)")
    own.add_argument(
        "--model", type=Path, help=f"folder that holds the model of a row (default: train it); {', '.join(MODEL_ROWS)}"
    )
    run_command(TOOL, __doc__, own)


if __name__ == "__main__":
    main()
