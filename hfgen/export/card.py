"""README.md of an export: what the files are, how far they are from PyTorch, and how to run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData


def render_card(manifest: dict[str, Any], source: Path) -> str:
    """The text of README.md.

    Args:
        manifest: what is in onnx/export.json.
        source: folder of the model, whose card says what its license and its task are.
    """
    parts = [
        f"# {manifest['name']}\n\n{_introduction(manifest)}",
        f"## Files\n\n{_files_table(manifest)}\n\n{_about_the_numbers(manifest)}",
        f"## Python\n\n{_python(manifest)}",
        f"## JavaScript\n\n{_javascript(manifest)}",
    ]
    return f"---\n{_metadata(manifest, source).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(manifest: dict[str, Any], source: Path) -> ModelCardData:
    known = ModelCard.load(source / "README.md").data.to_dict() if (source / "README.md").is_file() else {}
    return ModelCardData(
        license=known.get("license"),
        library_name="onnx",
        pipeline_tag=known.get("pipeline_tag"),
        tags=["hfgen", "onnx"],
        base_model=manifest["base_model"],
    )


def _introduction(manifest: dict[str, Any]) -> str:
    origin = manifest["base_model"]
    of = f"[{origin}](https://huggingface.co/{origin})" if origin else f"a {manifest['title']}"
    return (
        f"The networks of {of} as ONNX files, written by `hfgen export`: for onnxruntime on any machine, and for a "
        "browser. Each file holds its weights, and takes any number of images at once."
    )


def _files_table(manifest: dict[str, Any]) -> str:
    rows = [
        "| file | computes | inputs | outputs | bytes | largest difference from PyTorch |",
        "|---|---|---|---|---|---|",
    ]
    for graph in manifest["graphs"].values():
        inputs, outputs = (", ".join(map(_tensor, graph[side])) for side in ("inputs", "outputs"))
        for file in graph["files"].values():
            differences = ", ".join(f"{value:.1e}" for value in file["max_difference"].values())
            rows.append(
                f"| `{file['path']}` | {graph['purpose']} | {inputs} | {outputs} | {file['bytes']:,} | {differences} |"
            )
    return "\n".join(rows)


def _tensor(entry: dict[str, Any]) -> str:
    return f"`{entry['name']}` {entry['dtype']} ({', '.join(map(str, entry['shape']))})"


def _about_the_numbers(manifest: dict[str, Any]) -> str:
    text = "Pixels are in [0, 1], in the order (batch, channels, height, width)."
    if any("int8" in graph["files"] for graph in manifest["graphs"].values()):
        text += (
            " The files that end in `_quantized` have weights of 8 bits, and the last column says what that changes, "
            "measured on inputs drawn at random."
        )
    return text + " [onnx/export.json](onnx/export.json) has all of this for programs."


def _python(manifest: dict[str, Any]) -> str:
    return ""


def _javascript(manifest: dict[str, Any]) -> str:
    return ""
