"""Reads the command line and the recipe of a run, and checks both as a whole before any work starts.

`train_X.py [recipe.yaml] [--flag value ...]`: a recipe is a YAML mapping of flag names to values, a flag overrides it,
and every field of the model's config is a flag too.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import inspect
import os
import re
import shlex
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, PreTrainedConfig

from ..distributed import launcher
from .flags import FROM_DATA, Arguments, DataArguments, RunArguments, flag, range_problems, switch


# Environment variable with the command that `hfgen train` was given up to the script's own flags, as a shell reads it.
COMMAND = "HFGEN_COMMAND"


def parse(
    config_class: type[PreTrainedConfig],
    description: str,
    defaults: dict[str, Any],
    extra_class: type | None = None,
    argv: list[str] | None = None,
) -> Arguments:
    """Reads recipe and flags.

    Args:
        config_class: the model's config; its fields become flags, explained by the `Args:` of its docstring.
        description: first line of --help.
        defaults: the script's own defaults for flags of RunArguments or DataArguments.
        extra_class: dataclass with the script's own flags.
        argv: words of the command line without the program's name; sys.argv if None.

    Raises:
        SystemExit: with all problems in one message: unknown flags or recipe keys, values of the wrong type or out of
            range.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = _repeating_command(argv)
    classes: list[Any] = [RunArguments, DataArguments, _model_arguments_class(config_class)]
    classes += [extra_class] if extra_class else []
    parser = _Parser(classes, description=description, formatter_class=_HelpFormatter, allow_abbrev=False,
                     usage=f"{os.environ.get(COMMAND, '%(prog)s')} [recipe.yaml] [--flag value ...]")  # fmt: skip
    parser.set_defaults(**defaults)
    problems: list[str] = []
    if argv and not argv[0].startswith("-"):
        recipe, problems = _read_recipe(Path(argv.pop(0)), classes)
        parser.set_defaults(**recipe)
    words, more = _checked(argv, parser, classes)
    problems += more
    run, data, model, *extra = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    given = {name: value for name, value in vars(model).items() if value is not None}
    if len(given.get("image_size", ())) == 1:
        given["image_size"] *= 2
    for part in (run, data, *extra):
        problems += range_problems(part) + (part.problems() if hasattr(part, "problems") else [])
    if run.model_name_or_path is None:
        problems += _config_problems(config_class, given)
    if problems:
        raise SystemExit("The run was not started:\n- " + "\n- ".join(problems) + "\nSee --help for all arguments.")
    if run.max_train_steps is None and run.num_train_epochs is None and run.max_train_seconds is None:
        run.max_train_seconds = 60.0
    return Arguments(run, data, given, extra[0] if extra else None, command)


def strict_error_text(error: StrictDataclassError) -> str:
    """Returns the message of a config's own check, without what huggingface_hub wraps around it."""
    return str(error.__cause__ or error)


class _Parser(HfArgumentParser):
    """Raises where argparse would print its first problem and exit."""

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        """Hides the metadata that argparse does not know."""
        field = copy.copy(field)
        field.metadata = {name: value for name, value in field.metadata.items() if name != "meaning"}  # type: ignore
        HfArgumentParser._parse_dataclass_field(parser, field)

    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(message)


class _HelpFormatter(argparse.HelpFormatter):
    """Shows flags by the one name that the documentation uses, and only defaults that say something."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return ", ".join(action.option_strings) if action.dest == "help" else action.option_strings[0]
        if action.nargs == "?":
            return f"{action.option_strings[0]} [true|false]"
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.rpartition('_')[2].upper())}"

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.nargs == 0 and action.dest != "help":
            return f"Turn --{action.dest} off."
        if action.default in (None, False, "", argparse.SUPPRESS):
            return action.help or ""
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{action.help} (default: {default})"


def _checked(argv: list[str], parser: _Parser, classes: list[type]) -> tuple[list[str], list[str]]:
    """Returns the words that can be parsed, and a problem for each flag that cannot.

    Flag by flag, because argparse stops at its first problem.
    """
    starts = [index for index, word in enumerate(argv) if word.startswith("--") or index == 0]
    good, problems = [], []
    for start, stop in zip(starts, [*starts[1:], len(argv)]):
        words = argv[start:stop]
        try:
            _, unknown = parser.parse_known_args(words)
        except ValueError as error:
            # "argument --a_b/--a-b: ..."
            problems.append(re.sub(r"^argument (--\w+)(?:/[\w/-]+)?: ", r"\1: ", str(error)))
            continue
        if not unknown:
            good += words
        elif unknown[0] == words[0] and words[0].startswith("--"):
            problems.append(f"unknown argument {words[0]}{_did_you_mean(words[0], classes)}")
        else:
            hint = ", a recipe comes before all flags" if unknown[0].endswith((".yaml", ".yml")) else ""
            problems.append(f"unexpected {' '.join(map(repr, unknown))} after {words[0]}{hint}")
            good += [word for word in words if word not in unknown]
    return good, problems


def _config_problems(config_class: type[PreTrainedConfig], given: dict[str, Any]) -> list[str]:
    """Returns what the config's own checks say about the given values, before any data is loaded."""
    # The images' size is not known yet; this one is divisible by any number of stages.
    stand_in = {"image_size": [2**40] * 2} if "image_size" in _field_names(config_class) else {}
    try:
        config_class(**{**stand_in, **given})
    except StrictDataclassError as error:
        return [strict_error_text(error)]
    except (TypeError, ValueError) as error:
        return [str(error)]
    return []


