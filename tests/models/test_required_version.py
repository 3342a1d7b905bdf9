"""A published model opened with a transformers that is too old says so, and says what to do."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hfgen.model_folder import code_files


ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "hfgen" / "models"
FAMILIES = ("autoencoder", "codec", "gan", "gpt", "ladder_vae", "vae")
OPENS_EACH = """
import importlib, sys

for name in sys.argv[1:]:
    try:
        importlib.import_module(f"code_of_models.{name}")
        print("loaded")
    except ImportError as error:
        print(error)
"""


def messages(version: str, tmp_path: Path) -> list[str]:
    """What each model file says, one line each, beside a transformers of this version that holds nothing else."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    files = shutil.copytree(MODELS, tmp_path / "code_of_models")
    (files / "__init__.py").write_text("")
    (tmp_path / "opens_each.py").write_text(OPENS_EACH)
    command = [sys.executable, "opens_each.py", *(f"modeling_{family}" for family in FAMILIES)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_an_older_transformers_is_refused_in_one_sentence(tmp_path: Path) -> None:
    expected = (
        'This model needs transformers 5.18 or newer, found 4.57.0. Run: pip install --upgrade "transformers>=5.18,<6"'
    )
    assert messages("4.57.0", tmp_path) == [expected] * len(FAMILIES)


@pytest.mark.parametrize("version", ["5.18.0", "5.100.0.dev0", "6.0.0rc1"])
def test_newer_versions_pass_the_check(version: str, tmp_path: Path) -> None:
    """What they complain about here is that the stand-in for transformers is empty."""
    found = messages(version, tmp_path)
    assert len(found) == len(FAMILIES) and not any("needs transformers" in message for message in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_card_and_package_name_the_same_version(family: str) -> None:
    sources = [path.read_text(encoding="utf-8") for path in code_files(MODELS / f"modeling_{family}.py")]
    (needed,) = (version for source in sources for version in re.findall(r'"transformers>=(\d+\.\d+),<6"', source))
    assert f'"transformers>={needed},<6"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    card = (ROOT / "model_cards" / f"template_{family}.md").read_text(encoding="utf-8")
    assert f"`transformers` {needed} or newer" in card
