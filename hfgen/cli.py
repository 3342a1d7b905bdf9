"""The command `hfgen`: train models, and share them on the Hub.

hfgen train vae --output_dir vae-digits     train a model
hfgen push vae-digits me/vae-digits         publish a folder as one commit
hfgen pull me/vae-digits                    download a checked copy
hfgen card vae-digits                       rewrite its card
hfgen check me/vae-digits                   check that it would load
hfgen sample me/vae-digits                  draw a picture, or write a text
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hfgen.models import MODELS


FAMILIES = [architecture.family for architecture in MODELS.values()]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if words[:1] == ["train"] and len(words) > 1 and not words[1].startswith("-"):
        # Its flags are the script's and the launcher's; argparse would take them for its own.
        arguments = parser.parse_args(words[:2])
        arguments.words = words[2:]
    else:
        arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "httpx2", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It has a handler of its own, which would repeat everything.
    logging.getLogger("huggingface_hub").propagate = False
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("HFGEN_DEBUG"):
            raise
        from hfgen.hub import redact

        print(f"hfgen {arguments.command}: {redact(str(error))}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hfgen",
        description="Train the models of hfgen and share them on the Hugging Face Hub. Log in once: `hf auth login`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    training = commands.add_parser(
        "train",
        help="train a model",
        description=_train.__doc__,
        usage="hfgen train MODEL [RECIPE] [--flag value ...]",
    )
    training.add_argument("model", metavar="MODEL", choices=FAMILIES, help=", ".join(FAMILIES))
    training.set_defaults(run=_train, words=[])

    push = commands.add_parser("push", help="publish a folder as one commit", description=_push.__doc__)
    push.add_argument("folder", metavar="FOLDER", type=Path, help="what a training left, or a saved model")
    push.add_argument("repo", metavar="REPO", help="owner/name on the Hub; without an owner, yours")
    push.add_argument("--private", action="store_true", help="make the repository private")
    push.add_argument("--revision", metavar="BRANCH", help="branch, made if it is not there (default: main)")
    push.add_argument("--checkpoints", choices=("none", "last", "all"), default="none",
                      help="training state that goes along (default: none)")  # fmt: skip
    push.set_defaults(run=_push)

    pull = commands.add_parser("pull", help="download a checked copy", description=_pull.__doc__)
    pull.add_argument("repo", metavar="REPO", help="owner/name on the Hub")
    pull.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", help="new folder (default: the name of REPO)")
    pull.add_argument("--revision", help="branch, tag or commit (default: main)")
    pull.set_defaults(run=_pull)

    card = commands.add_parser("card", help="rewrite the card", description=_card.__doc__)
    card.add_argument("folder", metavar="FOLDER", type=Path, help="what a training left")
    card.add_argument("--repo", help="repository that the card names (default: --hub_model_id, or the folder's name)")
    card.set_defaults(run=_card)

    check = commands.add_parser("check", help="check whether a model would load", description=_check.__doc__)
    check.add_argument("model", metavar="FOLDER_OR_REPO")
    check.add_argument("--revision", help="branch, tag or commit (default: main)")
    check.set_defaults(run=_check)

    sample = commands.add_parser("sample", help="draw images or write text", description=_sample.__doc__)
    sample.add_argument("model", metavar="FOLDER_OR_REPO")
    sample.add_argument("--revision", help="branch, tag or commit (default: main)")
    sample.add_argument("--count", type=_positive, default=64, help="images to draw (default: 64)")
    sample.add_argument("--output", type=Path, default=Path("samples.png"), help="picture (default: samples.png)")
    sample.add_argument("--prompt", default="\n", help="text to go on from (default: an empty page)")
    sample.add_argument("--tokens", type=_positive, default=200, help="tokens to write (default: 200)")
    sample.add_argument("--temperature", type=float, help="below 1 for likelier samples (default: the model's own)")
    sample.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    sample.set_defaults(run=_sample)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    """Trains a model by accelerate's launcher, with your own accelerate config. RECIPE is a YAML file, or the name of
    one that comes with hfgen. `hfgen train MODEL --help` explains every flag of the model's training; flags of
    `accelerate launch`, such as --num_processes, go to the launcher."""
    from hfgen.train_command import train

    return train(arguments.model, arguments.words)


def _push(arguments: argparse.Namespace) -> None:
    """Publishes a folder as one commit, or makes none if the repository holds it already. Training state, logs,
    pickles and hidden files stay behind."""
    from hfgen.hub import push_folder

    if not arguments.folder.is_dir():
        raise ValueError(f"there is no folder {arguments.folder}.")
    pushed = push_folder(
        arguments.folder, arguments.repo, private=arguments.private, revision=arguments.revision,
        checkpoints=arguments.checkpoints,
    )  # fmt: skip
    if pushed.left_out:
        print(f"Left out: {', '.join(pushed.left_out)}.")
    print(f"{pushed.url} {'is now at' if pushed.is_new else 'held all of it already, at'} commit {pushed.commit}.")


def _pull(arguments: argparse.Namespace) -> None:
    """Downloads a model into a folder, which appears only when everything is there and was checked. Its code is not
    run."""
    from hfgen import hub

    folder = hub.pull(arguments.repo, arguments.folder, arguments.revision)
    print(f"{arguments.repo} is in {folder}.")


def _card(arguments: argparse.Namespace) -> None:
    """Rewrites README.md of a run from its results.json, config.json and newest samples."""
    from hfgen.cards import write_card

    print(f"Wrote {write_card(arguments.folder, arguments.repo)}.")


def _check(arguments: argparse.Namespace) -> None:
    """Checks whether a model would load, without running its code: whole files, safetensors, weights that fit the
    config."""
    from hfgen.hub import fetch_model

    folder = fetch_model(arguments.model, arguments.revision)
    print(f"{arguments.model} would load ({folder}).")


def _sample(arguments: argparse.Namespace) -> None:
    """Draws a grid of images into a file, or writes text, with a model of hfgen. hfgen's own code runs, not the code
    beside the model."""
    import json

    import torch

    import hfgen
    from hfgen.hub import fetch_model

    folder = fetch_model(arguments.model, arguments.revision)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type, name = config.get("model_type"), (config.get("architectures") or ["?"])[0]
    architecture = MODELS.get(str(model_type))
    if architecture is None or not (architecture.causal_lm or hasattr(architecture.model, "sample")):
        raise ValueError(f"{arguments.model} is a model of the type {model_type!r}, and nothing can be drawn from it.")
    model = getattr(hfgen, name).from_pretrained(folder).eval()
    if architecture.causal_lm:
        _write_text(model, folder, arguments)
        return
    # A GAN calls its temperature truncation.
    parameters = inspect.signature(model.sample).parameters
    knob = "temperature" if "temperature" in parameters else "truncation"
    options = {} if arguments.temperature is None else {knob: arguments.temperature}
    images = model.sample(arguments.count, generator=torch.Generator().manual_seed(arguments.seed), **options)
    hfgen.image_grid(images, columns=min(8, arguments.count)).save(arguments.output)
    print(f"Wrote {arguments.output}.")


def _write_text(model, folder: Path, arguments: argparse.Namespace) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    torch.manual_seed(arguments.seed)
    inputs = tokenizer(arguments.prompt, return_tensors="pt")
    options = {} if arguments.temperature is None else {"do_sample": True, "temperature": arguments.temperature}
    output = model.generate(**inputs, max_new_tokens=arguments.tokens, **options)
    print(tokenizer.decode(output[0], skip_special_tokens=True))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
