"""The code in the README.md of an export, written for the names, shapes and classes of that export."""

from __future__ import annotations

from typing import Any


_COUNT = 16  # images at once

_PYTHON_TEXT = """
# pip install onnxruntime tokenizers
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("MODEL")
# Empty, that is of length 0 where the length of the text so far is.
cache = {
    entry.name: np.zeros([{"batch_size": 1}.get(side, 0) if isinstance(side, str) else side for side in entry.shape],
                         dtype=np.float32)
    for entry in session.get_inputs() if entry.name.startswith("past_key_values")
}
tokens = new = tokenizer.encode("The ").ids
for _ in range(LENGTH):
    logits, *after = session.run(None, {
        "input_ids": np.array([new], dtype=np.int64),
        "attention_mask": np.ones((1, len(tokens)), dtype=np.int64),
        "position_ids": np.arange(len(tokens) - len(new), len(tokens), dtype=np.int64)[None],
        **cache,
    })
    cache = dict(zip(cache, after))
    new = [int(logits[0, -1].argmax())]  # the likeliest token
    tokens = tokens + new
print(tokenizer.decode(tokens))
"""

_JAVASCRIPT_TEXT = """
// npm install @huggingface/transformers
import { pipeline } from "@huggingface/transformers";

const generator = await pipeline("text-generation", "NAME", { dtype: "DTYPE" });
const output = await generator("The ", { max_new_tokens: LENGTH, do_sample: true });
console.log(output[0].generated_text);
"""


def python_snippet(manifest: dict[str, Any]) -> str:
    """Draws images, encodes and decodes them where none can be drawn, or writes text, in the folder of the export."""
    return _fill_text(_PYTHON_TEXT, manifest) if "vocab_size" in manifest else _python_of_images(manifest)


def javascript_snippet(manifest: dict[str, Any]) -> str:
    """The same in a browser or in Node.js."""
    return _fill_text(_JAVASCRIPT_TEXT, manifest) if "vocab_size" in manifest else _javascript_of_images(manifest)


def _fill_text(text: str, manifest: dict[str, Any]) -> str:
    files = manifest["graphs"]["model"]["files"]
    length = min(50, manifest["max_position_embeddings"] - 8)
    words = {"MODEL": next(iter(files.values()))["path"], "DTYPE": "fp32" if "fp32" in files else "q8",
             "NAME": manifest["name"], "LENGTH": str(max(1, length))}  # fmt: skip
    for word, value in words.items():
        text = text.replace(word, value)
    return text.strip()


def _python_of_images(manifest: dict[str, Any]) -> str:
    lines = [
        "# pip install onnxruntime",
        "import numpy as np",
        "import onnxruntime",
        "",
        "rng = np.random.default_rng(0)",
    ]
    shape = ", ".join(map(str, [_COUNT, *_start_shape(manifest)]))
    if manifest["sampling"]:
        factor = manifest["sampling"]["factor"]
        lines += [
            f"{factor} = 1.0  # below 1, images are likelier and less varied",
            f"values = {factor} * rng.standard_normal(({shape}), dtype=np.float32)",
        ]
    else:
        lines.append(f"values = rng.random(({shape}), dtype=np.float32)  # put your images here, in [0, 1]")
    others = {
        "labels": f"labels = np.arange({_COUNT}) % {manifest['num_classes']}",
        "quality": f"quality = np.full({_COUNT}, 0.5, dtype=np.float32)",
    }
    lines += _needed(manifest, others)
    for index, graph in enumerate(_steps(manifest)):
        if index and manifest["size_multiple"]:
            lines.append("values = values.round()  # what a file would hold")
        first, *rest = [entry["name"] for entry in graph["inputs"]]
        inputs = ", ".join([f'"{first}": values', *(f'"{name}": {name}' for name in rest)])
        lines += [
            f'session = onnxruntime.InferenceSession("{_path(graph)}")',
            f'values = session.run(["{graph["outputs"][0]["name"]}"], {{{inputs}}})[0]',
        ]
    return "\n".join([*lines, "print(values.shape, values.min(), values.max())"])


def _needed(manifest: dict[str, Any], others: dict[str, str]) -> list[str]:
    """The lines of those inputs, besides the first one of each graph, that the graphs have."""
    names = {entry["name"] for graph in _steps(manifest) for entry in graph["inputs"][1:]}
    return [line for name, line in others.items() if name in names]


def _javascript_of_images(manifest: dict[str, Any]) -> str:
    size, is_drawn = [_COUNT, *_start_shape(manifest)], bool(manifest["sampling"])
    draw = "Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random())"
    comment = "standard normal numbers" if is_drawn else "put your images here, in [0, 1]"
    lines = [
        "// npm install onnxruntime-web",
        'import * as ort from "onnxruntime-web";',
        "",
        f"// {comment}",
        f"const draw = () => {draw if is_drawn else 'Math.random()'};",
        f"const numbers = Float32Array.from({{ length: {' * '.join(map(str, size))} }}, draw);",
        f'let values = new ort.Tensor("float32", numbers, [{", ".join(map(str, size))}]);',
    ]
    classes = f"BigInt64Array.from({{ length: {_COUNT} }}, (_, index) => BigInt(index % {manifest['num_classes']}))"
    others = {
        "labels": f'const labels = new ort.Tensor("int64", {classes}, [{_COUNT}]);',
        "quality": f'const quality = new ort.Tensor("float32", new Float32Array({_COUNT}).fill(0.5), [{_COUNT}]);',
    }
    lines += _needed(manifest, others)
    for index, graph in enumerate(_steps(manifest)):
        if index and manifest["size_multiple"]:
            lines.append("values.data.forEach((value, index) => (values.data[index] = Math.round(value)));")
        first, *rest = [entry["name"] for entry in graph["inputs"]]
        name = _path(graph).partition("/")[2].partition("_")[0]
        lines += [
            f'const {name} = await ort.InferenceSession.create("{_path(graph)}");',
            f"values = (await {name}.run({{ {', '.join([f'{first}: values', *rest])} }}))"
            f".{graph['outputs'][0]['name']};",
        ]
    return "\n".join([*lines, "console.log(values.dims, values.data);"])


def _steps(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The graphs that lead from noise to images, or from images to images."""
    sampling = manifest["sampling"]
    names = sampling["graphs"] if sampling else ["encoder_model", "decoder_model"]
    return [manifest["graphs"][name] for name in names]


def _start_shape(manifest: dict[str, Any]) -> list[int]:
    """Of one example of what goes in first."""
    if manifest["sampling"]:
        return list(manifest["sampling"]["noise_shape"])
    sides = manifest["image_size"]
    if multiple := manifest["size_multiple"]:
        sides = [-(-side // multiple) * multiple for side in sides]
    return [manifest["num_channels"], *sides]


def _path(graph: dict[str, Any]) -> str:
    return str(next(iter(graph["files"].values()))["path"])
