"""The GAN with the networks of DCGAN: what it draws and judges, learns, refuses, saves and loads."""

import copy
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import nn

from hfgen.models.gan_losses import discriminator_loss, generator_loss, gradient_penalty
from hfgen.models.modeling_gan import GANConfig, GANModel
from hfgen.models.spectral_norm import SpectralNorm

from .gans import aligned, random_images, seeded, tiny_model


NORMS = pytest.mark.parametrize("norm", ["spectral", "batch", "none"])


# ---------------------------------------------------------------------------------------------------------- networks


@NORMS
@pytest.mark.parametrize(
    "size",
    [
        {"image_size": 28},
        {"image_size": 32, "num_channels": 3, "generator_channels": [8, 6, 4]},
        {"image_size": 64, "num_channels": 3, "generator_channels": [8, 6, 4, 4], "discriminator_channels": [4, 6]},
        {"image_size": [8, 20]},
    ],
)
def test_images_of_any_divisible_size_are_drawn_and_judged(size: dict[str, object], norm: str) -> None:
    model = tiny_model(discriminator_norm=norm, **size)

    images = model(torch.randn(3, 5, generator=seeded()))

    assert images.shape == (3, model.config.num_channels, *model.config.image_size)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0
    assert model.discriminate(images).shape == (3,)


def test_dcgan_doubles_the_feature_map_at_every_stage() -> None:
    model = tiny_model(image_size=32, generator_channels=[8, 6, 4])
    shapes: list[tuple[int, ...]] = []
    for norm in model.generator.norms:
        norm.register_forward_hook(lambda layer, args, out: shapes.append(tuple(out.shape[1:])))
    for block in model.discriminator.blocks:
        block.register_forward_hook(lambda layer, args, out: shapes.append(tuple(out.shape[1:])))

    model.discriminate(model.sample(1))

    assert shapes == [(8, 4, 4), (6, 8, 8), (4, 16, 16), (4, 16, 16), (6, 8, 8), (8, 4, 4)]


@NORMS
def test_an_image_is_judged_by_itself_in_evaluation(norm: str) -> None:
    model = tiny_model(discriminator_norm=norm)
    images = random_images(model)

    torch.testing.assert_close(model.discriminate(images)[1:2], model.discriminate(images[1:2]))
    assert model.discriminate(images[:0]).shape == (0,)


@NORMS
def test_evaluation_changes_no_buffer_and_training_does(norm: str) -> None:
    model = tiny_model(discriminator_norm=norm)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    model.discriminate(model.sample(4))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())

    model.train()
    model.discriminate(model(torch.randn(4, 5)))
    unchanged = {name for name, buffer in model.named_buffers() if torch.equal(buffer, before[name])}
    assert unchanged == ({"discriminator.head_norm.left"} if norm == "spectral" else set())  # one row: always [1]


def test_the_first_block_of_the_discriminator_has_no_batch_normalization() -> None:
    blocks = tiny_model(discriminator_norm="batch").discriminator.blocks

    assert [isinstance(block.norm, nn.BatchNorm2d) for block in blocks] == [False, True]


