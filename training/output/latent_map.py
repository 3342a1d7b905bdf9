"""The map of the latents: a point for each image, near those of similar latents, colored by its class."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from hfgen.embedding import encode_latents, is_conditional

from ..data.images import ImageData
from ..data.labels import NO_CLASS


# t-SNE takes about two seconds for this many, and six for twice as many.
MAP_IMAGES = 1000
# Below this, t-SNE has no neighbors to speak of.
FEWEST_IMAGES = 8
PERPLEXITY = 30.0
PRINCIPAL_COMPONENTS = 50  # of larger latents: distances hardly change, and take less time
LEGEND_CLASSES = 20  # that many colors can be told apart
LONGEST_NAME = 24
LIGHT_GRAY = "#d0d0d0"


def draw_latent_map(model: Any, data: ImageData, batch_size: int) -> dict[str, PIL.Image.Image]:
    """Draws the map of up to `MAP_IMAGES` images of the evaluation split, evenly spread.

    Args:
        model: encodes images, as [`hfgen.AutoencoderModel`] and [`hfgen.VAEModel`]; in evaluation mode.
        data: its evaluation images and their classes, if there are any.
        batch_size: images that are encoded at once.

    Returns:
        "map" -> the picture; empty if there are fewer than `FEWEST_IMAGES` images.

    Raises:
        ValueError: latents are not finite.
    """
    if data.num_eval_examples < FEWEST_IMAGES:
        return {}
    latents, labels = [], []
    for batch in data.eval_batches(batch_size, model.device, limit=MAP_IMAGES):
        given = batch["labels"] if is_conditional(model.config) else None
        latents.append(encode_latents(model, batch["pixel_values"], given).flatten(1).float().cpu())
        labels += [batch["labels"].cpu()] if "labels" in batch else []
    points = project(torch.cat(latents).numpy())
    return {"map": draw_points(points, torch.cat(labels) if labels else None, data.label_names)}


def project(latents: np.ndarray) -> np.ndarray:
    """Positions in the plane, (images, 2), by t-SNE (van der Maaten & Hinton 2008), the same each time.

    Latents of one or two numbers are positions by themselves.

    Args:
        latents: (images, numbers), of at least `FEWEST_IMAGES` images.

    Raises:
        ValueError: latents are not finite.
    """
    if not np.isfinite(latents).all():
        raise ValueError("latents must be finite, got NaN or infinity. The model has diverged.")
    count, numbers = latents.shape
    if numbers <= 2 or np.ptp(latents, axis=0).max() == 0:
        return np.pad(latents[:, :2], ((0, 0), (0, 2 - min(numbers, 2))))
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if min(count, numbers) > PRINCIPAL_COMPONENTS:
        latents = PCA(PRINCIPAL_COMPONENTS, random_state=0).fit_transform(latents)
    tsne = TSNE(perplexity=min(PERPLEXITY, (count - 1) / 3), init="pca", random_state=0)
    with threadpool_limits(1):  # several threads add in any order, and the picture would change from run to run
        return tsne.fit_transform(latents)


def draw_points(points: np.ndarray, labels: Tensor | None, names: list[str]) -> PIL.Image.Image:
    """Draws points in the plane in the colors of their classes, with a legend of up to `LEGEND_CLASSES` classes.

    Args:
        points: (points, 2).
        labels: (points,) class indices, NO_CLASS for none; None for one color.
        names: of the classes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xticks=[], yticks=[])
    axes.spines[:].set_color(LIGHT_GRAY)
    size = max(4.0, min(20.0, 12_000 / len(points)))

    def scatter(chosen: np.ndarray, **style: Any) -> None:
        axes.scatter(chosen[:, 0], chosen[:, 1], s=size, linewidths=0, **style)

    if labels is None or not names:
        scatter(points, color="#1f77b4", alpha=0.7)
    else:
        classes = labels.numpy()
        scatter(points[classes == NO_CLASS], color=LIGHT_GRAY)
        for index, color in enumerate(_colors(len(names))):
            scatter(points[classes == index], color=color, label=_shortened(names[index]))
        if len(names) <= LEGEND_CLASSES:
            figure.legend(
                loc="outside right upper", frameon=False, fontsize=9, handletextpad=0.1,
                markerscale=(40 / size) ** 0.5,
            )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return PIL.Image.open(buffer).convert("RGB")


def _colors(count: int) -> list[Any]:
    """A color for each class: ones that differ clearly, or, if there are too many for that, a rainbow."""
    from matplotlib import colormaps

    if count <= LEGEND_CLASSES:
        return list(colormaps["tab10" if count <= 10 else "tab20"](range(count)))
    return list(colormaps["turbo"](np.linspace(0.05, 0.95, count)))


def _shortened(name: str) -> str:
    """A class's name as the legend shows it. Matplotlib leaves out names that begin with an underscore, and reads
    dollar signs as mathematics."""
    name = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")
