"""Would this folder load? Checks a model's files without running its code or reading its numbers.

    check_folder("vae-mnist")       raises LoadError: what is wrong and what to do

This closes two gaps that transformers leaves: it reads pickled weights where there are no others, and it fills weights
that a repository lacks with random numbers, reported only in the log.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_imports

from .models import MODELS
from .pipelines.repository_files import INDEX as DIFFUSERS_INDEX
from .pipelines.repository_files import NAMES as DIFFUSERS_FILES


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".npy", ".npz", ".joblib")
# An error names this many tensors and counts the rest.
_LISTED = 5


class LoadError(ValueError):
    """A model cannot be loaded, or not safely; the message says why and what to do."""


def check_folder(folder: str | Path, model_type: str | None = None) -> None:
    """Checks that a folder holds a whole model: config, code, and weights that fit.

    For hfgen's own architectures, the names and shapes of the weights are compared with those the config asks for.

    Args:
        folder: a model's folder.
        model_type: the type of model it must hold; any type if None.

    Raises:
        LoadError: names the first thing that is wrong.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", "It says which model this is.")
    found = config.get("model_type")
    if model_type is not None and found != model_type:
        raise LoadError(f"The model_type of {folder} must be {model_type!r}, got {found!r}. Name another model.")
    _check_code(folder, config)
    _check_pipelines(folder, config)
    shapes = read_shapes(folder)
    model_class = _find_class(folder, config)
    if model_class is not None:
        _compare(folder, shapes, *_expected_shapes(folder, model_class, config))


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, from the headers of a folder's safetensors files.

    Raises:
        LoadError: there are none, only pickled ones, or one is missing or damaged.
    """
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        placed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise LoadError(f"{folder / INDEX} is damaged: it has no weight_map. Download the model again.")
        files = sorted(set(placed.values()))
    elif (folder / WEIGHTS).is_file():
        placed, files = None, [WEIGHTS]
    else:
        raise LoadError(explain_missing_weights(str(folder), [path.name for path in folder.iterdir()]))
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in files:
        if Path(file).name != file or not (folder / file).is_file():
            raise LoadError(f"{folder / file} is missing, although {INDEX} lists it. Download the model again.")
        found |= {name: (file, shape) for name, shape in _read_header(folder / file).items()}
    for name, file in (placed or {}).items():
        if found.get(name, ("", ()))[0] != file:
            raise LoadError(f"{folder / file} lacks {name!r}, which {INDEX} places there. Download the model again.")
    return {name: shape for name, (_, shape) in found.items()}


def explain_missing_weights(where: str, names: list[str]) -> str:
    """Explains why a folder or repository with these files, none of them safetensors, is refused."""
    pickled = sorted(name for name in names if name.endswith(PICKLED_SUFFIXES))
    if pickled:
        return (
            f"{where} holds weights only in {', '.join(pickled[:_LISTED])}. Such files are or may be pickles, and "
            "reading a pickle can run any code its author put in, so hfgen never does. Ask the author for "
            "safetensors; if you trust the file, convert it on a machine that holds nothing of value."
        )
    return f"{where} holds no weights: it must have {WEIGHTS}, or {INDEX} and the files it lists."


def code_files(file: Path) -> list[Path]:
    """A model's file and those beside it that it imports from, directly or not. Some may be missing.

    transformers copies them together, and needs all of them to load a model.
    """
    files = [file]
    for path in files:  # which grows
        files += [other for other in _imported_beside(path) if other not in files]
    return files


def code_of_model(folder: Path) -> list[Path]:
    """The code files that the config.json of a folder names, and those that they import from. Some may be missing."""
    references = [str(reference) for reference in _auto_map(read_json(folder / "config.json")).values()]
    named = {reference.partition(".")[0] for reference in references if "--" not in reference}
    return sorted({path for name in named for path in code_files(folder / f"{name}.py")})


def _auto_map(config: dict[str, Any]) -> dict[str, Any]:
    found = config.get("auto_map")
    return found if isinstance(found, dict) else {}


def _imported_beside(path: Path) -> list[Path]:
    try:
        names = get_relative_imports(path)
    except (OSError, UnicodeDecodeError):  # missing or damaged
        return []
    return [path.with_name(f"{name}.py") for name in sorted(names) if name.isidentifier()]


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint or sample: 500 for step-000500 and step-000500-traversal.png, else -1."""
    digits = path.stem.removeprefix("step-").partition("-")[0]
    return int(digits) if digits.isdigit() else -1


def read_json(path: Path, if_missing: str = "Download the model again.") -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: of the file.
        if_missing: what to add to the error if there is no such file.

    Raises:
        LoadError: the file is missing, damaged, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{path} is missing. {if_missing}") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} is damaged: {error}. Restore it or download it again.") from None
    if not isinstance(content, dict):
        raise LoadError(f"{path} must hold a JSON object, got {type(content).__name__}. Restore it.")
    return content


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as content:
            return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise LoadError(
            f"{path} is damaged or incomplete ({path.stat().st_size:,} bytes): {error}. Download it again, or "
            "push the folder again from where it was trained."
        ) from None


