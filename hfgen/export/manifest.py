"""onnx/export.json: what a page or a program has to know of an export, without reading the graphs.

    format                  1, the version of this file
    family, title, model_type, name, base_model (on the Hub, or null), opset, versions
    graphs                  by name: purpose, inputs and outputs (name, dtype, shape with names for free dimensions),
                            and files by dtype ("fp32", "int8"): path, bytes, and by output max_difference and
                            mean_difference from PyTorch

Of images:

    image_size              [height, width]
    size_multiple           of a codec, which takes any height and width that it divides; null for the one size
    num_channels, pixel_range
    latent_shape            of one image
    latent_levels           of a Ladder VAE: start, stop and shape of each level in the vector, from the top down
    num_classes, class_names    0 and [] if there are none
    sampling                how to draw images, or null: standard normal noise of noise_shape, times a factor that is
                            called temperature or truncation, goes through these graphs one after the other
    anomaly_threshold       above it a score is an anomaly; null if there is none

Of a GPT:

    vocab_size, max_position_embeddings, num_layers, num_key_value_heads, head_dim
    transformers_js         whether transformers.js loads the folder; if not, transformers_js_obstacle says why
    tokens_compared         of the graph: how many tokens were written as PyTorch writes them, with the cache
"""

from __future__ import annotations

import importlib.metadata
import math
from typing import Any

from ..embedding import is_conditional
from ..models import MODELS
from .graphs import DTYPES, Graph, Input, Output
from .onnx_files import PACKAGES


FORMAT = 1
MANIFEST = "onnx/export.json"
_MADE_BY = ("torch", "transformers", *PACKAGES)
# The graphs that noise goes through.
_SAMPLING = ("prior_model", "generator_model", "decoder_model")


def describe_graph(graph: Graph) -> dict[str, Any]:
    """The entry of a graph, without files."""
    return {
        "purpose": graph.purpose,
        "inputs": [_describe(entry) for entry in graph.inputs],
        "outputs": [_describe(entry) for entry in graph.outputs],
        "files": {},
    }


def describe_versions() -> dict[str, str]:
    """Of the packages that have made the files."""
    return {package: importlib.metadata.version(package) for package in _MADE_BY}


def describe_images(model: Any, graphs: list[Graph]) -> dict[str, Any]:
    """What there is to know of a model of images."""
    config, names = model.config, [graph.name for graph in graphs]
    classes = list(config.id2label.values()) if is_conditional(config) else []
    entry = MODELS[config.model_type]
    latent_shape = list(getattr(config, "latent_shape", None) or [config.latent_dim])
    sampling = None
    if entry.samples == "images":
        sampling = {
            "noise_shape": latent_shape,
            "factor": entry.temperature,
            "graphs": [name for name in _SAMPLING if name in names],
        }
    description = {
        "image_size": list(config.image_size),
        "size_multiple": config.downsampling if model.takes_any_size else None,
        "num_channels": config.num_channels,
        "pixel_range": [0, 1],
        "latent_shape": latent_shape,
        "num_classes": len(classes),
        "class_names": classes,
        "sampling": sampling,
        "anomaly_threshold": getattr(config, "anomaly_threshold", None),
    }
    if hasattr(config, "level_shapes"):
        description["latent_levels"] = _describe_levels(config.level_shapes)
    return description


def _describe(entry: Input | Output) -> dict[str, Any]:
    return {"name": entry.name, "dtype": DTYPES[entry.dtype], "shape": list(entry.shape)}


def _describe_levels(shapes: list[tuple[int, ...]]) -> list[dict[str, Any]]:
    levels, start = [], 0
    for shape in shapes:
        stop = start + math.prod(shape)
        levels.append({"start": start, "stop": stop, "shape": list(shape)})
        start = stop
    return levels
