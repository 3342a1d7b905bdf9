"""Recipe and command line: parsed and checked as a whole, before any work starts.

`train_X.py [recipe.yaml] [--flag value ...]`: a recipe is a command line written as YAML, a mapping of flag names to
values. Flags override it, and it overrides the settings of a preset and those of the launcher. A flag that names
another dataset drops what the recipe says of its own. Every field of the model's config is a flag, too.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import importlib.util
import os
import re
import shlex
import sys
import typing
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from ..distributed import launcher
from .flags import OF_ONE_DATASET, Arguments, DataArguments, RunArguments, range_problems
from .model_flags import model_arguments_class
from .scripts import Script


if TYPE_CHECKING:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import PreTrainedConfig
    from transformers.hf_argparser import HfArgumentParser
else:

    def _argument_parser_class() -> Any:
        """transformers' parser from its file, which needs nothing else of transformers. Importing the package would
        delay --help by half a second."""
        package = importlib.util.find_spec("transformers")
        spec = importlib.util.spec_from_file_location(
            "hfgen_hf_argparser", Path(package.origin).with_name("hf_argparser.py")
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where `dataclasses` looks for it
        spec.loader.exec_module(module)
        return module.HfArgumentParser

    HfArgumentParser = _argument_parser_class()


PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = PACKAGE / "recipes"
# Stands in for an image size that follows from the data: any number of stages that halve it divides it.
DIVISIBLE_SIZE = 2**40


def parse(
    script: Script, argv: list[str] | None = None, config_class: type[PreTrainedConfig] | None = None
) -> Arguments:
    """Parses the recipe and the command line.

    Args:
        script: whose command line it is.
        argv: arguments without the program's name; sys.argv when None.
        config_class: the model's config, which checks its values. None leaves that out, as importing it takes seconds.

    Returns:
        Valid arguments: output_dir is not empty, and at least one length is set.

    Raises:
        SystemExit: an unknown flag, an unknown key of the recipe, a value that is not possible: all in one message.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = _repeating_command(argv)
    parser = build_parser(script)
    # argparse takes the last of several values.
    words, problems = _sort_out([f"--{name}={value}" for name, value in launcher.settings().items()], parser)
    of_recipe: list[str] = []
    if argv and not argv[0].startswith("-"):
        of_recipe, bad = _recipe_words(argv.pop(0), parser)
        problems += bad
    good, bad = _sort_out(argv, parser)
    words += _preset_words([*of_recipe, *good], script, parser) + of_recipe
    if any(word.partition("=")[0].replace("-", "_") == "__dataset_name" for word in good):
        of_one_dataset = tuple(f"--{name}=" for name in OF_ONE_DATASET)
        words = [word for word in words if not word.startswith(of_one_dataset)]
    words, problems = words + good, problems + bad
    data, model, *extra, run = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    given = {name: value for name, value in vars(model).items() if value is not None}
    if len(given.get("image_size", ())) == 1:
        given["image_size"] *= 2
    for part in (run, data, *extra):
        problems += range_problems(part) + (part.problems() if hasattr(part, "problems") else [])
    if run.model_name_or_path is None and config_class is not None:
        problems += _config_problems(config_class, given)
    if problems:
        raise SystemExit("The run was not started:\n- " + "\n- ".join(problems) + "\nSee --help for all arguments.")
    if run.max_train_steps is None and run.num_train_epochs is None and run.max_train_seconds is None:
        run.max_train_seconds = 60.0
    return Arguments(run, data, given, extra[0] if extra else None, command)


