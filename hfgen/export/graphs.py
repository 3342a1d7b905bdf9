"""One network as a graph of ONNX: what goes in, what comes out, and how to draw inputs that it can be checked with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


BATCH = "batch_size"
Shape = tuple[int | str, ...]  # a dimension that is not fixed has a name
Sizes = Mapping[str, int]  # of the dimensions that have names
DTYPES = {torch.float32: "float32", torch.int64: "int64"}


class ExportError(ValueError):
    """A model cannot be exported. The message says why and what to do; nothing was written."""


@dataclass(frozen=True)
class Input:
    """An input of a graph.

    Attributes:
        name: by which a runtime passes it.
        shape: fixed numbers, and the names of dimensions that may have any size.
        draw: makes a tensor of a shape, of the kind of numbers that the network meets in use.
        dtype: of the tensor.
    """

    name: str
    shape: Shape
    draw: Callable[[list[int], torch.Generator], Tensor]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Output:
    """An output of a graph: its name and its shape, as those of an [`Input`]."""

    name: str
    shape: Shape
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Graph:
    """A network to export.

    Attributes:
        name: of the file, without suffix, such as "decoder_model".
        purpose: what it computes, in a sentence.
        compute: the reference; takes the inputs in order, and returns the outputs in order.
        inputs, outputs: what it takes and gives.
        model: holds the weights that `compute` uses.
        traced: sizes of the dimensions that have names, at which the graph is traced. None may be 0 or 1, as PyTorch
            takes these for fixed.
        checked: other sizes, at which it is compared with the reference.
        multiples: what the size of a dimension must be a multiple of, by its name.
        sums: dimensions whose size follows from those of others.
        draw_all: draws all inputs, where one depends on another.
        writes_text: whether it is a language model with a cache, see text_graphs.py.
    """

    name: str
    purpose: str
    compute: Callable[..., Tensor | Sequence[Tensor]]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    model: nn.Module
    traced: Sizes
    checked: tuple[Sizes, ...]
    multiples: Mapping[str, int] = field(default_factory=dict)
    sums: tuple[str, ...] = ()
    draw_all: Callable[[Sizes, torch.Generator], list[Tensor]] | None = None
    writes_text: bool = False

    def draw(self, sizes: Sizes, seed: int) -> list[Tensor]:
        """Inputs of these sizes; the same seed draws the same ones."""
        generator = torch.Generator().manual_seed(seed)
        if self.draw_all is not None:
            return self.draw_all(sizes, generator)
        return [entry.draw([_size(side, sizes) for side in entry.shape], generator) for entry in self.inputs]

    @torch.no_grad()
    def reference(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs, as PyTorch computes them."""
        outputs = self.compute(*inputs)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)


class Network(nn.Module):
    """A graph as a module, which is what torch.onnx.export takes."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.model, self.compute = graph.model, graph.compute

    def forward(self, *inputs: Tensor) -> Any:
        return self.compute(*inputs)


def _size(side: int | str, sizes: Sizes) -> int:
    return sizes[side] if isinstance(side, str) else side


def draw_images(shape: list[int], generator: torch.Generator) -> Tensor:
    """Smooth images in [0, 1], (batch, channels, height, width): pure noise is nothing that a network was made for."""
    coarse = torch.rand([*shape[:2], 5, 5], generator=generator)
    return F.interpolate(coarse, shape[2:], mode="bilinear", align_corners=False)


def draw_normal(shape: list[int], generator: torch.Generator) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=generator)


def draw_uniform(shape: list[int], generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1)."""
    return torch.rand(shape, generator=generator)


def draw_integers(below: int) -> Callable[[list[int], torch.Generator], Tensor]:
    """Draws integers from 0 to below - 1."""
    return lambda shape, generator: torch.randint(below, shape, generator=generator)
