"""Trains a Ladder VAE: a Variational Auto-Encoder with latents at several resolutions.

accelerate launch training/train_ladder_vae.py --output_dir ladder-vae-digits
accelerate launch training/train_ladder_vae.py training/recipes/ladder-vae-binarized-mnist.yaml
"""

import gc
import runpy
import sys
from pathlib import Path


if __name__ == "__main__" and not __package__:  # started as a file: run it again as a module of its package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    runpy.run_module(f"training.{Path(__file__).stem}", run_name="__main__", alter_sys=True)
    sys.exit()

from .config.parser import parse
from .config.scripts import SCRIPTS


if __name__ == "__main__":
    parse(SCRIPTS["ladder_vae"])  # reports wrong flags before the imports below, which take seconds
    gc.disable()  # until run_script: they leave no garbage, and looking for it would take a fifth of their time


from functools import partial

from hfgen import LadderVAEConfig, LadderVAEModel

from .loop import train
from .run_script import run_script
from .variational import VariationalObjective


def main() -> None:
    train(partial(VariationalObjective, LadderVAEModel), parse(SCRIPTS["ladder_vae"], config_class=LadderVAEConfig))


if __name__ == "__main__":
    run_script(main)
