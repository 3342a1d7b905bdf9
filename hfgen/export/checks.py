"""Does a file compute what PyTorch computes?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .graphs import ExportError, Graph
from .onnx_files import Session


# As a share of the largest number of an output where that is above 1: floats have seven digits.
TOLERANCE = 1e-4


@dataclass
class Difference:
    """How far an output of a file is from that of PyTorch.

    Attributes:
        largest: absolute difference, over all that was checked.
        mean: absolute difference.
        scale: the largest magnitude of the reference, at least 1.
    """

    largest: float
    mean: float
    scale: float


def compare(path: Path, graph: Graph) -> dict[str, Difference]:
    """The difference of each output, over inputs of all sizes that the graph is to be checked at.

    Raises:
        ExportError: onnxruntime cannot load or run the file, or an output has another shape.
    """
    session = Session(path)
    found: dict[str, list[Difference]] = {output.name: [] for output in graph.outputs}
    for seed, sizes in enumerate(graph.checked, start=1):
        inputs = graph.draw(sizes, seed)
        for output, ours, theirs in zip(graph.outputs, graph.reference(inputs), session(inputs), strict=True):
            if ours.shape != theirs.shape:
                raise ExportError(
                    f"{output.name} of {path.name} must have the shape {tuple(ours.shape)} at {dict(sizes)}, got "
                    f"{tuple(theirs.shape)}. Something in the model's code fixes a size that may vary."
                )
            distance = (ours.double() - theirs.double()).abs()
            scale = max(1.0, float(ours.abs().max()))
            found[output.name].append(Difference(float(distance.max()), float(distance.mean()), scale))
    return {name: _over_all(differences) for name, differences in found.items()}


def check(path: Path, differences: dict[str, Difference]) -> None:
    """Raises an ExportError if a file with weights of full precision differs from PyTorch."""
    for name, difference in differences.items():
        allowed = TOLERANCE * difference.scale
        if not difference.largest <= allowed:  # also if it is not a number
            raise ExportError(
                f"{name} of {path.name} must agree with PyTorch to {allowed:.1e}, got a difference of "
                f"{difference.largest:.1e}. Please report this model's config.json as a bug of hfgen."
            )


def _over_all(differences: list[Difference]) -> Difference:
    return Difference(
        largest=max(entry.largest for entry in differences),
        mean=sum(entry.mean for entry in differences) / len(differences),
        scale=max(entry.scale for entry in differences),
    )
