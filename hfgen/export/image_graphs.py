"""The graphs of each family of images.

A graph takes and gives what the method of the same work does: pixels in [0, 1], latents, and, in a conditional model,
classes. None draws random numbers, so that whoever runs it decides about noise and temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..embedding import is_conditional
from ..model_folder import read_json
from ..models import MODELS
from .graphs import BATCH, Graph, Input, Output, Shape, draw_images, draw_integers, draw_normal, draw_uniform


BATCHES: dict[str, Any] = {"traced": {BATCH: 2}, "checked": ({BATCH: 1}, {BATCH: 5})}


def load_image_model(folder: Path) -> Any:
    """The model of a checked folder, in evaluation mode and in float32. No code in the folder is run."""
    model_class: Any = MODELS[read_json(folder / "config.json")["model_type"]].base_model_class
    return model_class.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def image_graphs(model: Any) -> list[Graph]:
    """All graphs of an Auto-Encoder, VAE, Ladder VAE, GAN or codec in evaluation mode."""
    return _GRAPHS[MODELS[model.config.model_type].family](model)


def _autoencoder(model: Any) -> list[Graph]:
    images, shape = _images(model, "pixel_values"), (BATCH, *model.config.latent_shape)
    graphs = [
        _graph(model, "encoder_model", "Latents of images.", model.encode, images, Output("latents", shape)),
        _graph(model, "decoder_model", "Images of latents.", model.decode,
               Input("latents", shape, _draw_latents(model)), _image_output(model)),
    ]  # fmt: skip
    detector = model.anomaly_detector
    if detector is not None and detector.is_fitted:
        # Not predict_anomaly, which asks whether the detector is fitted: a graph cannot branch on a weight.
        def predict_anomaly(pixel_values: Tensor) -> tuple[Tensor, Tensor]:
            return detector(pixel_values, model.decode(model.encode(pixel_values)))

        outputs = (Output("scores", (BATCH,)), Output("maps", (BATCH, *model.config.image_size)))
        graphs.append(
            _graph(model, "anomaly_model", "How strange images are beside those of the training, and where.",
                   predict_anomaly, images, *outputs)
        )  # fmt: skip
    return graphs


def _vae(model: Any) -> list[Graph]:
    shape = (BATCH, *model.config.latent_shape)
    latents, has_flow = Output("latents", shape), model.config.prior == "realnvp"

    def encode(pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        means = model.encode(pixel_values, labels, return_dict=True).latent_dist.mean
        return (means, model.prior.to_noise(means, labels)[0]) if has_flow else means

    def decode(latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return model.decode(latents, labels, return_dict=True).sample

    purpose = "The most likely latents of images" + (
        ", and the noise that the prior turns into them." if has_flow else "."
    )
    noise = Output("noise", shape)
    graphs = [
        _graph(model, "encoder_model", purpose, encode, _images(model, "pixel_values"),
               *((latents, noise) if has_flow else (latents,))),
        _graph(model, "decoder_model", "Images of latents.", decode,
               Input("latents", shape, draw_normal), _image_output(model)),
    ]  # fmt: skip
    if has_flow:
        graphs.append(
            _graph(model, "prior_model", "Latents from standard normal noise.", model.prior.sample,
                   Input("noise", shape, draw_normal), latents)
        )  # fmt: skip
    return graphs


def _ladder_vae(model: Any) -> list[Graph]:
    shape, top = (BATCH, *model.config.latent_shape), model.config.latent_dim

    def encode(pixel_values: Tensor, labels: Tensor | None = None) -> Tensor:
        return model.encode(pixel_values, labels, return_dict=True).latent_dist.mode()

    def decode(latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return model.decode(latents, labels, return_dict=True).sample

    return [
        _graph(model, "encoder_model", "The most likely latents of images, of all levels in one vector.", encode,
               _images(model, "pixel_values"), Output("latents", shape)),
        _graph(model, "decoder_model", "Images of the latents of all levels, which are standard normal under the "
               f"prior; those after the first {top} may be 0, the mean of their prior.", decode,
               Input("latents", shape, draw_normal), _image_output(model)),
    ]  # fmt: skip


def _gan(model: Any) -> list[Graph]:
    latents = Input("latents", (BATCH, model.config.latent_dim), draw_normal)
    return [
        _graph(model, "generator_model", "Images from standard normal latents.", model, latents, _image_output(model)),
        _graph(model, "discriminator_model", "Logits of images, larger for those that look real.", model.discriminate,
               _images(model, "images"), Output("logits", (BATCH,))),
    ]  # fmt: skip


def _codec(model: Any) -> list[Graph]:
    """Only the networks: entropy coding is exact integer arithmetic, which is nothing for a graph of floats."""
    cell = model.config.downsampling
    images: Shape = (BATCH, model.config.num_channels, "height", "width")
    latents: Shape = (BATCH, model.config.latent_dim, "latent_height", "latent_width")
    quality = Input("quality", (BATCH,), draw_uniform)

    def at(batch: int, rows: int, columns: int) -> dict[str, int]:
        sides = {"height": rows * cell, "width": columns * cell, "latent_height": rows, "latent_width": columns}
        return {BATCH: batch, **sides}

    return [
        Graph("encoder_model", "Latents of images at a quality from 0 to 1; rounded, they are the symbols of a file.",
              model.analysis, (Input("pixel_values", images, draw_images), quality), (Output("latents", latents),),
              model, at(2, 5, 3), (at(1, 4, 6), at(3, 1, 2)), multiples={"height": cell, "width": cell}),
        Graph("decoder_model", "Images of symbols, at the quality of the encoder.", model.synthesis,
              (Input("latents", latents, _draw_symbols), quality), (Output("images", images),),
              model, at(2, 5, 3), (at(1, 4, 6), at(3, 1, 2))),
    ]  # fmt: skip


def _draw_symbols(shape: list[int], generator: torch.Generator) -> Tensor:
    return (2 * draw_normal(shape, generator)).round()


def _graph(model: Any, name: str, purpose: str, compute: Callable[..., Any], first: Input, *outputs: Output) -> Graph:
    """A graph with a dynamic batch, whose second input are the classes of a conditional model."""
    labels = Input("labels", (BATCH,), draw_integers(model.config.num_labels or 0), torch.int64)
    inputs = (first, labels) if is_conditional(model.config) else (first,)
    return Graph(name, purpose, compute, inputs, outputs, model, **BATCHES)


def _images(model: Any, name: str) -> Input:
    return Input(name, (BATCH, model.config.num_channels, *model.config.image_size), draw_images)


def _image_output(model: Any) -> Output:
    return Output("images", (BATCH, model.config.num_channels, *model.config.image_size))


def _draw_latents(model: Any) -> Callable[[list[int], torch.Generator], Tensor]:
    """Latents of images: those of an Auto-Encoder have no distribution that one could draw from."""

    @torch.no_grad()
    def draw(shape: list[int], generator: torch.Generator) -> Tensor:
        images = [shape[0], model.config.num_channels, *model.config.image_size]
        return model.encode(draw_images(images, generator))

    return draw


_GRAPHS: dict[str, Callable[[Any], list[Graph]]] = {
    "autoencoder": _autoencoder,
    "vae": _vae,
    "ladder_vae": _ladder_vae,
    "gan": _gan,
    "codec": _codec,
}
