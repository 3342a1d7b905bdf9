"""Flags and recipes: what a run is told, checked as a whole before any work starts.

`train_X.py [recipe.yaml] [--flag value ...]`: a recipe is a YAML mapping of flag names to values, a flag overrides it,
and every field of the model's config is a flag too.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import math
import os
import re
import shlex
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, PreTrainedConfig


# Config fields whose default is what the data has.
FROM_DATA = ("image_size", "num_channels", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with the text that --help shows for it; `metadata` goes to argparse."""
    return field(default=default, metadata={"help": help, **metadata})


def _switch(default: bool | None, help: str) -> Any:
    """A flag that is on without a value: `--name`, `--name true`, `--name false`."""
    return flag(default, help, nargs="?", const=True)


@dataclass
class DataArguments:
    """Where examples come from."""

    _argument_group_name = "data"

    dataset_name: str | None = flag(
        None,
        "A dataset on the Hub, a local dataset folder, a folder of images, a text file, or a built-in that needs no "
        "download: digits (1,797 images of 8 x 8), python-docs (465,000 characters). Default: the built-in that fits.",
    )
    dataset_path: str | None = flag(
        None, "Local copy of dataset_name: a folder or file that is read in its place where it exists."
    )
    dataset_config_name: str | None = flag(None, "Configuration of the dataset, where it has several.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of a dataset on the Hub.")
    train_split: str = flag("train", "Split to learn from.")
    eval_split: str | None = flag(
        None, "Split to measure on. Default: test or validation if there is one, else a tenth held out of train_split."
    )
    image_column: str | None = flag(None, "Column with the images. Default: the one column of that type.")
    label_column: str | None = flag(None, "Column with class labels. Default: label, labels or fine_label.")
    text_column: str = flag("text", "Column with the text.")
    streaming: bool = flag(False, "Read the dataset while training instead of downloading or loading it first.")
    shuffle_buffer_size: int = flag(
        10_000, "Examples of a streamed dataset that each process and worker holds and shuffles at a time."
    )
    in_memory: bool | None = _switch(
        None,
        "Hold the whole dataset in memory. Default: if it needs less than 2 GB, which 500 MB of text do, at 4 bytes "
        "a token. Else images are decoded by workers, and text is tokenized once into a file that is mapped.",
    )
    dataloader_num_workers: int | None = flag(
        None,
        "Processes that read and decode when the dataset is not in memory. Default: one a core, at most 4; 0 for a "
        "stream, where their number decides the order of the examples and must stay the same on a resume.",
    )
    max_train_samples: int | None = flag(None, "Use only so many training examples.")
    max_eval_samples: int | None = flag(
        None, "Use only so many evaluation examples. Default: all, or 10,000 images or 1,000 texts of a stream."
    )

    def problems(self) -> list[str]:
        """Everything that is wrong with the values, in words; empty if they will do."""
        found = _out_of_range(self, "above 0", "shuffle_buffer_size", "max_train_samples", "max_eval_samples")
        found += _out_of_range(self, "at least 0", "dataloader_num_workers")
        if self.streaming and self.in_memory:
            found.append("--streaming and --in_memory exclude each other")
        return found


