"""The rules of the house, read from the source: what may import what, and no pickle anywhere.

A model file travels to the Hub alone, so it stands on torch and transformers alone. Imports run one way: models <- the
rest of hfgen <- training.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports


ROOT = Path(__file__).resolve().parents[1]
MODEL_FILES = sorted((ROOT / "hfgen" / "models").glob("modeling_*.py"))
HFGEN_FILES = sorted((ROOT / "hfgen").rglob("*.py"))
TRAINING_FILES = sorted((ROOT / "training").rglob("*.py"))

# transformers itself requires huggingface_hub, so that it is there wherever a model is loaded.
MODEL_REQUIREMENTS = {"torch", "transformers", "huggingface_hub"}
PICKLING_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# accelerate's save_state pickles the optimizer, the scheduler and random states.
PICKLING_CALLS = {"torch.save", "torch.load", "accelerator.save_state", "accelerator.load_state"}
PICKLING_NAMES = {"read_pickle", "to_pickle", "allow_pickle"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Full names of all modules that are imported anywhere in a file: in functions and under TYPE_CHECKING too.
    `from a import b` gives "a" and "a.b", as b may be a module; a relative import gives its dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


def packages(tree: ast.Module) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(tree)}


def pickling(tree: ast.Module) -> list[str]:
    """Every place in a file that pickles or would unpickle."""
    found = [module for module in imported_modules(tree) if module.split(".")[0] in PICKLING_MODULES]
    found += [module for module in imported_modules(tree) if module in PICKLING_CALLS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).removeprefix("self.")
            if name in PICKLING_CALLS or name.rpartition(".")[2] in PICKLING_NAMES:
                found.append(f"line {node.lineno}: {name}")
            found += [f"line {node.lineno}: {word.arg}" for word in node.keywords if word.arg in PICKLING_NAMES]
    return found


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


each_model_file = pytest.mark.parametrize("path", MODEL_FILES, ids=names(MODEL_FILES))
each_file_of_hfgen = pytest.mark.parametrize("path", HFGEN_FILES, ids=names(HFGEN_FILES))
each_file = pytest.mark.parametrize("path", HFGEN_FILES + TRAINING_FILES, ids=names(HFGEN_FILES + TRAINING_FILES))


def test_there_is_one_file_an_architecture() -> None:
    found = {path.stem.removeprefix("modeling_") for path in MODEL_FILES}

    assert found >= {"autoencoder", "gan", "gpt", "vae"}
    assert {path.name for path in (ROOT / "hfgen" / "models").glob("*.py")} - {"__init__.py"} == {
        path.name for path in MODEL_FILES
    }


@each_model_file
def test_a_model_file_needs_torch_and_transformers_alone(path: Path) -> None:
    assert packages(parse(path)) - set(sys.stdlib_module_names) <= MODEL_REQUIREMENTS


@each_model_file
def test_transformers_copies_a_model_file_without_any_other(path: Path) -> None:
    """By transformers' own reading, which also takes the word of a docstring's line that looks like an import."""
    assert get_relative_imports(path) == []
    assert set(get_imports(path)) - set(sys.stdlib_module_names) <= MODEL_REQUIREMENTS


@each_model_file
def test_a_model_file_does_not_postpone_annotations(path: Path) -> None:
    """With `from __future__ import annotations` the types of a config's fields are strings: remote loading breaks."""
    assert "__future__" not in packages(parse(path))


@each_file_of_hfgen
def test_nothing_in_hfgen_imports_training_or_tests(path: Path) -> None:
    assert packages(parse(path)).isdisjoint({"training", "tests", "setup"})


@each_file
def test_nothing_is_pickled(path: Path) -> None:
    assert pickling(parse(path)) == []


@each_file
def test_torchvision_is_never_needed(path: Path) -> None:
    assert "torchvision" not in packages(parse(path))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import dumps",
        "import torch\ntorch.save(x, 'f')",
        "from torch import load",
        "import importlib\nimportlib.import_module('dill')",
        "class A:\n    def f(self):\n        self.accelerator.save_state('f')",
        "import pandas\npandas.read_pickle('f')",
        "import numpy\nnumpy.load('f', allow_pickle=True)",
    ],
)
def test_the_check_for_pickle_finds_it(source: str) -> None:
    assert pickling(ast.parse(source)) != []


def test_the_check_of_imports_looks_into_functions_and_conditions() -> None:
    tree = ast.parse("if TYPE_CHECKING:\n    import a.b\ndef f():\n    from c import d\nfrom .e import g")

    assert packages(tree) == {"a", "c", ""}
    assert "c.d" in imported_modules(tree)