@pytest.mark.parametrize(
    "norm, loss_type",
    [
        *[(norm, loss_type) for norm in ("spectral", "batch", "none") for loss_type in ("non_saturating", "hinge")],
        *[(norm, "wasserstein") for norm in ("spectral", "none")],
    ],
)
def test_every_parameter_learns(norm: str, loss_type: str) -> None:
    model = tiny_model(discriminator_norm=norm, loss_type=loss_type, num_labels=2).train()
    labels = torch.arange(8) % 2
    fake = model(torch.randn(8, 5, generator=seeded()), labels)

    real_logits = model.discriminate(random_images(model, 8), labels)
    discriminator_loss(real_logits, model.discriminate(fake.detach(), labels), loss_type).backward()
    # Real and generated images pull the last bias in opposite ways, equally strong where the loss is linear.
    dead = set() if loss_type == "non_saturating" else {"discriminator.head.bias"}
    assert {name for name, p in model.named_parameters() if "discriminator" in name and not p.grad.any()} <= dead
    assert all(p.grad is None for name, p in model.named_parameters() if "generator" in name)

    generator_loss(model.discriminate(fake, labels), loss_type).backward()
    assert [name for name, p in model.generator.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_short_game_moves_the_generator_towards_the_data() -> None:
    """The data are plain images of one brightness; the generator starts at mid-gray."""
    torch.manual_seed(0)
    model = GANModel(GANConfig(image_size=8, generator_channels=[8, 8], latent_dim=4)).train()
    optimizers = {
        name: torch.optim.Adam(getattr(model, name).parameters(), lr=2e-3, betas=(0.5, 0.999))
        for name in ("generator", "discriminator")
    }
    real = torch.full((16, 1, 8, 8), 0.9)
    start = model.sample(64).mean().item()
    for _ in range(150):
        fake = model(torch.randn(16, 4))
        losses = {
            "discriminator": discriminator_loss(model.discriminate(real), model.discriminate(fake.detach()), "hinge"),
            "generator": generator_loss(model.discriminate(fake), "hinge"),
        }
        for name, loss in losses.items():
            parameters = list(getattr(model, name).parameters())
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
                parameter.grad = gradient
        for optimizer in optimizers.values():
            optimizer.step()

    assert start == pytest.approx(0.5, abs=0.05)
    assert model.sample(64).mean().item() == pytest.approx(0.9, abs=0.15)


def test_a_fresh_model_has_the_weights_of_dcgan() -> None:
    torch.manual_seed(0)
    model = GANModel(GANConfig(architecture="dcgan", generator_channels=[64, 32], num_labels=10))
    weights = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1 and weight.numel() > 500}

    assert len(weights) == 7
    assert all(weight.std().item() == pytest.approx(0.02, rel=0.1) for weight in weights.values())
    assert all(norm.weight.mean().item() == pytest.approx(1, abs=0.02) for norm in model.generator.norms)
    norms = [module for module in model.modules() if isinstance(module, SpectralNorm)]
    assert len(norms) == 4 and all(norm.left.norm().item() == pytest.approx(1) for norm in norms)


# -------------------------------------------------------------------------------------------------- class-conditional


def test_the_projection_adds_the_features_along_the_label() -> None:
    """logit = <features, head> + bias + <features, embedding of the label>."""
    model = tiny_model(num_labels=3, discriminator_norm="none")
    discriminator, images = model.discriminator, random_images(model)
    with torch.no_grad():
        discriminator.label_embedding.weight[0] = 0
        discriminator.label_embedding.weight[1] = discriminator.head.weight[0]
        discriminator.label_embedding.weight[2] = -discriminator.head.weight[0]

    by_label = [model.discriminate(images, torch.full((4,), label)) for label in range(3)]

    without_label = discriminator(images)
    bias = discriminator.head.bias
    torch.testing.assert_close(by_label[0], without_label)
    torch.testing.assert_close(by_label[1] - bias, 2 * (without_label - bias))
    torch.testing.assert_close(by_label[2], bias.expand(4))


def test_labels_reach_the_generator_and_may_be_of_any_integer_type() -> None:
    model = tiny_model(num_labels=3)
    latents, labels = torch.randn(1, 5, generator=seeded()).expand(3, -1), torch.arange(3)

    images = model(latents, labels)

    assert not torch.allclose(images[0], images[1]) and not torch.allclose(images[1], images[2])
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(model(latents, labels.to(dtype)), images)
        assert torch.equal(model.discriminate(images, labels.to(dtype)), model.discriminate(images, labels))


def test_labels_that_are_missing_uncalled_for_or_too_many_are_refused() -> None:
    conditional, unconditional = tiny_model(num_labels=3), tiny_model()
    latents, images = torch.randn(2, 5), random_images(conditional, 2)

    for use, argument in ((conditional, latents), (conditional.discriminate, images)):
        with pytest.raises(ValueError, match=r"labels must be given, got NoneType\. It is conditional on 3 classes"):
            use(argument)
        with pytest.raises(ValueError, match=r"labels must have the shape \(2,\), got \(3,\)"):
            use(argument, torch.tensor([0, 1, 2]))
    for use, argument in ((unconditional, latents), (unconditional.discriminate, images)):
        with pytest.raises(ValueError, match=r"labels must be None, got Tensor\. It is unconditional"):
            use(argument, torch.tensor([0, 1]))


# ---------------------------------------------------------------------------------------------------------- sampling


def test_sampling_is_reproducible_with_a_generator() -> None:
    model = tiny_model(num_labels=2)

    samples = model.sample(3, truncation=0.5, generator=seeded(7))

    latents = 0.5 * torch.randn(3, 5, generator=seeded(7))
    assert torch.equal(samples, model(latents, torch.tensor([0, 1, 0])))  # spread over the classes
    assert torch.equal(samples, model.sample(3, torch.tensor([0, 1, 0]), 0.5, seeded(7)))
    assert not torch.equal(samples, model.sample(3, truncation=0.5, generator=seeded(8)))
    assert not samples.requires_grad
    assert model.sample(0).shape == (0, 1, 8, 8)


