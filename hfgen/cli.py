"""The command `hfgen`: trains models, moves them to the Hub and back, and compresses files with them.

hfgen train vae --output_dir vae-digits     train a model
hfgen push runs/vae-mnist me/vae-mnist      publish a folder as one commit
hfgen pull me/vae-mnist                     download a checked copy
hfgen card runs/vae-mnist                   rewrite README.md
hfgen check me/vae-mnist                    would it load?
hfgen sample me/vae-mnist                   draw images, or write text
hfgen embed me/vae-mnist photos z.parquet   write the latents of images
hfgen compress --model me/gpt book.txt book.txt.hfz     a text in the bits that a GPT needs for it
hfgen decompress book.txt.hfz               the same text, byte for byte
hfgen compress --model me/codec a.png b.png photos.hfz  images in the bits that a codec needs for them
hfgen compress --lossless --model me/vae scans scans.hfz   a folder of images, pixel for pixel
hfgen info book.txt.hfz                     what is in the file?
hfgen score me/autoencoder photos/          find anomalies among images
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    replace_unprintable_characters()
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "httpx2", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It has a handler of its own; without this, each message would appear twice.
    logging.getLogger("huggingface_hub").propagate = False
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of a pipe such as `| head`: nobody reads any further, and Python would say so at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("HFGEN_DEBUG"):
            raise
        from .hub import redact

        print(f"hfgen {arguments.command}: {redact(str(error))}", file=sys.stderr)
        return 1


def replace_unprintable_characters() -> None:
    """Prints a question mark for what the encoding of the output lacks. By default, Python raises an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hfgen",
        description="Trains the models of hfgen, moves them to the Hugging Face Hub and back, and compresses files "
        "with them. Log in to the Hub once with `hf auth login`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_training(commands)
    _add_hub(commands)
    _add_outputs(commands)
    _add_compression(commands)
    _add_score(commands)
    return parser


def _add_training(commands: Any) -> None:
    train = commands.add_parser("train", help="train a model", description=train_command_line.__doc__)
    model_files = sorted((Path(__file__).parent / "models").glob("modeling_*.py"))  # importing them takes seconds
    families = [file.stem.removeprefix("modeling_") for file in model_files]
    train.add_argument("family", metavar="FAMILY", choices=families, help="one of %(choices)s")
    train.add_argument("words", metavar="[RECIPE] [--flag value ...]", nargs=argparse.REMAINDER,
                       help="a recipe's name or path, and flags: `hfgen train FAMILY --help` lists them")  # fmt: skip
    train.set_defaults(run=train_command_line)


def _add_hub(commands: Any) -> None:
    push = commands.add_parser("push", help="publish a folder as one commit", description=push_command_line.__doc__)
    push.add_argument("folder", metavar="FOLDER", type=Path, help="output folder of a training, or a saved model")
    push.add_argument("repo", metavar="REPO", help="owner/name on the Hub, or a name in your own namespace")
    push.add_argument("--private", action="store_true", help="make the repository private")
    push.add_argument("--revision", metavar="BRANCH", help="branch, created if needed (default: main)")
    push.add_argument("--checkpoints", choices=("none", "last", "all"), default="none",
                      help="training state to include (default: none)")  # fmt: skip
    push.set_defaults(run=push_command_line)

    pull = commands.add_parser("pull", help="download a checked copy", description=pull_command_line.__doc__)
    pull.add_argument("repo", metavar="REPO", help="owner/name on the Hub")
    pull.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", help="new folder (default: the name of REPO)")
    pull.add_argument("--revision", help="branch, tag or commit (default: main)")
    pull.set_defaults(run=pull_command_line)

    card = commands.add_parser("card", help="rewrite README.md", description=card_command_line.__doc__)
    card.add_argument("folder", metavar="FOLDER", type=Path, help="output folder of a training")
    card.add_argument("--repo", help="repository named in the card (default: --hub_model_id, or the folder's name)")
    card.set_defaults(run=card_command_line)

    check = commands.add_parser(
        "check", help="check whether a model would load", description=check_command_line.__doc__
    )
    check.add_argument("model", metavar="FOLDER_OR_REPO")
    check.add_argument("--revision", help="branch, tag or commit (default: main)")
    check.set_defaults(run=check_command_line)


