"""A training script under accelerate's launcher: what `hfgen train FAMILY [recipe] [--flag value ...]` does.

    train("vae", ["vae-binarized-mnist", "--num_processes", "2", "--max_train_steps", "100"])

The launcher runs in this process with the user's own accelerate configuration. It gets the flags it knows by name
(`--num_processes`, `--use_fsdp`, ...), and the script gets all others.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from .installation import find_training, import_training


# Flags that both the launcher and the scripts have: both get them.
SHARED_FLAGS = {"mixed_precision", "gradient_accumulation_steps"}
# Flags of the launcher that are decided here, or mean something else to the script.
_NOT_PASSED = {"help", "module", "no_python"}


def train(family: str, words: Sequence[str]) -> int:
    """Trains a model; returns the exit status.

    Args:
        family: of the architecture, as in `MODELS`.
        words: the rest of the command line: a recipe, by its name or path, and flags.

    Raises:
        ValueError: accelerate is not installed, there is no such recipe, or the launcher refused its flags.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError("accelerate must be installed to train. Run: pip install 'hfgen[training]'")
    home, start = find_script(family)
    if words and not words[0].startswith("-"):
        words = [find_recipe(words[0], family, home / "recipes"), *words[1:]]
    os.environ["HFGEN_COMMAND"] = shlex.join(["hfgen", "train", family])
    try:
        check_flags(family, words)
    except SystemExit as wrong:
        if isinstance(wrong.code, str):
            print(wrong.code, file=sys.stderr)
            return 1
        return wrong.code or 0
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    parser.error = _raise_error  # its own prints pages of usage
    for_launcher, shared, for_script = split_flags(words, parser)
    if "--module" in start:
        # Otherwise `python -m` looks in the current folder first, which may hold an hfgen without hfgen.training.
        os.environ["PYTHONSAFEPATH"] = "1"
    # The script names this command in its help, and where it says how to repeat or resume the run.
    os.environ["HFGEN_COMMAND"] = shlex.join(["hfgen", "train", family, *for_launcher])
    arguments = parser.parse_args([*for_launcher, *shared, *start, *for_script])
    _use_several_cpu_processes(arguments)
    with tempfile.TemporaryDirectory(prefix="hfgen-") as folder:
        # There, the processes agree which of them reports an error that all of them have.
        os.environ["HFGEN_REPORTS"] = folder
        return _launch(arguments)


def check_flags(family: str, words: Sequence[str]) -> None:
    """Reports wrong flags before torch, transformers and accelerate are imported, which takes seconds.

    Args:
        family: of the architecture.
        words: as in [`train`].

    Raises:
        SystemExit: flags of the script are wrong, or --help was among them; as the script itself would say it.
    """
    parser = import_training("config.parser")
    scripts = import_training("config.scripts")
    spec = importlib.util.find_spec("accelerate")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "commands" / "launch.py").read_text(encoding="utf-8")
    of_launcher = set(re.findall(r'"(--[a-z][\w-]*)"', source)) - {f"--{name}" for name in SHARED_FLAGS | _NOT_PASSED}
    checked: list[str] = []
    is_of_launcher = False
    for word in words:
        if word.startswith("--"):
            is_of_launcher = word.partition("=")[0] in of_launcher
        if not is_of_launcher:
            checked.append(word)
    parser.parse(scripts.SCRIPTS[family], checked)


def split_flags(words: Sequence[str], parser: ArgumentParser) -> tuple[list[str], list[str], list[str]]:
    """Splits a command line.

    Returns:
        What only the launcher gets, what it gets as well, and all that the script gets.
    """
    actions = {name: action for action in parser._actions for name in action.option_strings if name[:2] == "--"}
    for_launcher: list[str] = []
    shared: list[str] = []
    for_script: list[str] = []
    words = list(words)
    while words:
        flag, has_value, value = words[0].partition("=")
        action = actions.get(flag)
        if action is None or action.dest in _NOT_PASSED:
            for_script.append(words.pop(0))
            continue
        count = 1 if action.nargs == 0 or has_value else 2
        taken, words = words[:count], words[count:]
        if action.dest not in SHARED_FLAGS:
            for_launcher += taken
            continue
        for_script += taken
        # The script's --mixed_precision also takes "auto", which the launcher does not know.
        if action.choices is None or (value or taken[-1]) in action.choices:
            shared += taken
    return for_launcher, shared, for_script


