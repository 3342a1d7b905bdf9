"""`hfgen generate MODEL`"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .arguments import add_json, add_model, positive


HELP = "write text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "folder or repository of a GPT with its tokenizer")
    parser.add_argument("--prompt", default="",
                        help="text to continue, or - for standard input (default: an empty page)")  # fmt: skip
    parser.add_argument("--max_new_tokens", metavar="N", type=positive, default=200,
                        help="tokens to write, unless the model ends the text before (default: 200)")  # fmt: skip
    parser.add_argument("--temperature", type=float,
                        help="below 1 for likelier text, 0 for the likeliest token each time (default: the model's "
                        "own)")  # fmt: skip
    parser.add_argument("-n", "--count", type=positive, default=1, help="texts to write (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--stream", action="store_true", help="print the text while it is written")
    add_json(parser, "print a JSON object per text")


def run(arguments: argparse.Namespace) -> None:
    """Continues a text, and prints it from its beginning; an empty line separates several. Any causal language model
    that transformers knows will do. It runs hfgen's own code and that of transformers, never the code that comes with
    the model."""
    if arguments.stream and arguments.json:
        raise ValueError("--stream must be left out with --json, whose objects hold whole texts.")
    from .text.model import TextModel

    writer = TextModel(arguments.model, arguments.revision)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    for text in _write(writer, prompt, arguments):
        if arguments.json:
            print(json.dumps({"prompt": prompt, "text": text, "seed": arguments.seed}), flush=True)
        elif not arguments.stream:
            print(text, flush=True)


def _write(writer: Any, prompt: str, arguments: argparse.Namespace) -> Any:
    """Yields each text when it is complete; with --stream, it has been printed by then."""
    import torch

    from .text.stream import TextPrinter

    torch.manual_seed(arguments.seed)
    for index in range(arguments.count):
        if index and not arguments.json:
            print()
        printer = TextPrinter(writer.tokenizer, prompt) if arguments.stream else None
        yield writer.write(prompt, arguments.max_new_tokens, arguments.temperature, printer)
        if printer:
            printer.finish()