def _add_outputs(commands: Any) -> None:
    sample = commands.add_parser("sample", help="draw images or write text", description=sample_command_line.__doc__)
    sample.add_argument("model", metavar="FOLDER_OR_REPO")
    sample.add_argument("--revision", help="branch, tag or commit (default: main)")
    sample.add_argument("--count", type=_positive, default=64, help="images to draw (default: 64)")
    sample.add_argument("--label", metavar="CLASS", action="append",
                        help="class to draw, by name or number; may be repeated (default: all, in turn)")  # fmt: skip
    sample.add_argument("--output", type=Path, default=Path("samples.png"), help="image file (default: samples.png)")
    sample.add_argument("--prompt", default="", help="text to continue (default: an empty page)")
    sample.add_argument("--tokens", type=_positive, default=200, help="tokens to write (default: 200)")
    sample.add_argument("--temperature", type=float, help="below 1 for likelier samples (default: the model's own)")
    sample.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    sample.set_defaults(run=sample_command_line)

    embed = commands.add_parser("embed", help="write the latents of images", description=embed_command_line.__doc__)
    embed.add_argument("model", metavar="MODEL", help="folder or repository of an Auto-Encoder, VAE or Ladder VAE")
    embed.add_argument("data", metavar="DATA", nargs="+",
                       help="dataset on the Hub, folder of images or tables, or files of either")  # fmt: skip
    embed.add_argument("output", metavar="OUT.parquet", type=Path, help="file to write")
    embed.add_argument("--split", help="split or slice of one, such as train[:1000] (default: all)")
    embed.add_argument("--batch_size", type=_positive, default=256, help="images encoded at once (default: 256)")
    embed.add_argument("--revision", help="branch, tag or commit of MODEL (default: main)")
    embed.add_argument("--keep_images", action="store_true", help="keep the column of images, too")
    embed.add_argument("--image_column", metavar="COLUMN", help="column of images (default: the only one)")
    embed.add_argument("--label_column", metavar="COLUMN", default="label",
                       help="column of classes, for a conditional model (default: label)")  # fmt: skip
    embed.add_argument("--dataset_config_name", metavar="NAME", help="configuration of a dataset on the Hub")
    embed.add_argument("--dataset_revision", metavar="REVISION", help="branch, tag or commit of a dataset on the Hub")
    embed.add_argument("--streaming", action="store_true", help="read from the Hub without a copy on the disk")
    embed.add_argument("--overwrite", action="store_true", help="replace OUT.parquet if it exists")
    embed.set_defaults(run=embed_command_line)


def _add_compression(commands: Any) -> None:
    compress = commands.add_parser(
        "compress", help="compress a text or images", description=compress_command_line.__doc__
    )
    compress.add_argument("files", metavar="FILE", type=Path, nargs="+", help="text in UTF-8, or images")
    compress.add_argument("output", metavar="OUT", type=Path, help="new file, OUT.hfz by custom")
    compress.add_argument("--model", metavar="FOLDER_OR_REPO", required=True,
                          help="a GPT with its tokenizer, for images a codec, or with --lossless a VAE")  # fmt: skip
    compress.add_argument("--lossless", action="store_true",
                          help="keep every pixel of images, or of folders of images, with a VAE")  # fmt: skip
    compress.add_argument("--split", help="with --lossless, split of the dataset that FILE names")
    compress.add_argument("--quality", type=float, help="of images, from 0 to 1 (default: 0.5)")
    compress.add_argument("--revision", help="branch, tag or commit of the model (default: main)")
    compress.add_argument("--verify", action="store_true",
                          help="decompress before OUT is written, which takes several times as long")  # fmt: skip
    compress.set_defaults(run=compress_command_line)

    decompress = commands.add_parser(
        "decompress", help="restore a compressed file", description=decompress_command_line.__doc__
    )
    decompress.add_argument("file", metavar="FILE", type=Path, help="a .hfz file")
    decompress.add_argument(
        "output", metavar="OUT", type=Path, nargs="?", help="new file, or folder for images (default: FILE less .hfz)"
    )
    decompress.add_argument("--model", metavar="FOLDER_OR_REPO",
                            help="where the model is (default: the repository that FILE names)")  # fmt: skip
    decompress.add_argument("--revision", help="branch, tag or commit of --model (default: main)")
    decompress.set_defaults(run=decompress_command_line)

    info = commands.add_parser("info", help="describe a compressed file", description=info_command_line.__doc__)
    info.add_argument("file", metavar="FILE", type=Path, help="a .hfz file")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=info_command_line)


