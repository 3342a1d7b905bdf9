"""`hfgen completion bash|zsh|fish`"""

from __future__ import annotations

import argparse


HELP = "completion for a shell"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="one of %(choices)s")
    # With them, it prints what may stand in place of the last one: that is what the scripts ask for.
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """Prints a script that completes commands, flags, recipes and files. Read it at the start of a shell: `eval
    "$(hfgen completion bash)"` in ~/.bashrc, `eval "$(hfgen completion zsh)"` in ~/.zshrc after compinit, or `hfgen
    completion fish | source` in ~/.config/fish/config.fish."""
    from .completions import SCRIPTS, candidates

    if not arguments.words:
        print(SCRIPTS[arguments.shell], end="")
        return
    for candidate in candidates(arguments.parser, arguments.words[1:] or [""]):
        print(candidate.word if arguments.shell == "bash" else f"{candidate.word}\t{candidate.help}")
