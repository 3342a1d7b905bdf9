"""Image models after the treatments that tools give to models: 8-bit weights, no memory, a graph, adapters."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.ao.quantization import quantize_dynamic

from hfgen import MODELS


IMAGES = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3}
GAN = {"image_size": 8, "generator_channels": [6, 4], "latent_dim": 5, "num_labels": 3}
CODEC = {"image_size": 8, "hidden_channels": [4, 6], "latent_dim": 3}
PRIOR = {"prior": "realnvp", "num_prior_couplings": 2, "prior_hidden_size": 8}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder vector": ("hfgen_autoencoder", IMAGES),
    "autoencoder spatial": ("hfgen_autoencoder", {**IMAGES, "latent_type": "spatial"}),
    "vae vector": ("hfgen_vae", {**IMAGES, "num_labels": 3, "num_residual_blocks": 1, "prior": "normal"}),
    "vae spatial": ("hfgen_vae", {**IMAGES, "latent_type": "spatial", "likelihood": "gaussian"}),
    "vae logistic": ("hfgen_vae", {**IMAGES, "likelihood": "discretized_logistic", "prior": "normal"}),
    "vae learned prior": ("hfgen_vae", {**IMAGES, "likelihood": "logistic_mixture", "num_labels": 3, **PRIOR}),
    "ladder vae": ("hfgen_ladder_vae", {**IMAGES, "prior": "normal", "likelihood": "gaussian", "num_levels": [0, 2]}),
    "ladder vae learned prior": ("hfgen_ladder_vae", {**IMAGES, "num_labels": 3, **PRIOR}),
    "codec": ("hfgen_codec", {**CODEC, "num_channels": 1}),
    "gan residual": ("hfgen_gan", GAN),
    "gan residual without norms": ("hfgen_gan", {**GAN, "generator_norm": "none", "num_labels": 0}),
    "gan spectral": ("hfgen_gan", {**GAN, "architecture": "dcgan"}),
    "gan batch": (
        "hfgen_gan",
        {**GAN, "architecture": "dcgan", "discriminator_norm": "batch", "gradient_penalty_weight": 0.0},
    ),
}
each_case = pytest.mark.parametrize("case", CASES)


class AllOfIt(nn.Module):
    """Every network of a model, as one function of a batch."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, latents: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        classes = {"labels": labels} if getattr(model.config, "num_labels", 0) and model.config.id2label else {}
        if model.main_input_name == "latents":
            return model(latents, **classes), model.discriminate(images, **classes)
        if model.config.model_type in ("hfgen_autoencoder", "hfgen_codec"):
            return model(images).to_tuple()
        return model(images, noise=latents, **classes).to_tuple()


def tiny(case: str) -> AllOfIt:
    """In evaluation mode, with weights so large that every layer counts."""
    torch.manual_seed(0)
    model_type, fields = CASES[case]
    model: Any = MODELS[model_type].base_model_class(MODELS[model_type].config_class(**fields))
    # In a ladder, each level's layers and scales multiply what came from above.
    gain = 0.8 if "ladder" in case else 1.5
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=gain / parameter[0].numel() ** 0.5)
    return AllOfIt(model.eval())


def batch(network: AllOfIt, size: int) -> tuple[Tensor, Tensor, Tensor]:
    config: Any = network.model.config
    shape = getattr(config, "latent_shape", (config.latent_dim,))
    generator = torch.Generator().manual_seed(size)
    return (
        torch.rand(size, 1, 8, 8, generator=generator),
        torch.randn(size, *shape, generator=generator),
        torch.arange(size) % 3,
    )


@each_case
@torch.no_grad()
def test_with_linear_layers_in_8_bits(case: str) -> None:
    network = tiny(case)
    inputs = batch(network, 6)

    quantized = quantize_dynamic(copy.deepcopy(network), {nn.Linear}, dtype=torch.qint8)

    plain = [name for name, module in network.named_modules() if type(module) is nn.Linear]
    assert not any(type(quantized.get_submodule(name)) is nn.Linear for name in plain)
    assert len(plain) > 0 or "spatial" in case or case == "codec"
    for found, expected in zip(quantized(*inputs), network(*inputs), strict=True):
        assert (found - expected).norm() <= 0.05 * expected.norm()


