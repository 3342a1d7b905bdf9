"""README.md of an export: what the files are, how far they are from PyTorch, and how to run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .snippets import javascript_snippet, python_snippet


def render_card(manifest: dict[str, Any], source: Path) -> str:
    """The text of README.md.

    Args:
        manifest: what is in onnx/export.json.
        source: folder of the model, whose card says what its license and its task are.
    """
    javascript = manifest.get("transformers_js_obstacle") or f"```js\n{javascript_snippet(manifest)}\n```"
    parts = [
        f"# {manifest['name']}\n\n{_introduction(manifest)}",
        f"## Files\n\n{_tables(manifest)}\n\n{_about_the_numbers(manifest)}",
        f"## Python\n\n```python\n{python_snippet(manifest)}\n```",
        f"## JavaScript\n\n{javascript}",
    ]
    return f"---\n{_metadata(manifest, source).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(manifest: dict[str, Any], source: Path) -> ModelCardData:
    known = ModelCard.load(source / "README.md").data.to_dict() if (source / "README.md").is_file() else {}
    return ModelCardData(
        license=known.get("license"),
        library_name="transformers.js" if manifest.get("transformers_js") else "onnx",
        pipeline_tag=known.get("pipeline_tag"),
        tags=["hfgen", "onnx"],
        base_model=manifest["base_model"],
    )


def _introduction(manifest: dict[str, Any]) -> str:
    origin = manifest["base_model"]
    of = f"[{origin}](https://huggingface.co/{origin})" if origin else f"a {manifest['title']}"
    return (
        f"The networks of {of} as ONNX files, written by `hfgen export`: for onnxruntime on any machine, and for a "
        "browser. Each file holds its weights, and the size of the batch is free."
    )


def _tables(manifest: dict[str, Any]) -> str:
    graphs, files = [], []
    for name, graph in manifest["graphs"].items():
        graphs.append(f"| {name} | {graph['purpose']} | {_tensors(graph['inputs'])} | {_tensors(graph['outputs'])} |")
        for file in graph["files"].values():
            difference = max(file["max_difference"].values())
            files.append(f"| [{file['path']}]({file['path']}) | {file['bytes']:,} | {difference:.1e} |")
    return "\n".join([
        "| network | computes | inputs | outputs |", "|---|---|---|---|", *graphs, "",
        "| file | bytes | largest difference from PyTorch |", "|---|---|---|", *files,
    ])  # fmt: skip


def _tensors(entries: list[dict[str, Any]]) -> str:
    """Names, types and shapes; of the cache of a GPT only the first layer."""
    shown = [entry for entry in entries if entry["name"].count(".") == 0 or ".0." in entry["name"]]
    words = [f"`{entry['name']}` {entry['dtype']} ({', '.join(map(str, entry['shape']))})" for entry in shown]
    return ", ".join(words) + (", and so on for each layer" if len(shown) < len(entries) else "")


def _about_the_numbers(manifest: dict[str, Any]) -> str:
    text = "" if "vocab_size" in manifest else "Pixels are in [0, 1], in the order (batch, channels, height, width). "
    multiple = manifest.get("size_multiple")
    if multiple:
        text += f"Images may have any height and width that {multiple} divides. "
    if any("int8" in graph["files"] for graph in manifest["graphs"].values()):
        text += (
            "The files that end in `_quantized` have weights of 8 bits; the last column says what that changes, "
            "measured on inputs drawn at random. "
        )
    return text + "[onnx/export.json](onnx/export.json) has all of this for programs."
