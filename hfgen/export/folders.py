"""A model's folder to a folder of ONNX files, in the layout that transformers.js looks for.

export_folder(fetch_model("me/vae-mnist"), "vae-mnist-onnx", name="me/vae-mnist")

README.md  config.json  preprocessor_config.json (images)  tokenizer files, generation_config.json (text)
onnx/export.json  onnx/NAME.onnx (fp32)  onnx/NAME_quantized.onnx (int8)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..cards import is_hub_id
from ..model_folder import read_json
from ..models import MODELS
from .card import render_card
from .checks import check, compare
from .graphs import ExportError, Graph
from .image_graphs import image_graphs
from .manifest import FORMAT, MANIFEST, describe_graph, describe_images, describe_versions
from .onnx_files import quantize, require_onnx, write_graph


# By the name that transformers.js knows a type of weights by, what it appends to a file's name.
SUFFIXES = {"fp32": "", "int8": "_quantized"}
_COPIED = ("preprocessor_config.json",)


def export_folder(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dtypes: Sequence[str] = tuple(SUFFIXES),
    name: str | None = None,
) -> dict[str, Any]:
    """Writes every network of a model as a file of ONNX, compared with PyTorch, and what is needed to use them.

    Args:
        source: a checked folder of a model. No code in it is run.
        target: a new or empty folder, which appears only once everything is there.
        dtypes: of the weights: "fp32", "int8" or both. A file with weights of 8 bits is beside the one in full
            precision that it was made from, if that is asked for, too.
        name: what the model is called: a repository on the Hub, or a folder, which is the default.

    Returns:
        What is in onnx/export.json.

    Raises:
        ExportError: a package is missing, the model cannot be exported, or a file in full precision differs from
            PyTorch.
        ValueError: the target is not empty, or a dtype is unknown.
    """
    source, target = Path(source), Path(target)
    if unknown := [dtype for dtype in dtypes if dtype not in SUFFIXES] or not dtypes:
        raise ValueError(f"dtypes must be some of {', '.join(SUFFIXES)}, got {unknown or 'none'}.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"OUT must be a new or empty folder, got {str(target)!r}, which is not. Name another one.")
    require_onnx()
    staging = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "onnx").mkdir(parents=True)
    try:
        manifest = _fill(staging, source, dtypes, name or source.resolve().name, target.resolve().name)
        if target.is_dir():
            target.rmdir()
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _fill(folder: Path, source: Path, dtypes: Sequence[str], name: str, new_name: str) -> dict[str, Any]:
    config = read_json(source / "config.json")
    model_type = config.get("model_type", "")
    if model_type not in MODELS:
        raise ExportError(f"The model_type of {name} must be one of {', '.join(MODELS)}, got {model_type!r}.")
    model_class: Any = MODELS[model_type].base_model_class
    model = model_class.from_pretrained(source, dtype=torch.float32).eval().requires_grad_(False)
    graphs = image_graphs(model)
    described, opset = {}, 0
    for graph in graphs:
        described[graph.name], opset = _write(folder, graph, dtypes)
    manifest = {
        "format": FORMAT,
        "family": MODELS[model_type].family,
        "title": MODELS[model_type].title,
        "model_type": model_type,
        "name": new_name,
        "base_model": name if is_hub_id(name) else None,
        "opset": opset,
        "versions": describe_versions(),
        **describe_images(model, graphs),
        "graphs": described,
    }
    for file in _COPIED:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    _write_json(folder / "config.json", _config_without_code(config, dtypes))
    _write_json(folder / MANIFEST, manifest)
    (folder / "README.md").write_text(render_card(manifest, source), encoding="utf-8")
    return manifest


def _write(folder: Path, graph: Graph, dtypes: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Writes the files of a graph; returns its entry in the manifest, and its opset."""
    entry = describe_graph(graph)
    full = folder / "onnx" / f"{graph.name}.onnx"
    opset = write_graph(graph, full)
    differences = compare(full, graph)
    check(full, differences)
    for dtype in SUFFIXES:
        path = full.with_name(f"{graph.name}{SUFFIXES[dtype]}.onnx")
        if dtype not in dtypes:
            continue
        if dtype == "int8":
            quantize(full, path)
            differences = compare(path, graph)
        entry["files"][dtype] = {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "max_difference": {name: difference.largest for name, difference in differences.items()},
            "mean_difference": {name: difference.mean for name, difference in differences.items()},
        }
    if "fp32" not in dtypes:
        full.unlink()
    return entry, opset


def _config_without_code(config: dict[str, Any], dtypes: Sequence[str]) -> dict[str, Any]:
    """The model's config.json, which names no code, as there is none beside it, and says what transformers.js is to
    load where its own choice is not there."""
    config = {name: value for name, value in config.items() if name != "auto_map"}
    if len(dtypes) == 1:
        js_name = {"fp32": "fp32", "int8": "q8"}[dtypes[0]]
        config["transformers.js_config"] = {"dtype": js_name}
    return config


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
