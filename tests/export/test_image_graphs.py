"""Graphs of each family of images compute what the methods of the models compute, at sizes that were not traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hfgen import (
    AutoencoderConfig,
    AutoencoderModel,
    CodecConfig,
    CodecModel,
    GANConfig,
    GANModel,
    LadderVAEConfig,
    LadderVAEModel,
)
from hfgen.export.image_graphs import image_graphs
from hfgen.export.onnx_files import Session, write_graph


BATCH = 7  # graphs are traced with 2


class Sessions:
    """The graphs of a model in onnxruntime, by name; each is exported when it is first asked for."""

    def __init__(self, model: Any, folder: Path):
        self.folder, self.graphs = folder, {graph.name: graph for graph in image_graphs(model)}

    def __call__(self, name: str, *inputs: Tensor) -> list[Tensor]:
        path = self.folder / f"{name}.onnx"
        if not path.is_file():
            write_graph(self.graphs[name], path)
        return Session(path)(inputs)


def new(model_class: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return model_class(config).eval().requires_grad_(False)


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def randn(*shape: int) -> Tensor:
    """What `sample` draws from a generator with the seed 2."""
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(2))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gan_draws_what_sample_draws(tmp_path: Path) -> None:
    config = GANConfig(image_size=8, latent_dim=4, num_labels=3, generator_channels=[4], discriminator_channels=[4])
    model = new(GANModel, config)
    run, labels, images = Sessions(model, tmp_path), torch.arange(BATCH) % 3, rand(BATCH, 1, 8, 8)

    (drawn,) = run("generator_model", 0.5 * randn(BATCH, 4), labels)
    assert_equal(drawn, model.sample(BATCH, truncation=0.5, generator=torch.Generator().manual_seed(2)))
    assert_equal(run("discriminator_model", images, labels)[0], model.discriminate(images, labels))


def test_ladder_vae_draws_what_sample_draws(tmp_path: Path) -> None:
    config = LadderVAEConfig(
        image_size=8, hidden_channels=[4, 8], hidden_size=4, latent_dim=2, num_levels=[1, 0], num_residual_blocks=0
    )
    model = new(LadderVAEModel, config)
    run, images = Sessions(model, tmp_path), rand(BATCH, 1, 8, 8)

    (drawn,) = run("decoder_model", 0.5 * randn(BATCH, *config.latent_shape))
    assert_equal(drawn, model.sample(BATCH, temperature=0.5, generator=torch.Generator().manual_seed(2)))
    assert_equal(run("encoder_model", images)[0], model.encode(images).latent_dist.mode())


def test_anomaly_model_scores_as_the_fitted_detector_does(tmp_path: Path) -> None:
    config = AutoencoderConfig(
        image_size=8, hidden_channels=[4], hidden_size=8, latent_dim=3, anomaly_dim=4, num_residual_blocks=0
    )
    model = new(AutoencoderModel, config)
    assert [graph.name for graph in image_graphs(model)] == ["encoder_model", "decoder_model"]
    model.fit_anomaly([rand(9, 1, 8, 8)])
    images = rand(BATCH, 1, 8, 8)

    scores, maps = Sessions(model, tmp_path)("anomaly_model", images)
    expected = model.predict_anomaly(images)
    assert_equal(scores, expected.scores)
    assert_equal(maps, expected.maps)


def test_codec_has_the_symbols_and_images_of_its_files(tmp_path: Path) -> None:
    model = new(CodecModel, CodecConfig(image_size=16, num_channels=1, hidden_channels=[4, 8], latent_dim=3))
    run, images = Sessions(model, tmp_path), rand(BATCH, 1, 12, 20)

    for quality in (0.3, 1.0):
        qualities = torch.full((BATCH,), quality)
        symbols = model.encode_symbols(images, quality)
        (latents,) = run("encoder_model", images, qualities)
        assert symbols.any() and (latents - symbols).abs().max() < 0.5 + 1e-4
        assert_equal(run("decoder_model", latents.round(), qualities)[0], model.decode_symbols(symbols, quality))


@pytest.mark.parametrize("name", ["encoder_model", "decoder_model"])
def test_inputs_repeat_and_vary_with_the_seed(name: str) -> None:
    model = new(AutoencoderModel, AutoencoderConfig(image_size=8, hidden_channels=[4], latent_dim=3))
    graph = next(graph for graph in image_graphs(model) if graph.name == name)
    first, again, other = (graph.draw({"batch_size": 3}, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (3, *graph.inputs[0].shape[1:])