def build_parser(script: Script) -> _Parser:
    """The parser of a script's flags: those of the data, of the model's config, of the script and of any run."""
    classes: list[Any] = [DataArguments, model_arguments_class(script.family)]
    classes += [script.extra, RunArguments] if script.extra else [RunArguments]
    parser = _Parser(
        classes, prog=os.environ.get("HFGEN_COMMAND"), usage="%(prog)s [recipe.yaml] [--flag value ...]",
        description=script.description, formatter_class=_HelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(**script.defaults)
    return parser


def command_to_resume(arguments: Arguments) -> str:
    """Returns the run's own command, without what would make it start over or resume from an earlier checkpoint."""
    command = arguments.command
    if arguments.run.overwrite_output_dir:
        command += " --overwrite_output_dir false"
    if arguments.run.resume_from_checkpoint not in (None, "latest") or arguments.run.overwrite_output_dir:
        command += " --resume_from_checkpoint latest"
    return command


def strict_error_text(error: StrictDataclassError) -> str:
    """Returns what a config's own check says, without what huggingface_hub wraps around it."""
    return str(error.__cause__ or error)


class _Parser(HfArgumentParser):
    """Leaves to argparse what concerns it, and raises where argparse would print the first problem and exit."""

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        plain = copy.copy(field)
        plain.metadata = MappingProxyType({key: value for key, value in field.metadata.items() if key != "meaning"})
        HfArgumentParser._parse_dataclass_field(parser, plain)

    def print_help(self, file: Any = None) -> None:
        if launcher.rank() == 0:  # and not once for each process
            super().print_help(file)

    def error(self, message: str) -> typing.NoReturn:
        # "argument --a_b/--a-b: invalid int value: 'x'"
        raise ValueError(re.sub(r"^argument (--\w+)(?:/[\w/-]+)?: ", r"\1: ", message))

    def did_you_mean(self, word: str) -> str:
        names = [action.dest for action in self._actions]
        close = difflib.get_close_matches(word.lstrip("-").split("=")[0].replace("-", "_"), names, n=1)
        return f"; did you mean {close[0]}?" if close else ""


class _HelpFormatter(argparse.HelpFormatter):
    """Shows a flag by the one name that the documentation uses, and defaults that say something."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return ", ".join(action.option_strings) if action.dest == "help" else action.option_strings[0]
        if action.nargs == "?":
            return f"{action.option_strings[0]} [true|false]"
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.rpartition('_')[2].upper())}"

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.nargs == 0 and action.dest != "help":
            return f"Set --{action.dest} to false."
        if action.default in (None, False, "", argparse.SUPPRESS):
            return action.help or ""
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{action.help} (default: {default})"


def _sort_out(argv: list[str], parser: _Parser) -> tuple[list[str], list[str]]:
    """Returns the words that can be parsed, and a sentence for each flag that cannot.

    argparse stops at the first problem, so each flag with its values is parsed by itself first.
    """
    starts = [index for index, word in enumerate(argv) if word.startswith("--") or index == 0]
    good, problems = [], []
    for start, stop in zip(starts, [*starts[1:], len(argv)]):
        words = argv[start:stop]
        try:
            _, unknown = parser.parse_known_args(words)
        except ValueError as error:
            problems.append(str(error))
            continue
        if not unknown:
            good += words
        elif unknown[0] == words[0] and words[0].startswith("--"):
            problems.append(f"unknown argument {words[0]}{parser.did_you_mean(words[0])}")
        else:
            hint = ", a recipe comes before all flags" if unknown[0].endswith((".yaml", ".yml")) else ""
            problems.append(f"unexpected {' '.join(map(repr, unknown))} after {words[0]}{hint}")
            good += [word for word in words if word not in unknown]
    return good, problems


def _recipe_words(name: str, parser: _Parser) -> tuple[list[str], list[str]]:
    """Returns the recipe as a command line, and a sentence for each problem.

    Args:
        name: a path, or the bare name of a recipe that comes with hfgen.
        parser: checks the values.
    """
    path = Path(name)
    if not path.is_file() and path.name == name:
        path = RECIPES / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        return [], [f"there is no recipe {name}. Give a YAML file, or one that comes with hfgen: {known}"]
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [], [f"{path} is not valid YAML: {' '.join(str(error).split())}"]
    if not isinstance(recipe, dict):
        return [], [f"{path} must be a mapping of flag names to values, got {type(recipe).__name__}"]
    actions = {action.dest: action for action in parser._actions}
    words, problems = [], []
    for key, value in recipe.items():
        if key not in actions:
            problems.append(f"unknown key {key!r} in {path}{parser.did_you_mean(str(key))}")
        elif isinstance(value, (dict, list)) and actions[key].nargs != "+":
            problems.append(f"{path}: --{key}: expected one value, got {value!r}")
        elif isinstance(value, bool) and actions[key].type is str:
            problems.append(f"{path}: --{key}: expected text, got {value!r}; put it in quotes")
        elif value is not None:  # null stands for the default
            good, bad = _sort_out(_flag_words(actions[key], value), parser)
            words += good
            problems += [f"{path}: {problem}" for problem in bad]
    return words, problems


def _preset_words(given: list[str], script: Script, parser: _Parser) -> list[str]:
    """Returns the settings of the preset that recipe or flags name, as a command line: they override the defaults, and
    the recipe and the flags override them."""
    if not script.presets:
        return []
    preset = parser.parse_known_args(given)[0].preset
    actions = {action.dest: action for action in parser._actions}
    return [word for key, value in script.presets.get(preset, {}).items() for word in _flag_words(actions[key], value)]


def _flag_words(action: argparse.Action, value: Any) -> list[str]:
    """Returns a value of a recipe as it would be given on the command line."""
    if value is False and "no" in (action.choices or ()):  # YAML reads a bare no as false
        value = "no"
    if action.nargs == "+":
        return [f"--{action.dest}", *map(str, value if isinstance(value, list) else [value])]
    return [f"--{action.dest}={value}"]


def _config_problems(config_class: type[PreTrainedConfig], given: dict[str, Any]) -> list[str]:
    """Returns what the config says to the values that were given, before any data is looked for."""
    from huggingface_hub.errors import StrictDataclassError

    size = {"image_size": [DIVISIBLE_SIZE] * 2} if "image_size" in _field_names(config_class) else {}
    try:
        config_class(**{**size, **given})
    except StrictDataclassError as error:
        return [strict_error_text(error)]
    except (TypeError, ValueError) as error:
        return [str(error)]
    return []


def _repeating_command(argv: list[str]) -> str:
    """Returns the command line that repeats this run with as many processes, quoted for a shell."""
    if "HFGEN_COMMAND" in os.environ:
        return f"{os.environ['HFGEN_COMMAND']} {shlex.join(argv)}"
    script, package = Path(sys.argv[0]), (__package__ or "").rpartition(".")[0]
    start = [f"training/{script.name}" if script.parent.name == "training" else script.name]
    if package != "training":  # installed: the file is no place to start from
        start = ["-m", f"{package}.{script.stem}"]
    launch = ["accelerate", "launch"]
    # On several machines, the addresses and ranks are the launcher's business.
    if launcher.world_size() > 1 and launcher.machines() <= 1:
        launch = ["env", "ACCELERATE_USE_CPU=true", *launch] if launcher.on_cpu() else launch
        launch += ["--multi_gpu", "--num_processes", str(launcher.world_size())]
    for name, value in launcher.settings().items():
        launch += [f"--{name}", value]
    return shlex.join([*launch, *start, *argv])


def _field_names(cls: Any) -> set[str]:
    return {entry.name for entry in dataclasses.fields(cls)}