@dataclass
class RunArguments:
    """How long to train, on what, and what to leave behind."""

    _argument_group_name = "run"

    output_dir: str | None = flag(None, "Folder for the model, its card, results, samples and checkpoints. Required.")
    overwrite_output_dir: bool = flag(False, "Delete what an earlier run left in output_dir and start anew.")
    model_name_or_path: str | None = flag(None, "Start from the weights of this model, a folder or a Hub repository.")
    max_train_steps: int | None = flag(None, "Stop after so many optimizer steps.")
    num_train_epochs: float | None = flag(None, "Stop after so many passes over the training data.")
    max_train_seconds: float | None = flag(
        None,
        "Stop after so many seconds of training; the learning rate decays in time for it. 60 when no other length is "
        "given. With several lengths the first one reached counts.",
    )
    per_device_train_batch_size: int = flag(128, "Examples a process and a micro-step.")
    per_device_eval_batch_size: int = flag(256, "Examples a process at once in evaluation.")
    gradient_accumulation_steps: int = flag(1, "Micro-steps whose gradients are added before a step.")
    learning_rate: float = flag(1e-3, "Highest learning rate.")
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "warmup_stable_decay"
    ] = flag("linear", "Shape of the decay, a name of transformers.get_scheduler.")
    warmup_ratio: float = flag(0.02, "Share of the run in which the learning rate rises from 0.")
    optimizer: Literal["adamw", "muon"] = flag(
        "adamw", "adamw, or muon for the matrices of hidden layers and adamw for all else."
    )
    adam_beta1: float = flag(0.9, "Decay of AdamW's first moment.")
    adam_beta2: float = flag(0.99, "Decay of AdamW's second moment.")
    weight_decay: float = flag(0.0, "Decoupled weight decay of matrices and kernels.")
    max_grad_norm: float = flag(0.0, "Longest gradient, longer ones are scaled down to it; 0 turns this off.")
    ema_decay: float = flag(0.0, "Decay of the moving average of the weights that is published; 0 turns it off.")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = flag(
        "auto", "auto means bf16 where the processor or GPU multiplies it natively, no elsewhere."
    )
    cpu_threads: int | None = flag(
        None, "Threads of each process on a CPU. Default: the cores of the machine, shared by its processes."
    )
    channels_last: bool = flag(True, "Lay image tensors out with channels last, the faster order for convolutions.")
    torch_compile: bool = flag(False, "Compile the model: costs 10 to 60 s once, pays in long runs.")
    gradient_checkpointing: bool = flag(False, "Recompute activations in the backward pass to save memory.")
    seed: int = flag(0, "All random numbers derive from it.")
    full_determinism: bool = flag(
        False, "Deterministic kernels on a GPU too, for resuming to the bit there; slower. A CPU has no others."
    )
    eval_steps: int | None = flag(None, "Evaluate every so many steps. Default: four times in the run.")
    logging_steps: int = flag(50, "Write a line of metrics every so many steps.")
    sample_steps: int | None = flag(None, "Draw samples every so many steps. Default: with each evaluation.")
    checkpointing_steps: int = flag(500, "Write a checkpoint every so many steps; one is always written at the end.")
    checkpoints_total_limit: int | None = flag(2, "Checkpoints to keep, the newest ones.")
    resume_from_checkpoint: str | None = flag(
        None, "Checkpoint folder to go on from, or latest. Default: the latest in output_dir, if there is one."
    )
    on_nonfinite: Literal["stop", "skip"] = flag(
        "stop", "What to do with a step whose loss or gradient is not finite."
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "Trackers: tensorboard, wandb, trackio, all, none, ..."}
    )
    disable_tqdm: bool = flag(False, "No progress bar.")
    push_to_hub: bool = flag(False, "Publish the folder on the Hub when done.")
    hub_model_id: str | None = flag(None, "Repository to publish to. Default: the name of output_dir.")
    hub_private_repo: bool = flag(False, "Create the repository as private.")
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = flag(
        "end", "What is published when, as in transformers."
    )

    def problems(self) -> list[str]:
        """Everything that is wrong with the values, in words; empty if they will do."""
        found = []
        if not self.output_dir:
            found.append("--output_dir is required: the folder for the model and all that belongs to it")
        found += _out_of_range(
            self, "above 0", "max_train_steps", "num_train_epochs", "max_train_seconds", "per_device_train_batch_size",
            "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate", "eval_steps",
            "cpu_threads", "logging_steps", "sample_steps", "checkpointing_steps", "checkpoints_total_limit",
        )  # fmt: skip
        found += _out_of_range(self, "at least 0", "weight_decay", "max_grad_norm", "seed")
        found += _out_of_range(self, "in [0, 1)", "adam_beta1", "adam_beta2", "ema_decay", "warmup_ratio")
        if self.resume_from_checkpoint and self.overwrite_output_dir:
            found.append("--resume_from_checkpoint and --overwrite_output_dir exclude each other")
        return found


def _out_of_range(values: Any, allowed: str, *names: str) -> list[str]:
    """A sentence for each of the named values that is not in the allowed range, nor None."""
    tests = {"above 0": lambda x: x > 0, "at least 0": lambda x: x >= 0, "in [0, 1)": lambda x: 0 <= x < 1}
    given = {name: value for name in names if (value := getattr(values, name)) is not None}
    return [
        f"--{name} must be {allowed}, got {value}"
        for name, value in given.items()
        if not (math.isfinite(value) and tests[allowed](value))
    ]


