"""What may follow on a command line, from the parsers of `hfgen` and of the training scripts.

The script of each shell asks the command itself, so it never falls behind: `hfgen completion bash hfgen sample --te`
prints --temperature.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .machine.installation import import_training
from .machine.recipe_files import recipe_names


class Candidate(NamedTuple):
    """A word that may follow, and what it means."""

    word: str
    help: str = ""


def candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[Candidate]:
    """The words that may stand in place of the last one; none where a file or any text is expected.

    Args:
        parser: of all commands.
        words: after `hfgen`, the last of them as far as it is typed.
    """
    *before, begun = words
    found = _commands(parser) if not before else _words_of_command(parser, before, begun)
    return [candidate for candidate in found if candidate.word.startswith(begun)]


def _commands(parser: argparse.ArgumentParser) -> list[Candidate]:
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [Candidate(action.dest, action.help or "") for action in subparsers._choices_actions]


def _words_of_command(parser: argparse.ArgumentParser, before: list[str], begun: str) -> list[Candidate]:
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    command, *given = before
    if command not in subparsers.choices:
        return []
    if command == "train" and given:
        return _training(given, begun)
    actions = subparsers.choices[command]._actions
    if command == "doctor" and not begun.startswith("-") and not given:
        return [Candidate(name) for name in recipe_names()]
    return _next_words(actions, given, begun)


def _training(given: list[str], begun: str) -> list[Candidate]:
    """After `hfgen train FAMILY`: a recipe first, and flags."""
    family, *rest = given
    scripts = import_training("config.scripts").SCRIPTS
    if family not in scripts:
        return []
    if not rest and not begun.startswith("-"):
        return [Candidate(name) for name in recipe_names(family)]
    parser = import_training("config.parser").build_parser(scripts[family])
    return _next_words(parser._actions, rest, begun)


def _next_words(actions: Sequence[argparse.Action], given: list[str], begun: str) -> list[Candidate]:
    """A value of the option before it; else an option; else a positional argument."""
    options = {name: action for action in actions for name in action.option_strings}
    option = options.get(given[-1]) if given else None
    if option is not None and option.nargs != 0 and not begun.startswith("-"):
        return _choices(option)
    if begun.startswith("-"):
        return [Candidate(_name(action), _help(action)) for action in actions if action.option_strings]
    positionals = [action for action in actions if not action.option_strings]
    place = len(list(_values(options, given)))
    return _choices(positionals[place]) if place < len(positionals) else []


def _values(options: dict[str, argparse.Action], given: list[str]) -> Iterator[str]:
    """The words that are neither options nor their values, of which there are one at most."""
    takes_value = False
    for word in given:
        if word.startswith("-"):
            takes_value = word in options and options[word].nargs != 0
        elif takes_value:
            takes_value = False
        else:
            yield word


def _name(action: argparse.Action) -> str:
    """The name that the documentation uses: the first long one."""
    return next((name for name in action.option_strings if name.startswith("--")), action.option_strings[0])


def _help(action: argparse.Action) -> str:
    return " ".join((action.help or "").replace("%%", "%").split()).partition(". ")[0].removesuffix(".")


def _choices(action: argparse.Action) -> list[Candidate]:
    return [Candidate(str(choice)) for choice in action.choices or ()]


BASH = """\
_hfgen() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <(hfgen completion bash "${COMP_WORDS[@]:0:COMP_CWORD+1}" 2>/dev/null)
}
complete -o bashdefault -o default -F _hfgen hfgen
"""

ZSH = """\
#compdef hfgen
_hfgen() {
    local line
    local -a found
    for line in "${(@f)$(hfgen completion zsh "${(@)words[1,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] && found+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}")
    done
    if (( $#found )); then
        _describe hfgen found
    else
        _files
    fi
}
compdef _hfgen hfgen
"""

FISH = """\
function __hfgen_complete
    set -l begun (commandline -ct)
    set -l found (hfgen completion fish (commandline -opc) $begun 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path $begun
    end
end
complete -c hfgen -f -a '(__hfgen_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