def _check_code(folder: Path, config: dict[str, Any]) -> None:
    """Checks that the code files config.json names are there, and those that they import from."""
    for name, reference in _auto_map(config).items():
        if "--" in str(reference):
            continue
        file = folder / f"{str(reference).partition('.')[0]}.py"
        missing = next((path for path in code_files(file) if not path.is_file()), None)
        if missing is not None:
            names = f"config.json (auto_map, {name}) names it as" if missing == file else f"{file.name} needs it for"
            raise LoadError(
                f"{missing} is missing, although {names} the model's code. Save the model again with hfgen's own "
                "class, whose save_pretrained writes it."
            )


def _check_pipelines(folder: Path, config: dict[str, Any]) -> None:
    """Checks that the code of the pipelines is there that config.json names, for transformers, and model_index.json,
    for diffusers, if the model itself is the pipeline's."""
    pipelines = config.get("custom_pipelines")
    for task, entry in (pipelines if isinstance(pipelines, dict) else {}).items():
        reference = str(entry.get("impl", "")) if isinstance(entry, dict) else ""
        file = f"{reference.partition('.')[0]}.py"
        if "--" not in reference and not (folder / file).is_file():
            raise LoadError(
                f"{folder / file} is missing, although config.json (custom_pipelines, {task}) names it. Save the "
                "model again with hfgen's own class, whose save_pretrained writes it."
            )
    if (folder / DIFFUSERS_INDEX).is_file() and "model" in read_json(folder / DIFFUSERS_INDEX):
        missing = next((name for name in DIFFUSERS_FILES if not (folder / name).is_file()), None)
        if missing is not None:
            raise LoadError(
                f"{folder / missing} is missing, although {DIFFUSERS_INDEX} needs it. Delete {DIFFUSERS_INDEX}; "
                "hfgen push adds all of these files."
            )


def _find_class(folder: Path, config: dict[str, Any]) -> Any:
    """hfgen's class for a config; None if the model is not one of hfgen's."""
    model_type = str(config.get("model_type"))
    architectures = config.get("architectures") or []
    if not model_type.startswith("hfgen_"):
        return None
    if model_type not in MODELS:
        raise LoadError(
            f"{folder} holds a model of type {model_type!r}, which this version of hfgen does not know; it knows "
            f"{', '.join(sorted(MODELS))}. A newer hfgen may; without one, AutoModel.from_pretrained(..., "
            "trust_remote_code=True) runs the code that comes with the model, if you trust its author."
        )
    architecture = MODELS[model_type]
    if not architectures:
        return architecture.base_model_class
    if architectures[0] not in architecture.model_classes:
        raise LoadError(
            f"{folder / 'config.json'} contradicts itself: for model_type {model_type!r}, the architecture must be "
            f"one of {', '.join(sorted(architecture.model_classes))}, got {architectures[0]!r}. Correct one of them."
        )
    return architecture.model_classes[architectures[0]]


def _expected_shapes(
    folder: Path, model_class: Any, config: dict[str, Any]
) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """The shapes that the config asks for, by name, and the names that may be absent: those that are tied, and those
    that the model can do without, because an older version of it did not have them."""
    import torch
    from huggingface_hub.errors import StrictDataclassError

    try:
        with torch.device("meta"):
            model = model_class(model_class.config_class.from_dict(config))
    except (StrictDataclassError, ValueError, TypeError, RuntimeError) as error:
        raise LoadError(f"{folder / 'config.json'} cannot be used: {error.__cause__ or error}") from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    optional = set(getattr(model, "all_tied_weights_keys", None) or {})
    for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ():
        optional |= {name for name in expected if re.search(pattern, name)}
    return expected, optional


def _compare(
    folder: Path, shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], optional: set[str]
) -> None:
    missing = sorted(set(expected) - set(shapes) - optional)
    unknown = sorted(set(shapes) - set(expected))
    differing = sorted(name for name in set(shapes) & set(expected) if shapes[name] != expected[name])
    parts = []
    if differing:
        found = [f"{name} must be {expected[name]}, got {shapes[name]}" for name in differing]
        parts.append(_listed(found, "of other shapes"))
    if missing:
        parts.append(f"the weights lack {_listed(missing, 'tensors')}")
    if unknown:
        parts.append(f"the model has no place for {_listed(unknown, 'tensors')}")
    if parts:
        raise LoadError(
            f"The config and the weights in {folder} do not belong together: {'; '.join(parts)}. One of the two files "
            "is from another model, or from another version of this one."
        )


def _listed(items: list[str], kind: str) -> str:
    more = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {more} more {kind}" if more > 0 else "")
