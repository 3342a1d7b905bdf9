"""`hfgen train`: starts a training script by accelerate's launcher.

hfgen train vae --output_dir vae-digits
hfgen train vae vae-binarized-mnist --num_processes 2

Flags of `accelerate launch` go to the launcher by their names; the user's own accelerate config applies. Everything
else goes to the script. A recipe that comes with hfgen is found by its name.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path


# Known to the launcher and to the scripts. The launcher's accumulation is one of DeepSpeed, which hfgen does not use.
FOR_BOTH, FOR_THE_SCRIPT = {"--mixed_precision"}, {"--gradient_accumulation_steps"}


def train(family: str, words: list[str]) -> int:
    """Runs a training to its end.

    Args:
        family: such as "vae".
        words: the rest of the command line.

    Returns:
        the exit status: 0, or 1 if the script failed, which has then printed the reason.

    Raises:
        ValueError: the training extra is not installed, or there is no such recipe.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError("hfgen train needs accelerate, which is not installed. Run: pip install 'hfgen[training]'")
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    package, home = _find_training()
    script = ["-m", f"{package}.train_{family}"] if package else [str(home / f"train_{family}.py")]
    if words and not words[0].startswith("-"):
        words = [str(_find_recipe(words[0], family, home)), *words[1:]]
    parser = launch_command_parser()
    for_launcher, for_script = split_flags(words, parser)
    # What the script calls the command that repeats or resumes the run.
    os.environ["HFGEN_COMMAND"] = shlex.join(["hfgen", "train", family, *_without(for_launcher, FOR_BOTH)])
    if "-h" in for_script or "--help" in for_script:
        return subprocess.run([sys.executable, *script, "--help"]).returncode
    # The script's own paragraph says what went wrong; the launcher would print its own traceback below it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Nor does a user of hfgen need to know which of the launcher's flags had defaults.
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    previous = signal.signal(signal.SIGINT, _leave_to_the_script)
    try:
        launch_command(parser.parse_args([*for_launcher, *script, *for_script]))
    except (subprocess.CalledProcessError, ChildFailedError, SignalException):
        return 1
    finally:
        signal.signal(signal.SIGINT, previous)
    return 0


def split_flags(words: list[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Splits a command line into the launcher's flags, by its own parser, and everything else."""
    for_launcher: list[str] = []
    for_script: list[str] = []
    position = 0
    while position < len(words):
        name, _, value = words[position].partition("=")
        action = parser._option_string_actions.get(name) if name.startswith("--") else None
        is_launchers = action is not None and name not in FOR_THE_SCRIPT | {"--help"}
        takes_value = is_launchers and action is not None and action.nargs != 0 and not value
        flag = words[position : position + 1 + takes_value]
        position += len(flag)
        # --mixed_precision auto is a value of hfgen alone.
        is_valid = action is None or not action.choices or (value or flag[-1]) in action.choices
        if is_launchers and not (name in FOR_BOTH and not is_valid):
            for_launcher += flag
        if not is_launchers or name in FOR_BOTH:
            for_script += flag
    return for_launcher, for_script


def _without(flags: list[str], names: set[str]) -> list[str]:
    """Leaves out flags of these names with their values: the script repeats them itself."""
    left_out = {i + offset for i, word in enumerate(flags) if word in names for offset in (0, 1)}
    return [word for i, word in enumerate(flags) if i not in left_out and word.partition("=")[0] not in names]


def _find_training() -> tuple[str | None, Path]:
    """Returns the name of the package with the training scripts, None if there are only files, and its folder."""
    found = importlib.util.find_spec("hfgen.training")
    if found is not None and found.submodule_search_locations:
        return "hfgen.training", Path(next(iter(found.submodule_search_locations)))
    return None, Path(__file__).resolve().parents[1] / "training"


def _find_recipe(name: str, family: str, home: Path) -> Path:
    """Returns the path of a recipe: a file, or one that comes with hfgen."""
    known = {path.stem: path for path in sorted((home / "recipes").glob(f"{family}-*.yaml"))}
    if not Path(name).is_file() and name not in known:
        names = ", ".join(known) or "none"
        raise ValueError(f"recipe must be a file or one of {names}, got {name}. Give it before all flags.")
    return Path(name) if Path(name).is_file() else known[name]


def _leave_to_the_script(*_: object) -> None:
    """Ctrl-C reaches the script as well, which saves and ends; the launcher waits for it."""