def test_truncation_zero_gives_one_image_per_class() -> None:
    model = tiny_model(num_labels=2)

    samples = model.sample(6, truncation=0.0)

    assert torch.equal(samples[0::2], samples[:1].expand(3, -1, -1, -1))
    assert torch.equal(samples[1::2], samples[1:2].expand(3, -1, -1, -1))
    assert not torch.equal(samples[0], samples[1])


# ------------------------------------------------------------------------------------------------------------ errors


def test_latents_that_do_not_fit_are_refused() -> None:
    for latents in (torch.zeros(2, 4), torch.zeros(5)):
        with pytest.raises(ValueError, match=r"latents must have the shape \(batch, 5\), got"):
            tiny_model()(latents)


def test_wasserstein_with_batch_normalization_is_refused() -> None:
    with pytest.raises(StrictDataclassError, match='"batch" makes images depend on each other: use "none" or'):
        GANConfig(loss_type="wasserstein", discriminator_norm="batch")


def test_a_config_from_before_there_were_architectures_is_a_dcgan(tmp_path: Path) -> None:
    """Its penalty was that of the Wasserstein loss, whatever its loss was."""
    old = {
        "model_type": "hfgen_gan",
        "image_size": [8, 8],
        "generator_channels": [6, 4],
        "gradient_penalty_weight": 10.0,
    }
    hinge, wasserstein = GANConfig.from_dict(dict(old)), GANConfig.from_dict({**old, "loss_type": "wasserstein"})

    for config, loss_type, weight in ((hinge, "hinge", 0), (wasserstein, "wasserstein", 10)):
        assert config.architecture == "dcgan" and config.discriminator_norm == "spectral"
        assert config.loss_type == loss_type and config.gradient_penalty_weight == weight
    GANConfig(image_size=8).save_pretrained(tmp_path)
    assert GANConfig.from_pretrained(tmp_path).architecture == "residual"


def test_all_problems_of_a_config_are_reported_at_once() -> None:
    with pytest.raises(StrictDataclassError) as error:
        GANConfig(
            architecture="dcgan",
            image_size=[30, 28],
            num_channels=0,
            latent_dim=0,
            discriminator_channels=[],
            loss_type="wgan",
            gradient_penalty_weight=-1.0,
            discriminator_norm="layer",
        )

    assert isinstance(error.value.__cause__, ValueError)
    for problem in (
        "image_size [30, 28] must be divisible by 4, as each of the 2 stages in generator_channels",
        "num_channels must be at least 1, got 0",
        "latent_dim must be at least 1, got 0",
        "discriminator_channels must be a non-empty list of positive numbers, got []",
        "loss_type must be one of non_saturating, hinge, wasserstein, relativistic, got 'wgan'",
        "gradient_penalty_weight must be a finite number of at least 0, got -1.0",
        "discriminator_norm must be one of spectral, batch, none, got 'layer'",
    ):
        assert problem in str(error.value)


# --------------------------------------------------------------------------------------------------------- precision


@NORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_works_in_any_precision_on_images_of_any(norm: str, dtype: torch.dtype) -> None:
    model = tiny_model(discriminator_norm=norm, num_labels=2)
    latents, labels, images = torch.randn(4, 5, generator=seeded()), torch.tensor([0, 1, 1, 0]), random_images(model)
    expected, logits = model(latents, labels), model.discriminate(images, labels)

    model.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)

    for given in (torch.float32, dtype):
        drawn, judged = model(latents.to(given), labels), model.discriminate(images.to(given), labels)
        assert drawn.dtype == judged.dtype == wide
        torch.testing.assert_close(drawn.float(), expected, atol=0.05, rtol=0)
        torch.testing.assert_close(judged.float(), logits, atol=0.05 * logits.abs().max().item(), rtol=0)
    assert model.sample(2).dtype == wide


def test_gradient_penalty_of_a_16_bit_discriminator() -> None:
    model = tiny_model(loss_type="wasserstein", discriminator_norm="none")
    real, fake = random_images(model), random_images(model, seed=2)
    expected = gradient_penalty(model.discriminator, real, fake, None, torch.zeros(4))

    penalty = gradient_penalty(model.discriminator.to(torch.bfloat16), real.bfloat16(), fake, None, torch.zeros(4))

    torch.testing.assert_close(penalty, expected, rtol=0.1, atol=0)


