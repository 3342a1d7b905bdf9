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

from ..cards import is_hub_id
from ..convert.native import NATIVE_TYPES
from ..model_folder import read_json
from ..models import MODELS
from ..models.modeling_gpt import GPTConfig
from ..new_folder import new_folder
from .card import render_card
from .checks import check, compare
from .graphs import ExportError, Graph
from .image_graphs import image_graphs, load_image_model
from .manifest import FORMAT, MANIFEST, describe_graph, describe_images, describe_versions
from .onnx_files import quantize, require_onnx, write_graph
from .text_graphs import check_writing
from .text_models import load_text_model


# By the name that transformers.js knows a type of weights by, what it appends to a file's name.
SUFFIXES = {"fp32": "", "int8": "_quantized"}
# What lies beside a model: how pixels and characters become numbers, and how text is drawn.
_COPIED = (
    "preprocessor_config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


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
    source = Path(source)
    if not dtypes or not set(dtypes) <= set(SUFFIXES):
        raise ValueError(f"dtypes must be some of {', '.join(SUFFIXES)}, got {', '.join(dtypes) or 'none'}.")
    require_onnx()
    with new_folder(target) as staging:
        (staging / "onnx").mkdir()
        manifest = _fill(staging, source, dtypes, name or source.resolve().name, staging.name)
    return manifest


def _fill(folder: Path, source: Path, dtypes: Sequence[str], name: str, new_name: str) -> dict[str, Any]:
    model_type = read_json(source / "config.json").get("model_type", "")
    is_text = model_type in (GPTConfig.model_type, *NATIVE_TYPES)
    if is_text:
        text = load_text_model(source)
        config, graphs, details = text.config, [text.graph], text.details
        family = MODELS[GPTConfig.model_type]
    elif model_type in MODELS:
        family = MODELS[model_type]
        model = load_image_model(source)
        config, graphs = read_json(source / "config.json"), image_graphs(model)
        details = describe_images(model, graphs)
    else:
        known = ", ".join([*MODELS, *NATIVE_TYPES])
        raise ExportError(f"The model_type of {name} must be one of {known}, got {model_type!r}. Name another model.")
    described, opset = {}, 0
    for graph in graphs:
        described[graph.name], opset = _write(folder, graph, dtypes)
    manifest = {
        "format": FORMAT,
        "family": family.family,
        "title": family.title,
        "model_type": config["model_type"],
        "name": new_name,
        "base_model": name if is_hub_id(name) else None,
        "opset": opset,
        "versions": describe_versions(),
        **details,
        "graphs": described,
    }
    for pattern in _COPIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    _write_json(folder / "config.json", _config_of_export(config, dtypes))
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
    if graph.writes_text:
        entry["tokens_compared"] = check_writing(full, graph)
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


def _config_of_export(config: dict[str, Any], dtypes: Sequence[str]) -> dict[str, Any]:
    """The model's config.json, which names no code, as there is none beside it, and says what transformers.js loads by
    default. Its own default would be 8 bits in many browsers, which saves little where models are small."""
    config = {name: value for name, value in config.items() if name != "auto_map"}
    return {**config, "transformers.js_config": {"dtype": "fp32" if "fp32" in dtypes else "q8"}}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
