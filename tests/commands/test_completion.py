"""`hfgen completion`: what may follow, and in real shells where there are any."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hfgen.cli import build_parser, main
from hfgen.commands.completions import SCRIPTS, candidates


ROOT = Path(__file__).resolve().parents[2]


def words(line: str) -> list[str]:
    """Completes a line after `hfgen `."""
    *before, begun = line.split(" ")
    return [candidate.word for candidate in candidates(build_parser(), [*before, begun])]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("re", ["recipes", "reconstruct"]),
        ("sample me/vae --te", ["--temperature"]),
        ("sample ", []),  # a file, or a repository
        ("sample --co", ["--count", "--columns"]),
        ("push x y --checkpoints ", ["none", "last", "all"]),
        ("push x y --checkpoints a", ["all"]),
        ("train ladder", ["ladder_vae"]),
        ("train gan ", ["gan-mnist"]),
        ("train gan gan-mnist --discriminator_l", ["--discriminator_learning_rate"]),
        ("train gan gan-mnist --mixed_precision ", ["auto", "no", "bf16", "fp16"]),
        ("train gan gan-mnist ", []),
        ("recipes gp", ["gpt"]),
        ("doctor gan", ["gan-mnist"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("nothing ", []),
        ("train nothing ", []),
    ],
)
def test_what_may_follow(line: str, expected: list[str]) -> None:
    assert words(line) == expected


def test_a_flag_is_offered_with_its_help() -> None:
    (found,) = candidates(build_parser(), ["sample", "--see"])
    assert found == ("--seed", "random seed (default: 0)")


def test_each_shell_gets_its_script(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SCRIPTS:
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == SCRIPTS[shell]


def in_shell(shell: str, program: str, tmp_path: Path) -> list[str]:
    """What a shell prints, in which `hfgen` is the one that is tested."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = tmp_path / "hfgen"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m hfgen "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run([shell, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


BASH = """
eval "$(hfgen completion bash)"
complete -p hfgen
COMP_WORDS=(hfgen train gan --discriminator_l) COMP_CWORD=3
_hfgen && printf '%s\\n' "${COMPREPLY[@]}"
COMP_WORDS=(hfgen push x y --checkpoints '') COMP_CWORD=5
_hfgen && printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compdef() { echo "compdef $*" }
_describe() { print -l -- "${(@)found}" }
_files() { echo files }
eval "$(hfgen completion zsh)"
words=(hfgen sample --see) CURRENT=3
_hfgen
words=(hfgen sample '') CURRENT=3
_hfgen
"""
FISH = "hfgen completion fish | source\ncomplete -C 'hfgen reco'\ncomplete -C 'hfgen completion z'"


def test_in_bash(tmp_path: Path) -> None:
    first, *found = in_shell("bash", BASH, tmp_path)
    assert first.startswith("complete") and first.endswith("-F _hfgen hfgen")
    assert found == ["--discriminator_learning_rate", "none", "last", "all"]


def test_in_zsh(tmp_path: Path) -> None:
    found = in_shell("zsh", ZSH, tmp_path)
    assert found == ["compdef _hfgen hfgen", "--seed:random seed (default: 0)", "files"]


def test_in_fish(tmp_path: Path) -> None:
    found = in_shell("fish", FISH, tmp_path)
    assert found == ["reconstruct\tencode images and decode them again", "zsh"]