@NORMS
def test_trains_under_autocast(norm: str) -> None:
    model = tiny_model(discriminator_norm=norm, num_labels=2).train()
    latents, labels = torch.randn(8, 5, generator=seeded()), torch.arange(8) % 2

    with torch.autocast("cpu", torch.bfloat16):
        fake = model(latents, labels)
        logits = model.discriminate(fake, labels)
        penalty = gradient_penalty(model.discriminator, random_images(model, 8), fake, labels, torch.rand(8))
    (generator_loss(logits, "hinge") + penalty).backward()

    assert fake.dtype == logits.dtype == penalty.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_gradient_penalty_is_exact_under_autocast() -> None:
    model = tiny_model(loss_type="wasserstein", discriminator_norm="none")
    arguments = (model.discriminator, random_images(model), random_images(model, seed=2), None, torch.rand(4))
    expected = gradient_penalty(*arguments)

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_penalty(*arguments), expected)


def test_labels_and_generators_on_the_cpu_serve_a_model_on_another_device() -> None:
    model = tiny_model(num_labels=2, discriminator_norm="none").to("meta")

    images = model.sample(4, labels=torch.tensor([0, 1, 1, 0]), generator=seeded())

    assert images.device.type == model.sample(4, generator=seeded()).device.type == "meta"
    assert model.discriminate(images, torch.tensor([0, 1, 1, 0])).device.type == "meta"


# ------------------------------------------------------------------------------------------------- saving and loading


def trained(**fields: object) -> GANModel:
    """A model whose buffers are no longer what a fresh one has."""
    model = tiny_model(num_labels=2, **fields).train()
    for step in range(3):
        latents = torch.randn(8, 5, generator=seeded(step))
        model.discriminate(model(latents, torch.arange(8) % 2), torch.arange(8) % 2)
    return model.eval()


@NORMS
def test_a_saved_model_gives_the_same_outputs_and_holds_both_networks(tmp_path: Path, norm: str) -> None:
    model = trained(discriminator_norm=norm)
    latents, labels = torch.randn(3, 5, generator=seeded()), torch.tensor([0, 1, 1])
    images = model(latents, labels)
    model.save_pretrained(tmp_path)

    loaded = aligned(GANModel.from_pretrained(tmp_path))

    assert not loaded.training
    assert torch.equal(loaded(latents, labels), images)
    assert torch.equal(loaded.discriminate(images, labels), model.discriminate(images, labels))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


@NORMS
def test_training_continues_from_a_saved_model_as_if_it_had_not_been_saved(tmp_path: Path, norm: str) -> None:
    model = trained(discriminator_norm=norm)
    model.save_pretrained(tmp_path)
    loaded = aligned(GANModel.from_pretrained(tmp_path))
    images, labels = random_images(model), torch.tensor([0, 1, 1, 0])

    for _ in range(2):  # the first step of power iteration shows in the second call
        expected = model.train().discriminate(images, labels)
        assert torch.equal(loaded.train().discriminate(images, labels), expected)


def test_weights_and_buffers_that_are_missing_are_initialized_and_the_others_kept(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = [
        "discriminator.blocks.1.weight_norm.left",
        "discriminator.label_embedding.weight",
        "generator.norms.0.running_mean",
        "generator.norms.0.running_var",
        "generator.from_latents.weight",
    ]
    kept = {name: tensor for name, tensor in tensors.items() if name not in missing}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})

    loaded = GANModel.from_pretrained(tmp_path)

    state = loaded.state_dict()
    assert state[missing[0]].norm().item() == pytest.approx(1)
    assert state[missing[1]].std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(state[missing[2]], torch.zeros(6)) and torch.equal(state[missing[3]], torch.ones(6))
    assert state[missing[4]].std().item() == pytest.approx(0.02, rel=0.3)
    assert all(torch.equal(tensor, state[name]) for name, tensor in kept.items())


def test_a_copy_tracks_its_own_singular_values() -> None:
    model = tiny_model().train()
    copied = copy.deepcopy(model)
    before = model.discriminator.blocks[0].weight_norm.left.clone()

    copied.discriminate(random_images(model))

    assert torch.equal(model.discriminator.blocks[0].weight_norm.left, before)
    assert not torch.equal(copied.discriminator.blocks[0].weight_norm.left, before)