@dataclass
class Arguments:
    """Everything a script was told.

    Attributes:
        run, data: the two dataclasses above.
        model: config fields that were given, by name; the others take the config's defaults or follow from the data.
        extra: the script's own dataclass, or None.
        command: the command line that repeats this run.
    """

    run: RunArguments
    data: DataArguments
    model: dict[str, Any]
    extra: Any
    command: str


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
        argv: arguments without the program's name; sys.argv when None.

    Raises:
        SystemExit: an unknown flag, an unknown recipe key or a value out of range: all problems in one message.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = _repeating_command(argv)
    classes: list[Any] = [RunArguments, DataArguments, _model_arguments_class(config_class)]
    classes += [extra_class] if extra_class else []
    parser = _Parser(classes, description=description, formatter_class=_HelpFormatter, allow_abbrev=False,
                     usage="%(prog)s [recipe.yaml] [--flag value ...]")  # fmt: skip
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
        problems += part.problems() if hasattr(part, "problems") else []
    if run.model_name_or_path is None:
        problems += _config_problems(config_class, given)
    if problems:
        raise SystemExit("The run was not started:\n- " + "\n- ".join(problems) + "\nSee --help for all arguments.")
    if run.max_train_steps is None and run.num_train_epochs is None and run.max_train_seconds is None:
        run.max_train_seconds = 60.0
    return Arguments(run, data, given, extra[0] if extra else None, command)


def strict_error_text(error: StrictDataclassError) -> str:
    """What a config's own check says, without what huggingface_hub wraps around it."""
    return str(error.__cause__ or error)


def as_recipe(arguments: Arguments) -> dict[str, Any]:
    """The run as a flat mapping, what a recipe would hold to repeat it."""
    parts = [vars(arguments.run), vars(arguments.data), arguments.model]
    if arguments.extra is not None:
        parts.append(vars(arguments.extra))
    return {name: value for part in parts for name, value in part.items()}


class _Parser(HfArgumentParser):
    """Raises where argparse would print its first problem and exit."""

    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(message)


class _HelpFormatter(argparse.HelpFormatter):
    """Flags by the one name that the documentation uses, with defaults that say something."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return ", ".join(action.option_strings) if action.dest == "help" else action.option_strings[0]
        if action.nargs == "?":
            return f"{action.option_strings[0]} [true|false]"
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.rpartition('_')[2].upper())}"

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.nargs == 0 and action.dest != "help":
            return f"Turn --{action.dest} off."
        if action.default is None or action.default is False or action.default == argparse.SUPPRESS:
            return action.help or ""
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{action.help} (default: {default})"


def _checked(argv: list[str], parser: _Parser, classes: list[type]) -> tuple[list[str], list[str]]:
    """Words that can be parsed, and a problem for each flag that cannot: argparse alone would stop at the first."""
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
    """What the config says to the values that were given, before any data is looked for."""
    # The size of the images is not known yet; any number of stages divides this one.
    stand_in = {"image_size": [2**40] * 2} if "image_size" in _field_names(config_class) else {}
    try:
        config_class(**{**stand_in, **given})
    except StrictDataclassError as error:
        return [strict_error_text(error)]
    except (TypeError, ValueError) as error:
        return [str(error)]
    return []


def _repeating_command(argv: list[str]) -> str:
    """The command line that repeats this run, with as many processes, as a shell reads it."""
    script = Path(sys.argv[0])
    name = f"training/{script.name}" if script.parent.name == "training" else script.name
    processes, machines = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    launch = ["accelerate", "launch"]
    # Several machines: their addresses and ranks are the launcher's business.
    if processes > 1 and machines == 1:
        launch = [*(["env", "ACCELERATE_USE_CPU=true"] if on_cpu else []), *launch, "--multi_gpu", "--num_processes",
                  str(processes)]  # fmt: skip
    return shlex.join([*launch, name, *argv])


def _read_recipe(path: Path, classes: list[type]) -> tuple[dict[str, Any], list[str]]:
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
    """A YAML value as the type of its flag: 1e-3 is a string to YAML, 1 an int where a float is meant."""
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
    """A dataclass with the config's own fields, all optional, and their explanations from its docstring."""
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
            fields.append((entry.name, kind | None, (_switch if kind is bool else flag)(None, help)))
    if "num_labels" in helps:
        fields.append(("num_labels", int | None, flag(None, helps["num_labels"] + " (default: 0)")))
    return dataclasses.make_dataclass("ModelArguments", fields, namespace={"_argument_group_name": "model"})


def _field_names(cls: Any) -> set[str]:
    return {entry.name for entry in dataclasses.fields(cls)}


def _flag_type(kind: Any) -> Any:
    """The type of a config field's flag: the widest of its alternatives; None for what no flag can express."""
    options = set(typing.get_args(kind)) or {kind}
    for candidate in (list[int], float, int, str, bool):
        if candidate in options:
            return candidate
    return None


def _argument_helps(docstring: str) -> dict[str, str]:
    """Name -> explanation of the `Args:` section of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, flags=re.DOTALL | re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+)(?: \(.*?\))?: (.*?)(?=^ {4}\w|\Z)", section[1], flags=re.DOTALL | re.MULTILINE)
    # argparse reads "%" as the start of a format.
    return {name: " ".join(text.split()).replace("%", "%%") for name, text in entries}
