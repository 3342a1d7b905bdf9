"""Folders that trainings leave, for tests of what is done with them: one of each family, trained for two steps."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import hfgen


ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("autoencoder", "vae", "gan", "gpt")
COMMON = (
    "--max_train_steps 2 --per_device_train_batch_size 8 --max_train_samples 64 --max_eval_samples 16 --disable_tqdm "
    "--logging_steps 1 --checkpointing_steps 1 --mixed_precision no"
)
OWN = {
    "autoencoder": "--hidden_channels 4 8 --latent_dim 4",
    "vae": "--hidden_channels 4 8 --hidden_size 16 --latent_dim 4 --nll_samples 2",
    "gan": "--generator_channels 8 4 --latent_dim 4 --quality_samples 0",
    "gpt": (
        "--max_position_embeddings 16 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 "
        "--sample_length 20"
    ),
}
# All in one process, as most of the time goes into imports.
TRAIN = """
import runpy, sys
for line in sys.stdin.read().splitlines():
    sys.argv = line.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            sys.exit(f"{line}: {end.code}")
"""


def training_command(family: str, output_dir: Path | str, *flags: str) -> list[str]:
    """Script and flags of a training of a second."""
    return [f"training/train_{family}.py", *f"{COMMON} {OWN[family]} --output_dir {output_dir}".split(), *flags]


def train(commands: list[list[str]], env: dict[str, str] | None = None) -> str:
    """Runs trainings, one after the other; returns what they said."""
    lines = "\n".join(" ".join(command) for command in commands)
    result = subprocess.run(
        [sys.executable, "-c", TRAIN], input=lines, cwd=ROOT, env=env, text=True, capture_output=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@functools.cache
def trained_runs() -> Path:
    """A folder with a finished run of every family, each named after it; not to be changed."""
    home = Path(tempfile.mkdtemp(prefix="hfgen-runs-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    train([training_command(family, home / family) for family in FAMILIES])
    return home


def copy_run(family: str, target: Path) -> Path:
    """A run of one's own, to change."""
    return Path(shutil.copytree(trained_runs() / family, target))


def save_untrained(model: PreTrainedModel, folder: Path) -> Path:
    """A folder like a run's, of a model that no script of the tests trains."""
    from hfgen.image_processing import build_image_processor

    config: Any = model.config
    model.register_for_auto_class("AutoModel")
    model.save_pretrained(folder)
    build_image_processor(config.num_channels, tuple(config.image_size)).save_pretrained(folder)
    content: dict[str, Any] = {
        "model_type": config.model_type,
        "dataset": "digits",
        "split": "test",
        "metrics": {},
        "steps": 0,
    }
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def conditional_colour_models(home: Path) -> list[Path]:
    """The branches of the cards that the trained runs do not reach."""
    torch.manual_seed(0)
    vae = hfgen.VAEConfig(image_size=[8, 16], num_channels=3, num_labels=3, hidden_channels=[4, 4], latent_dim=2,
                          latent_type="spatial", likelihood="gaussian", beta=4.0)  # fmt: skip
    gan = hfgen.GANConfig(image_size=[8, 16], num_channels=3, num_labels=3, latent_dim=4, generator_channels=[4, 4],
                          discriminator_channels=[4, 4], loss_type="wasserstein")  # fmt: skip
    autoencoder = hfgen.AutoencoderConfig(image_size=[8, 16], num_channels=3, hidden_channels=[4, 4], latent_dim=2,
                                          latent_type="spatial", noise_std=0.1, sparsity_weight=0.1)  # fmt: skip
    return [
        save_untrained(hfgen.VAEModel(vae), home / "vae-colour"),
        save_untrained(hfgen.GANModel(gan), home / "gan-colour"),
        save_untrained(hfgen.AutoencoderModel(autoencoder), home / "autoencoder-colour"),
    ]
