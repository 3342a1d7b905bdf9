"""Graphs to files of ONNX, and back into a runtime.

write_graph(graph, path)            one file, with the weights inside
quantize(path, quantized)           the same with weights of 8 bits
outputs = run(path, graph, inputs)  what onnxruntime computes
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .graphs import ExportError, Graph, Network


PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "Run: pip install 'hfgen[onnx]'"
LARGEST_FILE = 2**31 - 1  # a limit of protobuf, in which ONNX is written


def require_onnx() -> None:
    """Raises an ExportError if the packages that an export needs are not there."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise ExportError(f"hfgen export needs {', '.join(missing)}, which is not installed. {INSTALL}")


def write_graph(graph: Graph, path: Path) -> int:
    """Traces a graph and writes it as one file, with its weights inside.

    Returns:
        The version of ONNX's operators (opset) that it uses.

    Raises:
        ExportError: PyTorch cannot trace the network, or the file would be larger than protobuf allows.
    """
    import onnx_ir

    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.model.state_dict().values())
    if size > LARGEST_FILE:
        raise ExportError(
            f"The weights must fit in one file of {LARGEST_FILE:,} bytes, got {size:,}. Export a smaller model."
        )
    shapes = [
        {index: _dimension(graph, side) for index, side in enumerate(entry.shape) if isinstance(side, str)}
        for entry in graph.inputs
    ]
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                Network(graph).eval(),
                tuple(graph.draw(graph.traced, seed=0)),
                input_names=[entry.name for entry in graph.inputs],
                output_names=[entry.name for entry in graph.outputs],
                dynamic_shapes=(tuple(shapes),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ExportError(f"{path.name} cannot be exported: {_reason(error)}") from error
    _name_shapes(program.model, graph)
    onnx_ir.save(program.model, path)
    return program.model.opset_imports[""]


def quantize(path: Path, target: Path) -> None:
    """Writes a file with weights of 8 bits, by onnxruntime's dynamic quantization: what it computes with, too, is
    rounded to 8 bits, by the range of the numbers that come.

    Raises:
        ExportError: onnxruntime cannot.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        with _quiet():
            # onnxruntime has no convolution of integers with signed weights.
            quantize_dynamic(path, target, weight_type=QuantType.QUInt8)
    except Exception as error:  # onnxruntime's own classes have no common base
        raise ExportError(f"{path.name} cannot be quantized: {error}. Export fp32 alone.") from error


class Session:
    """A file in onnxruntime, on the processor.

    Raises:
        ExportError: onnxruntime cannot load the file, or run it with inputs of these shapes.
    """

    def __init__(self, path: Path):
        import onnxruntime

        self._name = path.name
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes have no common base
            raise ExportError(f"onnxruntime cannot load {path.name}: {error}") from error

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        names = [entry.name for entry in self._session.get_inputs()]
        try:
            outputs = self._session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        except Exception as error:
            # torch.onnx.export writes a graph even where it has found that a size cannot vary.
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in zip(names, inputs))
            raise ExportError(
                f"{self._name} must run with {shapes}, got: {_reason(error)}. Something in the model's code may fix a "
                "size."
            ) from error
        return [torch.from_numpy(output) for output in outputs]


def _dimension(graph: Graph, name: str) -> Any:
    """What torch.export knows of a dimension. Two of one name are one."""
    if name in graph.sums:
        return torch.export.Dim.DYNAMIC
    if name in graph.multiples:
        return graph.multiples[name] * torch.export.Dim(f"{name}_cells")
    return torch.export.Dim(name)


def _name_shapes(model: Any, graph: Graph) -> None:
    """Names the dimensions that are not fixed, and removes what says where on this machine the code was."""
    import onnx_ir

    entries: list[Any] = [*graph.inputs, *graph.outputs]
    for value, entry in zip([*model.graph.inputs, *model.graph.outputs], entries, strict=True):
        value.shape = onnx_ir.Shape(entry.shape)
        value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for part in (model, model.graph, *model.functions.values()):
        part.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what torch and onnxruntime say to their own developers: about torchvision, deprecated classes of theirs,
    and each graph that failed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _reason(error: BaseException) -> str:
    """The first line of what lies beneath: messages of torch and onnxruntime are pages for their own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__
