"""Model files stand alone, so they repeat each other; code of one name is identical in all of them."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest


MODEL_FILES = sorted((Path(__file__).resolve().parents[2] / "hfgen" / "models").glob("modeling_*.py"))
SHARED_FUNCTIONS = {
    "_at_least_float32",
    "_evaluates_without_labels",
    "_plain",
    "_takes_plain_values",
    "_to_class_indices",
}
# Members of classes whose copies are the same thing; others of one name, as `forward`, are each family's own.
SHARED_MEMBERS = {
    "to_diff_dict",
    "downsampling",
    "latent_shape",
    "_check_images",
    "_check_range",
    "_class_indices",
}


def copies() -> dict[str, dict[str, str]]:
    """Name -> file -> source, of functions and shared members that several model files have."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in MODEL_FILES:
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            members = node.body if isinstance(node, ast.ClassDef) else []
            shared = [entry for entry in members if getattr(entry, "name", "") in SHARED_MEMBERS]
            for entry in [*([node] if isinstance(node, ast.FunctionDef) else []), *shared]:
                found[entry.name][path.name] = str(ast.get_source_segment(source, entry))
    return {name: sources for name, sources in found.items() if len(sources) > 1}


def test_the_check_finds_the_copies() -> None:
    assert copies().keys() == SHARED_FUNCTIONS | SHARED_MEMBERS


@pytest.mark.parametrize("name", copies())
def test_copies_in_several_model_files_are_identical(name: str) -> None:
    assert len(set(copies()[name].values())) == 1, f"{name} differs between {', '.join(copies()[name])}"