def _add_score(commands: Any) -> None:
    score = commands.add_parser("score", help="find anomalies among images", description=score_command_line.__doc__)
    score.add_argument("model", metavar="FOLDER_OR_REPO", help="an Auto-Encoder")
    score.add_argument("images", metavar="IMAGES", type=Path, nargs="+", help="image files, and folders of them")
    score.add_argument("--revision", help="branch, tag or commit (default: main)")
    score.add_argument("--json", action="store_true", help="print a JSON object per line instead of a table")
    score.add_argument("--maps", metavar="FOLDER", type=Path,
                       help="write each image there, painted red where it is strange")  # fmt: skip
    score.set_defaults(run=score_command_line)


def train_command_line(arguments: argparse.Namespace) -> int:
    """Trains a model with accelerate's launcher. Flags of the launcher (--num_processes, --mixed_precision, ...) may
    stand among those of the training."""
    from .train_command import train

    return train(arguments.family, arguments.words)


def push_command_line(arguments: argparse.Namespace) -> None:
    """Publishes a folder as one commit, or makes none if the repository already holds everything. Training state,
    logs, pickles and hidden files are left out."""
    from .hub import push_folder

    if not arguments.folder.is_dir():
        raise ValueError(f"FOLDER must be a folder, got {str(arguments.folder)!r}. Check the spelling.")
    pushed = push_folder(
        arguments.folder, arguments.repo, private=arguments.private, revision=arguments.revision,
        checkpoints=arguments.checkpoints,
    )  # fmt: skip
    if pushed.left_out:
        print(f"Left out: {', '.join(pushed.left_out)}.")
    print(f"{pushed.url} {'is now at' if pushed.is_new else 'already held everything, at'} commit {pushed.commit}.")


def pull_command_line(arguments: argparse.Namespace) -> None:
    """Downloads a model into a folder, which appears only once everything is there and has been checked. The model's
    code is not run."""
    from .hub import pull

    folder = pull(arguments.repo, arguments.folder, arguments.revision)
    print(f"{arguments.repo} is in {folder}.")


def card_command_line(arguments: argparse.Namespace) -> None:
    """Rewrites README.md of a run from its results.json, config.json and newest samples."""
    from .cards import write_card

    print(f"Wrote {write_card(arguments.folder, arguments.repo)}.")


def check_command_line(arguments: argparse.Namespace) -> None:
    """Checks whether a model would load, without running its code: whole files, safetensors, and weights that fit the
    config."""
    from .hub import fetch_model

    folder = fetch_model(arguments.model, arguments.revision)
    print(f"{arguments.model} would load ({folder}).")


def sample_command_line(arguments: argparse.Namespace) -> None:
    """Draws a grid of images into a file, or writes text, with one of hfgen's models. It runs hfgen's own code, never
    the code that comes with the model."""
    import torch

    from .hub import fetch_model
    from .image_processing import image_grid
    from .model_folder import read_json
    from .models import MODELS

    folder = fetch_model(arguments.model, arguments.revision)
    config = read_json(folder / "config.json")
    architecture = MODELS.get(config.get("model_type", ""))
    if architecture is None or architecture.samples == "nothing":
        able = ", ".join(name for name, entry in MODELS.items() if entry.samples != "nothing")
        raise ValueError(
            f"The model_type of {arguments.model} must be one of {able}, got {config.get('model_type')!r}. Nothing "
            "can be sampled from other models."
        )
    name = (config.get("architectures") or [architecture.base_model_class.__name__])[0]
    model_class: Any = architecture.model_classes[name]
    if not hasattr(model_class, "sample"):
        able = ", ".join(known for known, entry in architecture.model_classes.items() if hasattr(entry, "sample"))
        raise ValueError(f"{arguments.model} must hold a {able}, got a {name}. Save the model with its output layer.")
    model = model_class.from_pretrained(folder).eval()
    options = {} if arguments.temperature is None else {architecture.temperature: arguments.temperature}
    if architecture.samples == "text":
        if arguments.label:
            raise ValueError("--label must name a class of images, and this model writes text. Use --prompt.")
        _write_text(model, folder, arguments, options)
        return
    generator = torch.Generator().manual_seed(arguments.seed)
    images = model.sample(arguments.count, labels=_labels(model, arguments), generator=generator, **options)
    image_grid(images, columns=min(8, arguments.count)).save(arguments.output)
    print(f"Wrote {arguments.output}.")


