"""The command `hfgen`: trains models, moves them to the Hub and back, and puts them to work.

hfgen train vae --output_dir vae-digits     train a model
hfgen push runs/vae-mnist me/vae-mnist      publish a folder as one commit
hfgen sample me/vae-mnist grid.png          draw images

The folder commands/ has a file for each command; `hfgen --help` lists them.
"""

from __future__ import annotations

import argparse
import gc
import io
import logging
import os
import sys
from collections.abc import Sequence

from .commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 after an error, or 130 if interrupted. argparse itself exits
    with 2 if the command line is wrong."""
    # With Python's 700, a fifth of the time of importing torch and transformers goes into looking for garbage.
    gc.set_threshold(50_000)
    replace_unprintable_characters()
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "httpx2", "filelock", "urllib3", "gguf"):
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
        description="Trains the models of hfgen, moves them to the Hugging Face Hub and back, and puts them to work. "
        "Log in to the Hub once with `hf auth login`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        subparser = commands.add_parser(name, help=command.HELP, description=command.run.__doc__)
        command.add_arguments(subparser)
        # `completion` reads the parser of all commands.
        subparser.set_defaults(run=command.run, parser=parser)
    return parser
