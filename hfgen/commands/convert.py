"""`hfgen convert MODEL OUT`"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_json, add_model, print_result


HELP = "write a GPT in another layout"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "folder or repository of a GPT")
    parser.add_argument("output", metavar="OUT", type=Path, help="new folder, or new file OUT.gguf")
    parser.add_argument("--to", choices=("native", "gpt2", "hfgen"),
                        help="layout of a folder: that of the class of transformers that fits (native), of GPT-2, or "
                        "hfgen's own (default: native)")  # fmt: skip
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes a GPT in another layout, with its tokenizer, generation config and card. The native layout is that of the
    class of transformers that computes the same logits (Apertus, Arcee, Qwen3, Llama or GPT-2): it needs no
    trust_remote_code. A file OUT.gguf is for llama.cpp and Ollama. No code that comes with the model is run."""
    from transformers.utils import logging as transformers_logging

    from ..convert.folders import convert_folder
    from ..hub import fetch_model

    output: Path = arguments.output
    is_file = output.suffix == ".gguf"
    if is_file and arguments.to is not None:
        raise ValueError(f"--to must be left out if OUT is a .gguf file, got {arguments.to}.")
    transformers_logging.disable_progress_bar()
    folder = fetch_model(arguments.model, arguments.revision)
    if is_file:
        from ..convert.gguf_file import write_gguf

        architecture = write_gguf(folder, output)
        words = f"Wrote {output}, for the architecture {architecture} of llama.cpp."
        print_result(arguments, words, output=str(output), architecture=architecture)
    else:
        model = convert_folder(folder, output, arguments.to or "native")
        name, size = type(model).__name__, model.num_parameters()
        words = f"Wrote {output}: {name}, {size:,} parameters."
        print_result(arguments, words, output=str(output), architecture=name, parameters=size)