def embed_command_line(arguments: argparse.Namespace) -> None:
    """Writes the latents of every image of a dataset to a Parquet file: a column `latents` beside the other columns of
    the dataset. It runs hfgen's own code, never the code that comes with the model. Python's `hfgen.Embedder` does the
    same inside `datasets.map`."""
    from .embed_command import embed
    from .embedding import Embedder

    embedder = Embedder(
        arguments.model, image_column=arguments.image_column, label_column=arguments.label_column,
        batch_size=arguments.batch_size, revision=arguments.revision,
    )  # fmt: skip
    rows = embed(
        arguments.data, arguments.output, embedder, split=arguments.split,
        dataset_config_name=arguments.dataset_config_name, dataset_revision=arguments.dataset_revision,
        streaming=arguments.streaming, keep_images=arguments.keep_images, overwrite=arguments.overwrite,
        provenance={"model": arguments.model, "revision": arguments.revision},
    )  # fmt: skip
    print(f"Wrote {arguments.output}: {rows:,} images, {embedder.num_latents} numbers each.")


def compress_command_line(arguments: argparse.Namespace) -> None:
    """Compresses a text without loss with a GPT; images with a codec, which keeps as much as --quality says; or images
    of one size without loss with a VAE that was trained with --prior normal. The same model is needed to decompress:
    the file names it, and holds the SHA-256 of its weights."""
    from .compression import compress_files, describe

    container = compress_files(
        arguments.files, arguments.output, arguments.model, arguments.revision, arguments.verify, arguments.quality,
        arguments.lossless, arguments.split,
    )  # fmt: skip
    size, original = arguments.output.stat().st_size, container.original_size
    found = describe(arguments.output)
    if "pixels" in found:
        count, rate = found["images"], 8 * size / found["pixels"]
        print(f"Wrote {arguments.output}: {count:,} images in {size:,} bytes, {rate:.3f} bits per pixel.")
        return
    per_byte = f", {8 * size / original:.3f} bits per byte" if original else ""
    print(f"Wrote {arguments.output}: {original:,} bytes in {size:,}{per_byte}.")


def decompress_command_line(arguments: argparse.Namespace) -> None:
    """Restores a compressed file: a text byte for byte, images as PNG files in a new folder. It appears only once its
    checksum is right."""
    from .compression import decompress

    print(f"Wrote {decompress(arguments.file, arguments.output, arguments.model, arguments.revision)}.")


def info_command_line(arguments: argparse.Namespace) -> None:
    """Shows what a compressed file holds, and which model it needs; the model itself is not read."""
    from .compression import describe

    found = describe(arguments.file)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if isinstance(value, float) else repr(value)
        print(f"{name.replace('_', ' '):20} {'none' if value is None else shown}")


def score_command_line(arguments: argparse.Namespace) -> int:
    """Prints how strange each image is to an Auto-Encoder, and which are anomalies by the threshold that its training
    set. The exit status is 0 unless a file cannot be read. It runs hfgen's own code, never the code that comes with
    the model."""
    from .score_command import score

    return score(arguments.model, arguments.images, arguments.json, arguments.maps, arguments.revision)


def _labels(model: Any, arguments: argparse.Namespace) -> list[str | int] | None:
    """A class for each image, with those of --label in turn; a name that reads like a number is a name first."""
    if not arguments.label:
        return None
    names = (model.config.id2label or {}).values()
    classes = [int(label) if label.isdecimal() and label not in names else label for label in arguments.label]
    return [classes[index % len(classes)] for index in range(arguments.count)]


def _write_text(model: Any, folder: Path, arguments: argparse.Namespace, options: dict[str, float]) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    torch.manual_seed(arguments.seed)
    print(model.sample(tokenizer, arguments.prompt, arguments.tokens, **options))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
