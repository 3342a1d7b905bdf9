"""`hfgen demo MODEL`"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import webbrowser
from pathlib import Path

from .arguments import add_json, add_model, print_result


HELP = "play with a model in the browser"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--images", metavar="DATA", nargs="+",
                        help="pictures for the map of an Auto-Encoder or VAE: dataset on the Hub, folder of images or "
                        "tables, files of either, or digits (default: what the model was evaluated on, if it is here, "
                        "else pictures of its own)")  # fmt: skip
    parser.add_argument("--split", help="split of DATA, or slice of one (default: test, or the first)")
    parser.add_argument("--prompt", help="what the text of a GPT begins with (default: The)")
    parser.add_argument("--dtype", choices=("fp32", "int8"), default="fp32",
                        help="precision of the weights; int8 is a quarter as large (default: fp32)")  # fmt: skip
    parser.add_argument("--output", metavar="FOLDER", type=Path,
                        help="keep the page in this new folder, for any server of static files; nothing is served "
                        "unless --port is given, too")  # fmt: skip
    parser.add_argument("--space", metavar="REPO", help="publish the page as a static Space on the Hub, "
                        "owner/name or a name in your own namespace")  # fmt: skip
    parser.add_argument("--private", action="store_true", help="make the Space private")
    parser.add_argument("--port", type=int, help="port to serve on, on this machine only (default: a free one)")
    parser.add_argument("--no_browser", action="store_true", help="print the address, and open no browser")
    parser.add_argument("--runtime", metavar="FOLDER", type=Path,
                        help="folder with the files of onnxruntime-web (default: fetched by npm, once)")  # fmt: skip
    add_json(parser, "print JSON; with a server, one line with its address")


def run(arguments: argparse.Namespace) -> None:
    """Writes a page that runs a model in the browser, and serves it until Ctrl-C. A map, sliders and a canvas to draw
    on for an Auto-Encoder or VAE; classes, truncation and a walk for a GAN; text with the probabilities of what comes
    next for a GPT. It needs hfgen[onnx], and npm to fetch onnxruntime-web the first time; without npm, the page loads
    that from the network. With --output or --space, the command writes or publishes the page and ends."""
    from transformers.utils import logging as transformers_logging

    from ..demo import push_space, write_explorer
    from ..hub import fetch_model

    transformers_logging.disable_progress_bar()
    name = arguments.model.rstrip("/\\")
    if arguments.private and arguments.space is None:
        raise ValueError("--private must come with --space, got it alone. It makes the Space private.")
    source = fetch_model(name, arguments.revision)
    with tempfile.TemporaryDirectory(prefix="hfgen-demo-") as home:
        output: Path = arguments.output or Path(home) / "explorer"
        write_explorer(
            source, output, name=name, images=arguments.images, split=arguments.split, prompt=arguments.prompt,
            dtype=arguments.dtype, runtime=arguments.runtime,
        )  # fmt: skip
        if arguments.space is not None:
            pushed = push_space(output, arguments.space, private=arguments.private)
            words = f"{pushed.url} is the page, at commit {pushed.commit}."
            print_result(arguments, words, url=pushed.url, commit=pushed.commit, output=_given(arguments))
        elif arguments.output is not None and arguments.port is None:
            words = f"Wrote {output}. Any server of static files will do: python -m http.server --directory {output}"
            print_result(arguments, words, output=str(output))
        if arguments.port is not None or (arguments.output is None and arguments.space is None):
            _serve(arguments, output)


def _given(arguments: argparse.Namespace) -> str | None:
    return None if arguments.output is None else str(arguments.output)


def _serve(arguments: argparse.Namespace, folder: Path) -> None:
    """Serves until Ctrl-C, which is how it is meant to end."""
    from ..demo import serve

    with serve(folder, arguments.port or 0) as address:
        print_result(arguments, f"{address} is the page. Ctrl-C ends it.", url=address, output=_given(arguments))
        sys.stdout.flush()
        if not arguments.no_browser:
            webbrowser.open(address)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print(file=sys.stderr)
