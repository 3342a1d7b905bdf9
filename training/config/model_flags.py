"""The fields of a model's config as flags, read from the source of the model's file.

Importing the file takes seconds, because it imports torch and transformers. Nothing is imported here, so that --help
and an error in the flags appear at once.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import typing
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any

from .flags import FROM_DATA, MEASURED, flag, switch


def model_arguments_class(family: str) -> type:
    """Returns a dataclass with the config's own fields, all optional, explained by the config's docstring."""
    path = _model_file(family)
    tree = _parse(path)
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Config"))
    helps = _argument_helps(cleandoc(ast.get_docstring(config, clean=False) or ""))
    names = _type_aliases(tree, path.parent)
    fields: list[tuple[str, Any, Any]] = []
    for node in config.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        name, kind = node.target.id, _flag_type(_type(node.annotation, names))
        if kind is not None and name not in MEASURED:
            default = "from the data" if name in FROM_DATA else ast.literal_eval(node.value) if node.value else None
            help = helps.get(name, name) + ("" if default is None else f" (default: {default})")
            # On a resume, the whole config is compared.
            fields.append((name, kind | None, (switch if kind is bool else flag)(None, help, on_resume="free")))
    if "num_labels" in helps:
        help = helps["num_labels"] + " (default: 0)"
        fields.append(("num_labels", int | None, flag(None, help, on_resume="free")))
    return dataclasses.make_dataclass("ModelArguments", fields, namespace={"_argument_group_name": "model"})


@cache
def _model_file(family: str) -> Path:
    package = importlib.util.find_spec("hfgen")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "models" / f"modeling_{family}.py"


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _type_aliases(tree: ast.Module, folder: Path) -> dict[str, Any]:
    """The types that the file or one that it imports from defines, as they are at runtime: in the `else` of
    `if TYPE_CHECKING`."""
    names: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= _type_aliases(_parse(folder / f"{node.module}.py"), folder)
    for branch in (node for node in tree.body if isinstance(node, ast.If)):
        for node in branch.orelse:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names[node.targets[0].id] = _type(node.value, names)
    return names


def _type(node: ast.expr, names: dict[str, Any]) -> Any:
    """The type that an annotation means: names, `a | b`, `list[a]` and None."""
    if isinstance(node, ast.BinOp):
        return _type(node.left, names) | _type(node.right, names)
    if isinstance(node, ast.Subscript):
        return _type(node.value, names)[_type(node.slice, names)]
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None)
    return names[ast.unparse(node)]


def _flag_type(kind: Any) -> Any:
    """Returns the type of a config field's flag: the widest of its alternatives; None for what no flag can express."""
    options = set(typing.get_args(kind)) or {kind}
    return next((candidate for candidate in (list[int], float, int, str, bool) if candidate in options), None)


def _argument_helps(docstring: str) -> dict[str, str]:
    """Returns name -> explanation of the `Args:` section of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, flags=re.DOTALL | re.MULTILINE)
    entries = r"^ {4}(\w+)(?: \(.*?\))?: (.*?)(?=^ {4}\w|\Z)"
    found = re.findall(entries, section[1], flags=re.DOTALL | re.MULTILINE) if section else []
    # argparse reads "%" as the start of a format.
    return {name: " ".join(text.split()).replace("%", "%%") for name, text in found}