def _repeating_command(argv: list[str]) -> str:
    """Returns the command line that repeats this run, with as many processes, as a shell reads it."""
    if COMMAND in os.environ:
        return shlex.join([*shlex.split(os.environ[COMMAND]), *argv])
    script = Path(sys.argv[0])
    name = [f"training/{script.name}" if script.parent.name == "training" else script.name]
    if (__package__ or "").startswith("hfgen."):
        name = ["-m", f"hfgen.training.{script.stem}"]
    launch = ["accelerate", "launch"]
    # With several machines, their addresses and ranks are the launcher's business.
    if launcher.world_size() > 1 and launcher.machines() <= 1:
        launch = [*(["env", "ACCELERATE_USE_CPU=true"] if launcher.on_cpu() else []), *launch]
        launch += ["--multi_gpu", "--num_processes", str(launcher.world_size())]
    return shlex.join([*launch, *name, *argv])


def _read_recipe(path: Path, classes: list[type]) -> tuple[dict[str, Any], list[str]]:
    """Returns the values of a recipe by flag, and everything that is wrong with it."""
    if not path.is_file():
        return {}, [f"there is no recipe {path}; the ones that come with hfgen are in training/recipes/"]
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return {}, [f"{path} is not valid YAML: {' '.join(str(error).split())}"]
    if not isinstance(recipe, dict):
        return {}, [f"{path} must be a mapping of flag names to values, got {type(recipe).__name__}"]
    hints = {name: kind for cls in classes for name, kind in typing.get_type_hints(cls).items()}
    values, problems = {}, []
    for name, value in recipe.items():
        if name not in hints:
            problems.append(f"unknown key {name!r} in {path}{_did_you_mean(str(name), classes)}")
            continue
        try:
            values[name] = _coerced(value, hints[name])
        except (TypeError, ValueError):
            problems.append(f"{name} in {path} must be {_kind_name(hints[name])}, got {value!r}")
    return values, problems


def _coerced(value: Any, kind: Any) -> Any:
    """Converts a YAML value to its flag's type: to YAML, 1e-3 is a string, and 1 is an int where a float is meant."""
    options = typing.get_args(kind)
    if value is None and type(None) in options:
        return None
    if typing.get_origin(kind) is Literal:
        value = "no" if value is False else value  # YAML reads a bare no as false
        if value not in options:
            raise ValueError
        return value
    if type(None) in options:
        (kind,) = (option for option in options if option is not type(None))
    if typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        return [_coerced(entry, item) for entry in (value if isinstance(value, list) else [value])]
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise TypeError
        return value
    if kind is int and not isinstance(value, int):
        raise TypeError
    if kind is float:
        return float(value)
    if kind is str and not isinstance(value, str):
        raise TypeError
    return value


def _kind_name(kind: Any) -> str:
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, options))
    if typing.get_origin(kind) is list:
        return f"a list of {options[0].__name__}"
    return options[0].__name__ if options else kind.__name__


def _did_you_mean(word: str, classes: list[type]) -> str:
    names = [name for cls in classes for name in typing.get_type_hints(cls)]
    close = difflib.get_close_matches(word.lstrip("-").split("=")[0].replace("-", "_"), names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _model_arguments_class(config_class: type[PreTrainedConfig]) -> type:
    """Makes a dataclass of the config's own fields, all optional, with help from the config's docstring."""
    helps = _argument_helps(inspect.getdoc(config_class) or "")
    inherited = _field_names(PreTrainedConfig)
    fields: list[tuple[str, Any, Any]] = []
    for entry in dataclasses.fields(config_class):
        if entry.name in inherited and entry.name not in helps:
            continue
        kind = _flag_type(entry.type)
        if kind is not None:
            default = "that of the data" if entry.name in FROM_DATA else entry.default
            help = helps.get(entry.name, entry.name) + ("" if default is None else f" (default: {default})")
            fields.append(
                (entry.name, kind | None, (switch if kind is bool else flag)(None, help, on_resume="refuse"))
            )
    if "num_labels" in helps:
        fields.append(
            ("num_labels", int | None, flag(None, helps["num_labels"] + " (default: 0)", on_resume="refuse"))
        )
    return dataclasses.make_dataclass("ModelArguments", fields, namespace={"_argument_group_name": "model"})


def _field_names(cls: Any) -> set[str]:
    return {entry.name for entry in dataclasses.fields(cls)}


def _flag_type(kind: Any) -> Any:
    """Returns the type of a config field's flag, the widest of its alternatives; None if no flag can express it."""
    options = set(typing.get_args(kind)) or {kind}
    for candidate in (list[int], float, int, str, bool):
        if candidate in options:
            return candidate
    return None


def _argument_helps(docstring: str) -> dict[str, str]:
    """Returns name -> explanation from the `Args:` section of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, flags=re.DOTALL | re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+)(?: \(.*?\))?: (.*?)(?=^ {4}\w|\Z)", section[1], flags=re.DOTALL | re.MULTILINE)
    # argparse reads "%" as the start of a format.
    return {name: " ".join(text.split()).replace("%", "%%") for name, text in entries}


def command_to_resume(arguments: Arguments) -> str:
    """Returns the run's own command, without what would start it over or go back to an earlier checkpoint."""
    command = arguments.command
    if arguments.run.overwrite_output_dir:
        command += " --overwrite_output_dir false"
    if arguments.run.resume_from_checkpoint not in (None, "latest") or arguments.run.overwrite_output_dir:
        command += " --resume_from_checkpoint latest"
    return command