@each_case
def test_without_memory(case: str) -> None:
    network = tiny(case)
    inputs = batch(network, 6)

    found = network.to("meta")(*(tensor.to("meta") for tensor in inputs))

    assert all(tensor.is_meta for tensor in found)
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in tiny(case)(*inputs)]


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@each_case
@torch.no_grad()
def test_as_an_exported_graph_for_batches_of_any_size(case: str, strict: bool) -> None:
    network = tiny(case)
    any_size = {0: torch.export.Dim("batch", min=2, max=64)}

    program = torch.export.export(network, batch(network, 4), dynamic_shapes=(any_size,) * 3, strict=strict)

    for size in (2, 7):
        inputs = batch(network, size)
        for found, expected in zip(program.module()(*inputs), network(*inputs), strict=True):
            torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_a_vae_as_an_exported_graph_draws_its_own_noise() -> None:
    model = tiny("vae logistic").model
    images, any_size = torch.rand(5, 1, 8, 8), {"pixel_values": {0: torch.export.Dim("batch", min=2, max=64)}}

    program = torch.export.export(model, (torch.rand(2, 1, 8, 8),), dynamic_shapes=any_size).module()

    first, second, expected = program(images), program(images), model(images)
    torch.testing.assert_close(first.latent_mean, expected.latent_mean)
    torch.testing.assert_close(first.kl_loss, expected.kl_loss)
    assert first.reconstruction.shape == images.shape and not torch.equal(first.latents, second.latents)


@each_case
@torch.no_grad()
def test_compiled_without_a_break_and_once(case: str) -> None:
    network, counter = tiny(case), CompileCounter()
    inputs = batch(network, 4)
    torch.compiler.reset()  # forgets the graphs of other cases, of which it keeps a limited number

    compiled = torch.compile(network, backend=counter, fullgraph=True)

    found = compiled(*inputs)
    for result, expected in zip(found, network(*inputs), strict=True):  # the first images that are seen uncompiled
        torch.testing.assert_close(result, expected)
    compiled(*inputs)
    assert counter.frame_count == 1


@pytest.mark.parametrize("case", ["autoencoder vector", "autoencoder spatial"])
def test_mapped_over_single_images(case: str) -> None:
    """As for the gradient of each example by itself."""
    model, images = tiny(case).model, torch.rand(3, 1, 8, 8)

    losses = torch.func.vmap(lambda image: model(image[None]).loss)(images)

    torch.testing.assert_close(losses, torch.stack([model(image[None]).loss for image in images]))


class Adapter(nn.Module):
    """An update beside a layer that stays as it is, as PEFT wraps layers for LoRA (Hu et al. 2021,
    https://arxiv.org/abs/2106.09685)."""

    def __init__(self, base_layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        layer_class: Any = type(base_layer)  # PEFT makes its own layers with the class of the one that it wraps
        if isinstance(base_layer, nn.Linear):
            self.update = layer_class(base_layer.in_features, base_layer.out_features)
        else:
            layer = base_layer
            self.update = layer_class(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
            )
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.base_layer(hidden_states) + self.scale * self.update(hidden_states)


CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def adapt(network: AllOfIt) -> list[Adapter]:
    """Wraps every convolution, and every fully connected layer, in an adapter."""
    named = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, (*CONVOLUTIONS, nn.Linear))]
    adapters = []
    for name, layer in named:
        parent, _, own = name.rpartition(".")
        adapters.append(Adapter(layer))
        # By index in a list of layers, by name elsewhere.
        setattr(network.get_submodule(parent), own, adapters[-1])
    return adapters


@each_case
def test_with_adapters_around_layers(case: str) -> None:
    network = tiny(case)
    inputs = batch(network, 6)
    expected = [tensor.detach() for tensor in network(*inputs)]
    adapters = adapt(network)

    found = network(*inputs)
    sum(tensor.square().sum() for tensor in found).backward()

    assert all(map(torch.equal, found, expected)), "an adapter that adds nothing changes the model"
    assert adapters and all(adapter.scale.grad.abs() > 0 for adapter in adapters), "an adapter was passed by"
