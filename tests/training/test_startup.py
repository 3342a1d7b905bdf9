"""What a training imports before it knows its data: each of these packages takes longer than some steps do.

Read from the source, because packages that are installed beside hfgen may import them as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import FAMILIES, ROOT


# Used where a dataset is one, where a text does not fit in memory, and when a run is over.
HEAVY = {"datasets", "pyarrow", "pandas", "matplotlib", "sklearn", "scipy"}


def imported_at_once(module: str) -> set[str]:
    """The packages outside the project that an import of the module imports, through all modules of the project."""
    found, seen, waiting = set[str](), set[str](), [module]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if path is None:
            found.add(name.split(".")[0])
        elif name not in seen:
            seen.add(name)
            waiting += _imports(name, path)
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return found


def _path(module: str) -> Path | None:
    places = (ROOT / f"{module.replace('.', '/')}.py", ROOT / module.replace(".", "/") / "__init__.py")
    return next((place for place in places if place.is_file()), None)


def _imports(module: str, path: Path) -> Iterator[str]:
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in _run_on_import(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (full for alias in node.names if _path(full := f"{source}.{alias.name}"))


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """All that is below, but for functions and for what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not (is_for_types or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            yield child
            yield from _run_on_import(child)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_starts_without_what_only_some_trainings_need(family: str) -> None:
    found = imported_at_once(f"training.train_{family}")
    assert {"torch", "accelerate", "transformers"} <= found
    assert found & HEAVY == set()


def test_what_is_imported_is_found_through_other_modules_and_classes() -> None:
    assert HEAVY & imported_at_once("training.data.sources.cached_tables") == {"datasets", "pyarrow"}
    source = "class A:\n    import a\nif x:\n    import b\nif TYPE_CHECKING:\n    import c\ndef f():\n    import d"
    names = [node.names[0].name for node in _run_on_import(ast.parse(source)) if isinstance(node, ast.Import)]
    assert names == ["a", "b"]