def find_script(family: str) -> tuple[Path, list[str]]:
    """The folder of the training scripts, and how the launcher starts one: as an installed module or as a file."""
    home, package = find_training()
    if package == "hfgen.training":
        return home, ["--module", f"{package}.train_{family}"]
    return home, [str(home / f"train_{family}.py")]


def find_recipe(name_or_path: str, family: str, folder: Path) -> str:
    """The path of a recipe: a file, or the name of one that comes with hfgen.

    Raises:
        ValueError: there is no such recipe; lists those of the family.
    """
    if Path(name_or_path).is_file():
        return name_or_path
    first_words = family.replace("_", "-")  # as in the names of repositories
    recipes = {path.stem: path for path in sorted(folder.glob(f"{first_words}-*.yaml"))}
    path = recipes.get(name_or_path.removesuffix(".yaml"))
    if path is None:
        raise ValueError(
            f"The recipe must be a file or one of {', '.join(recipes)}, got {name_or_path!r}. Check its name, or "
            "leave it out to train with the defaults."
        )
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _raise_error(message: str) -> NoReturn:
    raise ValueError(f"The launcher refused its flags: {message}. See `accelerate launch --help`.")


def _use_several_cpu_processes(arguments: Namespace) -> None:
    """accelerate starts a single process on a machine without accelerators, whatever --num_processes says."""
    import torch

    if (arguments.num_processes or 1) < 2 or arguments.mpirun_hostfile is not None:
        return
    if arguments.cpu or not torch.accelerator.is_available():
        arguments.cpu = False
        arguments.multi_gpu = not arguments.use_fsdp
        os.environ["ACCELERATE_USE_CPU"] = "true"


def _launch(arguments: Namespace) -> int:
    """Runs accelerate's launcher and returns the exit status. Its exceptions are not shown: a script that fails has
    already reported why."""
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # "The following values were not passed to `accelerate launch`": its defaults are meant.
    logging.getLogger(launch.__name__).setLevel(logging.ERROR)
    # The report on a failed process repeats what the process has printed.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # torch's launcher would repeat Ctrl-C, which a terminal sends to all processes; the second one ends them at once.
    arguments.signals_to_handle = "SIGTERM,SIGHUP,SIGQUIT"
    try:
        with (
            mock.patch.object(launch, "simple_launcher", _run_one_process),
            _on_signals([signal.SIGINT], lambda: os.kill(os.getpid(), signal.SIGTERM)),
        ):
            launch.launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return _exit_status(error.returncode)
    except ChildFailedError as error:
        return _exit_status(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


def _run_one_process(arguments: Namespace) -> None:
    """Replaces accelerate's `simple_launcher`, which starts a second Python that repeats all imports, and which a
    signal kills before the training has stopped."""
    import torch
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(arguments)
    words = [arguments.training_script, *arguments.training_script_args]
    wait: Callable[[], int | None]
    # A process that has asked for a GPU cannot be forked.
    if "fork" in multiprocessing.get_all_start_methods() and not torch.accelerator.is_available():
        context = multiprocessing.get_context("fork")
        forked = context.Process(target=_run_script, args=(words, arguments.module, environment))
        forked.start()

        def wait_for_fork() -> int | None:
            forked.join()
            return forked.exitcode

        terminate, wait = forked.terminate, wait_for_fork
    else:
        process = subprocess.Popen(command, env=environment)
        terminate, wait = process.terminate, process.wait
    # SIGTERM, not SIGINT: a terminal has sent Ctrl-C to the training as well, and a second one would end it at once.
    with _on_signals([signal.SIGINT, signal.SIGTERM], terminate):
        status = wait()
    if status:
        raise subprocess.CalledProcessError(status, command)


def _run_script(words: list[str], is_module: bool, environment: dict[str, str]) -> None:
    """Runs a script in this process as `python SCRIPT` and `python -m MODULE` do."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    if is_module:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


def _exit_status(status: int) -> int:
    """The exit status for one of a process; reports the signal that killed it, which it could not report itself."""
    if status >= 0:
        return status
    name = signal.Signals(-status).name
    advice = " Memory may have run out: try a smaller --per_device_train_batch_size." if name == "SIGKILL" else ""
    print(f"hfgen train: the training was killed by {name}.{advice}", file=sys.stderr)
    return 128 - status


@contextmanager
def _on_signals(numbers: Sequence[signal.Signals], action: Callable[[], Any]) -> Iterator[None]:
    previous = {number: signal.signal(number, lambda *_: action()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
