"""Models as ONNX files, for onnxruntime and for browsers.

    export_folder("vae-mnist", "vae-mnist-onnx")    # hfgen export vae-mnist;  pip install 'hfgen[onnx]'

    folders.py          from a model's folder to a folder of files, whole or not at all
    graphs.py           a network as a graph: inputs, outputs, and how to draw inputs
    image_graphs.py     the graphs of each family of images
    text_models.py      a GPT in the layout that a browser can load;  text_graphs.py  its graph, with the cache
    onnx_files.py       a graph as a file, in full precision and quantized, and in onnxruntime
    checks.py           does a file compute what PyTorch computes?
    manifest.py         onnx/export.json, for programs
    card.py             README.md, for people;  snippets.py  the code in it, which tests run

The graphs are traced by torch.onnx.export. transformers' own exporters need transformers 5.24, and name inputs and
outputs by how a model's outputs are nested, where transformers.js expects names of its own.
"""

from .folders import export_folder
from .graphs import ExportError


__all__ = ["ExportError", "export_folder"]
