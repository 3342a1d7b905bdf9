"""What all models of images have in common: the images they take, their configs, and how they load."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, pipeline

from hfgen import MODELS, AutoencoderConfig, GANConfig, GANModel, LadderVAEConfig, VAEConfig
from hfgen.image_processing import build_image_processor
from hfgen.models.image_model import TransposedConv2d


STAGES = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3}
SIZES: dict[str, dict[str, Any]] = {
    "autoencoder": STAGES,
    "vae": {**STAGES, "likelihood": "gaussian"},
    "ladder_vae": {**STAGES, "likelihood": "gaussian", "num_prior_couplings": 2, "prior_hidden_size": 8},
    "gan": {"image_size": 8, "generator_channels": [6, 4], "latent_dim": 5},
}
ARCHITECTURES = {entry.family: entry for entry in MODELS.values() if entry.family in SIZES}
each_family = pytest.mark.parametrize("family", SIZES)
each_encoder = pytest.mark.parametrize("family", ["autoencoder", "vae", "ladder_vae"])
each_labeled_family = pytest.mark.parametrize("family", ["vae", "ladder_vae", "gan"])


def tiny_model(family: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = ARCHITECTURES[family].config_class(**{**SIZES[family], **fields})
    return ARCHITECTURES[family].base_model_class(config).eval()


def fixed_noise(model: Any) -> dict[str, Tensor]:
    """What makes the forward pass of a VAE repeatable, for two images."""
    is_vae = model.config.model_type in ("hfgen_vae", "hfgen_ladder_vae")
    return {"noise": torch.ones(2, *model.config.latent_shape)} if is_vae else {}


def output(model: Any) -> Tensor:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    if isinstance(model, GANModel):
        drawn = model.sample(4, generator=torch.Generator().manual_seed(2))
        return torch.cat([drawn.flatten(), model.discriminate(images)])
    return model(images, **fixed_noise(model)).reconstruction


@pytest.mark.parametrize(
    "images, found",
    [
        (torch.zeros(1, 8, 8), "(1, 8, 8)"),
        (torch.zeros(2, 4, 8, 8), "(2, 4, 8, 8)"),
        (torch.zeros(2, 1, 8, 12), "(2, 1, 8, 12)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
    ],
)
@each_family
def test_images_that_do_not_fit_are_refused(family: str, images: Tensor, found: str) -> None:
    model = tiny_model(family)
    of_vaes = ("forward", "encode", "log_likelihood", "evidence_terms")
    for name in {"autoencoder": ("forward", "encode", "anomaly_score"), "vae": of_vaes, "ladder_vae": of_vaes,
                 "gan": ("discriminate",)}[family]:  # fmt: skip
        with pytest.raises(ValueError) as error:
            getattr(model, name)(images)
        assert "(batch, 1, 8, 8)" in str(error.value) and found in str(error.value)


@each_family
def test_a_field_that_is_changed_later_is_checked_by_the_model(family: str) -> None:
    config = ARCHITECTURES[family].config_class()
    config.image_size = 30

    with pytest.raises(StrictDataclassError, match="must be divisible"):
        ARCHITECTURES[family].base_model_class(config)


@pytest.mark.parametrize(
    "image_size", [(16, 32), np.array([16, 32]), [np.int64(16), np.int32(32)], torch.Size([16, 32])], ids=repr
)
@each_family
def test_tuples_and_numbers_of_numpy_become_plain_numbers(tmp_path: Path, family: str, image_size: Any) -> None:
    config_class = ARCHITECTURES[family].config_class
    config = config_class(image_size=image_size, latent_dim=np.int64(3))

    assert config == config_class(image_size=[16, 32], latent_dim=3)
    assert config.image_size == [16, 32] and type(config.latent_dim) is int
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert config_class.from_pretrained(tmp_path, image_size=np.int64(8)).image_size == [8, 8]


@pytest.mark.parametrize(
    "image_size, channels",
    [
        (28, [32, 64]),
        (36, [32, 64]),  # 9 x 9 cells cannot be halved
        (64, [32, 64, 128]),
        (128, [32, 64, 128, 128]),
        ([40, 96], [32, 64, 128]),  # 5 x 12 cells
    ],
)
@pytest.mark.parametrize("family", ["autoencoder", "vae"])
def test_large_images_have_further_stages(family: str, image_size: Any, channels: list[int]) -> None:
    config_class = ARCHITECTURES[family].config_class
    assert config_class(image_size=image_size).hidden_channels == channels
    assert config_class(image_size=image_size, latent_type="spatial").hidden_channels == [32, 64]
    assert config_class(image_size=image_size, hidden_channels=[8]).hidden_channels == [8]


@pytest.mark.parametrize("channels", [(8, 4), np.array([8, 4]), [np.int64(8), 4]], ids=repr)
def test_channels_become_plain_numbers(channels: Any) -> None:
    assert AutoencoderConfig(hidden_channels=channels).hidden_channels == [8, 4]
    assert VAEConfig(hidden_channels=channels).hidden_channels == [8, 4]
    ladder = LadderVAEConfig(hidden_channels=channels, level_channels=channels, num_levels=channels)
    assert ladder.hidden_channels == ladder.level_channels == ladder.num_levels == [8, 4]
    assert GANConfig(generator_channels=channels).discriminator_channels == [4, 8]


@pytest.mark.parametrize("image_size", [True, "32", 32.0, (16, 32, 3), None])
@each_family
def test_an_image_size_that_is_none_is_refused(family: str, image_size: Any) -> None:
    with pytest.raises(StrictDataclassError, match="image_size"):
        ARCHITECTURES[family].config_class(image_size=image_size)


@pytest.mark.parametrize("num_labels", [0, 1, 2, 10])
@each_labeled_family
def test_number_of_classes_survives_saving(tmp_path: Path, family: str, num_labels: int) -> None:
    config_class = ARCHITECTURES[family].config_class
    config_class(num_labels=num_labels).save_pretrained(tmp_path)

    assert config_class.from_pretrained(tmp_path).num_labels == num_labels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_family
def test_loads_in_half_the_bytes(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)

    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)

    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert torch.equal(output(loaded), output(model.to(dtype)))


@each_family
def test_weights_of_another_shape_are_refused_unless_allowed(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)

    with pytest.raises(RuntimeError, match="mismatched"):
        type(model).from_pretrained(tmp_path, latent_dim=7)
    assert type(model).from_pretrained(tmp_path, latent_dim=7, ignore_mismatched_sizes=True).config.latent_dim == 7


# ----------------------------------------------------------------------------------- color, ranges, tuples, pipelines


def features(model: Any, images: Tensor) -> Tensor:
    """The numbers that embed an image. In a ladder they are those of the top level, which its fresh prior leaves as
    they are."""
    encoded = model.encode(images)
    latents = encoded if isinstance(encoded, Tensor) else encoded.latent_dist.mean
    return latents[:, : model.config.latent_dim].detach()


@each_encoder
def test_a_gray_model_sees_color_as_its_luma(family: str) -> None:
    model = tiny_model(family)
    red, green, blue = (torch.rand(2, 1, 8, 8) for _ in range(3))
    color, gray = torch.cat([red, green, blue], dim=1), 0.299 * red + 0.587 * green + 0.114 * blue

    torch.testing.assert_close(features(model, color), features(model, gray))
    assert torch.equal(features(model, gray.expand(-1, 3, -1, -1)), features(model, gray))
    noise = fixed_noise(model)
    torch.testing.assert_close(model(color, **noise).loss, model(gray, **noise).loss)


def test_a_gray_discriminator_sees_color_as_its_luma() -> None:
    model, gray = tiny_model("gan"), torch.rand(2, 1, 8, 8)

    assert torch.equal(model.discriminate(gray.expand(-1, 3, -1, -1)), model.discriminate(gray))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("num_channels", [1, 3])
@each_encoder
def test_the_feature_extraction_pipeline_gives_latents(
    tmp_path: Path, family: str, num_channels: int, mode: str
) -> None:
    model = tiny_model(family, num_channels=num_channels)
    model.save_pretrained(tmp_path)
    build_image_processor(num_channels, (8, 8)).save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)

    extract = pipeline("image-feature-extraction", model=str(tmp_path))

    expected = features(model, torch.from_numpy(pixels / np.float32(255)).expand(1, num_channels, 8, 8))
    torch.testing.assert_close(torch.tensor(extract(image)), expected)


@pytest.mark.parametrize(
    "images, found",
    [
        (torch.linspace(-1, 1, 256).view(4, 1, 8, 8), "from -1 to 1"),
        (torch.arange(256.0).view(4, 1, 8, 8), "from 0 to 255"),
        (1 - 2 * torch.eye(8).expand(4, 1, 8, 8), "from -1 to 1"),
    ],
    ids=["gradient", "8 bits", "mostly white"],
)
@each_encoder
def test_a_loss_of_images_in_another_range_is_refused(family: str, images: Tensor, found: str) -> None:
    model = tiny_model(family)

    for _ in range(2):  # the second time too
        with pytest.raises(ValueError, match=rf"must be in \[0, 1\], got values {found}"):
            model(images)


@each_encoder
def test_noise_and_overshoot_are_no_other_range(family: str) -> None:
    model = tiny_model(family)
    images = (torch.rand(64, 1, 8, 8) < 0.2).float()

    assert model(images + 0.2 * torch.randn(64, 1, 8, 8)).loss.isfinite()


@each_encoder
def test_only_the_first_range_is_looked_at(family: str) -> None:
    """To read a number back from a GPU on every step would stop it."""
    model = tiny_model(family)
    model(torch.rand(2, 1, 8, 8))

    assert model(255 * torch.rand(2, 1, 8, 8)).loss.isfinite()
    assert features(tiny_model(family), 255 * torch.rand(2, 1, 8, 8)).isfinite().all()


@each_encoder
def test_without_return_dict_outputs_are_tuples(family: str) -> None:
    model, images = tiny_model(family), torch.rand(2, 1, 8, 8)
    noise = fixed_noise(model)

    for output in (
        model(images, **noise, return_dict=False),
        model(images, return_loss=True, return_dict=False, **noise),
    ):
        assert isinstance(output, tuple)
        assert all(map(torch.equal, output, model(images, **noise).to_tuple()))
    model.config.return_dict = False
    assert torch.equal(model(images, **noise)[1], output[1])


@each_encoder
def test_the_loss_can_be_left_out(family: str) -> None:
    output = tiny_model(family)(torch.rand(2, 1, 8, 8), return_loss=False)

    assert output.loss is None and output.reconstruction.shape == (2, 1, 8, 8)


# ---------------------------------------------------------------------------------------------- transformers' Trainer


@pytest.mark.parametrize(
    "num_labels, columns", [(0, []), (0, ["label"]), (0, ["labels"]), (3, ["label"]), (3, ["labels"])]
)
@each_encoder
def test_the_trainer_of_transformers_evaluates_the_loss(
    tmp_path: Path, family: str, num_labels: int, columns: list[str]
) -> None:
    labels = {} if family == "autoencoder" else {"num_labels": num_labels, "prior": "normal"}
    # Without latents that matter, the loss does not depend on what the VAE draws.
    model = tiny_model(family, **labels, latent_dim=1)
    with torch.no_grad():
        if family == "vae":
            model.decoder.from_latents.weight[:, 0] = 0
        if family == "ladder_vae":
            model.decoder.from_top.weight[:, 0] = 0
            for level in (level for stage in model.decoder.stages for level in stage.levels):
                level.project.weight.zero_()
    images, classes = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    dataset = Dataset.from_dict({"pixel_values": images.tolist(), **{column: classes.tolist() for column in columns}})
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=3, report_to=[], use_cpu=True, disable_tqdm=True
    )

    measured = Trainer(model, arguments, eval_dataset=dataset.with_format("torch")).evaluate()["eval_loss"]

    assert measured == pytest.approx(model(images, classes if num_labels else None).loss.item(), rel=1e-5)


@each_encoder
def test_the_trainer_of_transformers_trains_on_batches_with_labels(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    dataset = [{"pixel_values": torch.rand(1, 8, 8), "labels": index} for index in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    before = model.decoder.hidden.weight.clone()

    Trainer(model, arguments, train_dataset=dataset).train()

    assert not torch.equal(model.decoder.hidden.weight, before)


# -------------------------------------------------------------------------------------------------------- class labels

NAMES = ["zero", "one", "two"]
ONE_CLASS = [2, "two", np.int64(2), torch.tensor(2), [2, 2], (2, "two"), np.array([2, 2]), np.array(["two", "two"]),
             torch.tensor([2, 2], dtype=torch.uint8), [torch.tensor(2), np.int8(2)]]  # fmt: skip


def conditional_model(family: str) -> Any:
    return tiny_model(family, id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)})


@pytest.mark.parametrize("labels", ONE_CLASS, ids=repr)
@each_labeled_family
def test_labels_may_be_numbers_or_names_one_or_many(family: str, labels: Any) -> None:
    model, expected, images = conditional_model(family), torch.tensor([2, 2]), torch.rand(2, 1, 8, 8)

    def outputs(labels: Any) -> list[Tensor]:
        drawn = model.sample(2, labels, generator=torch.Generator().manual_seed(0))
        if family == "gan":
            return [drawn, model(torch.ones(2, 5), labels), model.discriminate(images, labels)]
        noise = fixed_noise(model)["noise"]
        return [
            drawn,
            model(images, labels, noise).loss,
            model.encode(images, labels).latent_dist.mean,
            model.decode(noise, labels).sample,
            model.interpolate(images, images.flip(0), 3, labels),
            model.evidence_terms(images, labels, noise)[0],
            model.log_likelihood(images, 3, labels, torch.Generator().manual_seed(0)),
        ]

    assert all(map(torch.equal, outputs(labels), outputs(expected)))
    assert not torch.equal(outputs(labels)[0], outputs(0)[0])


@pytest.mark.parametrize(
    "labels, wrong",
    [(3, "3"), (-1, "-1"), ("three", "'three'"), ([0, "three"], "'three'"), (torch.tensor([0, 3]), "3"), (0.5, "0.5"),
     (torch.tensor([-1, 1]), "-1"), (np.array([0.5, 1]), "0.5")],
    ids=repr,
)  # fmt: skip
@each_labeled_family
def test_a_label_that_is_no_class_is_refused_and_the_classes_are_named(family: str, labels: Any, wrong: str) -> None:
    model = conditional_model(family)

    with pytest.raises(ValueError, match=rf"got {wrong}\. The classes are 0 \(zero\), 1 \(one\), 2 \(two\)\."):
        model.sample(2, labels=labels)


@each_labeled_family
def test_of_many_classes_some_are_named(family: str) -> None:
    with pytest.raises(ValueError, match=r"19 \(LABEL_19\) and 80 more\."):
        tiny_model(family, num_labels=100).sample(2, labels=100)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [{"kernel_size": 4, "padding": 1}, {"kernel_size": 3, "output_padding": 1}])
def test_the_layer_to_gray_pixels_is_a_transposed_convolution(
    options: dict[str, int], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = TransposedConv2d(6, 1, stride=2, **options).to(dtype, memory_format=layout)
    plain = nn.ConvTranspose2d(6, 1, stride=2, **options).to(dtype, memory_format=layout)
    plain.load_state_dict(layer.state_dict())
    inputs = torch.randn(3, 6, 4, 5, dtype=dtype).contiguous(memory_format=layout)

    results = []
    for each in (layer, plain):
        image = inputs.clone().requires_grad_()
        pixels = each(image)
        pixels.square().sum().backward()
        assert each.bias is not None and pixels.dtype == dtype
        results.append((pixels, image.grad, each.weight.grad, each.bias.grad))

    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("family", ["autoencoder", "vae"])
@torch.no_grad()
def test_a_decoder_starts_half_smooth(family: str) -> None:
    """Features that are the same everywhere give little of a grid; and variances are kept."""
    model = tiny_model(family, num_channels=3, hidden_channels=[64, 32])
    layers = [layer for layer in model.decoder.modules() if isinstance(layer, TransposedConv2d)]
    assert len(layers) == 2
    for layer, gain in zip(layers, (2**0.5, 0.1)):
        drawn = layer(torch.randn(400, layer.in_channels, 6, 6))[..., 1:-1, 1:-1]
        assert drawn.std() == pytest.approx(gain, rel=0.25)

        flat = layer(torch.randn(400, layer.in_channels, 1, 1).expand(-1, -1, 3, 3))[..., 2:4, 2:4]
        grid = flat - flat.mean(dim=(2, 3), keepdim=True)
        # Of independent weights, three quarters of the variance are grid. Interpolation multiplies what is the same
        # everywhere, so its half of the variance becomes 1 / (0.625 * 0.625) of it.
        expected = (3 / 4 * 0.5) / (0.5 + 0.5 / 0.625**2)
        assert grid.square().mean() / flat.square().mean() == pytest.approx(expected, rel=0.3)


def test_in_16_bits_the_layer_to_gray_pixels_gives_16_bits() -> None:
    """Under autocast, as any convolution."""
    layer = TransposedConv2d(6, 1, kernel_size=4, stride=2, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 6, 4, 4)).dtype == torch.bfloat16


# -------------------------------------------------------------------------------------------------------------- start


def colored(batch: int = 40) -> Tensor:
    """Noise around one color, with another spread in each channel."""
    noise = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    spread = torch.tensor([0.05, 0.1, 0.02]).view(3, 1, 1)
    return (torch.tensor([0.3, 0.5, 0.7]).view(3, 1, 1) + spread * noise).clamp(0, 1)


@pytest.mark.parametrize("family", ["vae", "ladder_vae"])
def test_a_gaussian_starts_at_mean_and_spread_of_each_channel(family: str) -> None:
    model, images = tiny_model(family, num_channels=3), colored()
    noise = torch.zeros(len(images), *model.config.latent_shape)
    before = model(images, noise=noise).reconstruction_loss

    model.start_at(images.split(16))

    channels = images.transpose(0, 1).flatten(1)
    torch.testing.assert_close(model.log_scale.flatten().exp(), channels.std(1, correction=0))
    drawn = model(images, noise=noise)
    torch.testing.assert_close(drawn.reconstruction.mean((0, 2, 3)), channels.mean(1), rtol=0, atol=0.1)
    # One that draws the mean everywhere, per image: the model's own error of a tenth adds less than half of its loss.
    normal = torch.distributions.Normal(channels.mean(1), channels.std(1))
    at_the_mean = -normal.log_prob(channels.T).sum() / len(images)
    assert at_the_mean < 0 and drawn.reconstruction_loss < before


LIKELIHOODS_WITH_A_START = ("bernoulli", "discretized_logistic", "logistic_mixture")


@pytest.mark.parametrize("likelihood", LIKELIHOODS_WITH_A_START)
@pytest.mark.parametrize("family", ["vae", "ladder_vae"])
def test_a_decoder_starts_at_how_bright_the_images_are(family: str, likelihood: str) -> None:
    """Mostly black images: before, every decoder expects as much white as black."""
    model = tiny_model(family, likelihood=likelihood)
    images = (torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    noise = torch.zeros(len(images), *model.config.latent_shape)
    before = model(images, noise=noise)

    model.start_at(images.split(16))

    after = model(images, noise=noise)
    assert after.reconstruction_loss < 0.8 * before.reconstruction_loss
    brightness = images.mean().item()
    assert abs(after.reconstruction.mean() - brightness) < 0.5 * abs(before.reconstruction.mean() - brightness)


@pytest.mark.parametrize("family", ["vae", "ladder_vae"])
def test_no_images_to_start_at_are_refused(family: str) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        tiny_model(family).start_at([])


@pytest.mark.parametrize("family", ["vae", "ladder_vae"])
@pytest.mark.parametrize("likelihood", ["gaussian", *LIKELIHOODS_WITH_A_START])
def test_a_channel_that_is_the_same_everywhere_leaves_the_start_finite(family: str, likelihood: str) -> None:
    model = tiny_model(family, num_channels=3, likelihood=likelihood)
    images = torch.zeros(4, 3, 8, 8)

    model.start_at([images])

    assert model(images, noise=torch.zeros(4, *model.config.latent_shape)).loss.isfinite()
