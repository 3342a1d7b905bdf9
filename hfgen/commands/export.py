"""`hfgen export MODEL [OUT]`"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_json, add_model, print_result


HELP = "write a model as ONNX files"
DTYPES = ("fp32", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("output", metavar="OUT", type=Path, nargs="?",
                        help="new folder (default: the model's name and -onnx)")  # fmt: skip
    parser.add_argument("--onnx", action="store_true", help="the format, which is the only one and may be left out")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES),
                        help="precision of the weights: fp32 as NAME.onnx, int8 as NAME_quantized.onnx "
                        "(default: both)")  # fmt: skip
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes each network of a model as an ONNX file, for onnxruntime and, by onnxruntime-web or transformers.js, for
    browsers: encoder and decoder, generator and discriminator, or a GPT with its cache. Every file is compared with
    PyTorch before the folder appears; `hf upload` publishes it. It runs hfgen's own code, never the code that comes
    with the model, and needs hfgen[onnx]."""
    from transformers.utils import logging as transformers_logging

    from ..export import export_folder
    from ..hub import fetch_model

    transformers_logging.disable_progress_bar()
    name = arguments.model.rstrip("/\\")
    output = arguments.output or Path(f"{Path(name).resolve().name}-onnx")
    manifest = export_folder(fetch_model(name, arguments.revision), output, arguments.dtype, name)
    files = [file for graph in manifest["graphs"].values() for file in graph["files"].values()]
    sizes = ", ".join(f"{file['path']} ({file['bytes']:,} bytes)" for file in files)
    print_result(arguments, f"Wrote {output}: {sizes}.", output=str(output), **manifest)
