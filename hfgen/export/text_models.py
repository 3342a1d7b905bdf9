"""A GPT in the layout that a browser can load: that of the class of transformers which computes the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.folders import load_gpt
from ..convert.native import to_native
from .graphs import Graph
from .text_graphs import text_graph


# Of those that a GPT can become, the types of models that transformers.js knows (4.3).
TRANSFORMERS_JS = ("apertus", "arcee", "gpt2", "llama", "qwen3")


@dataclass
class TextModel:
    """A GPT to export.

    Attributes:
        graph: the model.
        config: for config.json.
        details: for onnx/export.json.
    """

    graph: Graph
    config: dict[str, Any]
    details: dict[str, Any]


def load_text_model(folder: Path) -> TextModel:
    """The GPT of a checked folder in any layout, in its native layout if it has one. No code in the folder is run."""
    model: Any = load_gpt(folder)
    obstacle = None
    try:
        model = to_native(model)
    except ValueError as error:
        obstacle = f"{error} transformers.js cannot load it; onnxruntime runs its graph."
    if obstacle is None and not (folder / "tokenizer.json").is_file():
        obstacle = "The model has no tokenizer.json, without which transformers.js loads no GPT."
    if obstacle is None and model.config.model_type not in TRANSFORMERS_JS:
        obstacle = f"transformers.js knows no model of type {model.config.model_type}; onnxruntime runs its graph."
    model = model.float().eval().requires_grad_(False)
    config = {**json.loads(model.config.to_json_string()), "architectures": [type(model).__name__], "dtype": "float32"}
    graph = text_graph(model)
    heads, width = graph.inputs[-1].shape[1], graph.inputs[-1].shape[3]
    details = {
        "vocab_size": model.config.vocab_size,
        "max_position_embeddings": model.config.max_position_embeddings,
        "num_layers": model.config.num_hidden_layers,
        "num_key_value_heads": heads,
        "head_dim": width,
        "transformers_js": obstacle is None,
        "transformers_js_obstacle": obstacle,
    }
    return TextModel(graph, config, details)
