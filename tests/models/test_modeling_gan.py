"""The GAN: losses against their formulas, spectral normalization against a singular value decomposition."""

import copy
import math
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hfgen.models.modeling_gan import (
    GANConfig,
    GANModel,
    SpectralNorm,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)


NORMS = pytest.mark.parametrize("norm", ["spectral", "batch", "none"])


def tiny_model(**fields: object) -> GANModel:
    """In evaluation mode, with weights larger than DCGAN's start, so that latents and labels matter."""
    torch.manual_seed(0)
    sizes = {"image_size": 8, "generator_channels": [6, 4], "latent_dim": 5}
    model = GANModel(GANConfig(**{**sizes, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def aligned(model: GANModel) -> GANModel:
    """The model with its weights in memory of torch's own, which begins at multiples of 64 bytes.

    Those that were read from a file begin anywhere, and there some processors add up a dot product in another order.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def random_images(model: GANModel, batch: int = 4, seed: int = 1) -> Tensor:
    shape = (batch, model.config.num_channels, *model.config.image_size)
    return torch.rand(shape, generator=seeded(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------------ losses


REAL, FAKE = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([-4.0, 0.0, 2.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_non_saturating_losses_by_hand() -> None:
    """-log D(x) - log(1 - D(G(z))) for the discriminator, -log D(G(z)) for the generator, D = sigmoid(logit)."""
    real = sum(-math.log(sigmoid(x)) for x in REAL.tolist()) / 3
    fake = sum(-math.log(1 - sigmoid(x)) for x in FAKE.tolist()) / 3
    fooled = sum(-math.log(sigmoid(x)) for x in FAKE.tolist()) / 3

    assert discriminator_loss(REAL, FAKE, "non_saturating").item() == pytest.approx(real + fake, rel=1e-5)
    assert generator_loss(FAKE, "non_saturating").item() == pytest.approx(fooled, rel=1e-5)


def test_hinge_losses_by_hand() -> None:
    assert discriminator_loss(REAL, FAKE, "hinge").item() == pytest.approx((3 + 0.5 + 0) / 3 + (0 + 1 + 3) / 3)
    assert generator_loss(FAKE, "hinge").item() == pytest.approx(2 / 3)


def test_wasserstein_losses_by_hand() -> None:
    assert discriminator_loss(REAL, FAKE, "wasserstein").item() == pytest.approx(-2 / 3 - 0.5)
    assert generator_loss(FAKE, "wasserstein").item() == pytest.approx(2 / 3)


def test_the_generator_learns_even_when_the_discriminator_is_sure() -> None:
    """What "non-saturating" says: log(1 - D(G(z))) would have the gradient 1e-44 here."""
    logits = torch.tensor([-100.0], requires_grad=True)

    generator_loss(logits, "non_saturating").backward()

    assert logits.grad.item() == pytest.approx(-1.0)


def test_a_loss_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="one of non_saturating, hinge, wasserstein, got 'wgan'"):
        discriminator_loss(REAL, FAKE, "wgan")
    with pytest.raises(ValueError, match="one of non_saturating, hinge, wasserstein, got 'wgan'"):
        generator_loss(FAKE, "wgan")


# --------------------------------------------------------------------------------------------------- gradient penalty


class LinearDiscriminator(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, pixel_values: Tensor, labels: Tensor | None) -> Tensor:
        return pixel_values.flatten(1) @ self.weight


class QuadraticDiscriminator(nn.Module):
    """|x|^2, whose gradient 2 x reveals where it was taken."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None) -> Tensor:
        return pixel_values.flatten(1).square().sum(1)


def test_gradient_penalty_of_a_linear_discriminator_has_a_formula() -> None:
    """(|w| / 2 - 1)^2, as pixels in [-1, 1] have half of the gradient of pixels in [0, 1]; and its gradient in w."""
    weight = torch.randn(12, generator=seeded()).double()
    discriminator = LinearDiscriminator(weight.clone())
    real, fake = torch.rand(2, 5, 3, 2, 2, generator=seeded(1)).double()

    penalty = gradient_penalty(discriminator, real, fake, None, torch.rand(5).double())
    penalty.backward()

    excess = weight.norm() / 2 - 1
    torch.testing.assert_close(penalty, excess.square())
    torch.testing.assert_close(discriminator.weight.grad, excess * weight / weight.norm())


def test_gradient_penalty_is_taken_between_real_and_generated_images() -> None:
    real, fake = torch.rand(2, 3, 1, 2, 2, generator=seeded())
    mix = torch.tensor([0.0, 0.25, 1.0])

    penalty = gradient_penalty(QuadraticDiscriminator(), real, fake, None, mix)

    between = torch.stack([real[0], 0.75 * real[1] + 0.25 * fake[1], fake[2]])
    torch.testing.assert_close(penalty, (between.flatten(1).norm(dim=1) - 1).square().mean())


def test_gradient_penalty_does_not_reach_the_images() -> None:
    real, fake = torch.rand(3, 1, 2, 2, requires_grad=True), torch.rand(3, 1, 2, 2, requires_grad=True)
    discriminator = LinearDiscriminator(torch.ones(4))

    gradient_penalty(discriminator, real, fake, None, torch.rand(3)).backward()

    assert real.grad is None and fake.grad is None and discriminator.weight.grad is not None


@pytest.mark.parametrize("norm", ["spectral", "none"])
def test_gradient_penalty_is_the_one_of_finite_differences(norm: str) -> None:
    """Through the whole discriminator: the derivative of the penalty in one weight, by moving that weight."""
    model = tiny_model(loss_type="wasserstein", discriminator_norm=norm, num_labels=2).double()
    real, fake = random_images(model).double(), random_images(model, seed=2).double()
    labels, mix = torch.tensor([0, 1, 1, 0]), torch.rand(4).double()
    weight = model.discriminator.blocks[1].conv.weight
    for _ in range(
        300
    ):  # the vectors of the singular value are held fixed in the derivative: exact once they converged
        model.train().discriminate(real, labels)
    model.eval()

    def penalty() -> Tensor:
        return gradient_penalty(model.discriminator, real, fake, labels, mix)

    (derivative,) = torch.autograd.grad(penalty(), weight)
    moved = []
    for step in (1e-5, -1e-5):
        weight.data[1, 2, 1, 1] += step
        moved.append(penalty().item())
        weight.data[1, 2, 1, 1] -= step

    assert derivative[1, 2, 1, 1].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4)


# ------------------------------------------------------------------------------------------- spectral normalization


def converged(weight: Tensor, steps: int = 300) -> SpectralNorm:
    norm = SpectralNorm(len(weight)).to(weight.dtype).train()
    for _ in range(steps):
        norm(weight)
    return norm


def random_weight(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=seeded())


@pytest.mark.parametrize("shape", [(6, 4, 4, 4), (10, 30), (1, 12)])
def test_spectral_norm_divides_by_the_largest_singular_value(shape: tuple[int, ...]) -> None:
    weight = random_weight(*shape)

    normalized = converged(weight)(weight)

    exact = torch.linalg.svdvals(weight.flatten(1))[0]
    torch.testing.assert_close(normalized, weight / exact)
    assert torch.linalg.svdvals(normalized.flatten(1))[0].item() == pytest.approx(1)


def test_gradient_of_the_spectral_norm_is_that_of_the_exact_singular_value() -> None:
    weight, cotangent = random_weight(6, 4, 2, 2).requires_grad_(), random_weight(6, 4, 2, 2).flip(0)
    norm = converged(weight.detach())

    (gradient,) = torch.autograd.grad((norm(weight) * cotangent).sum(), weight)

    exact = weight / torch.linalg.svdvals(weight.flatten(1))[0]
    (expected,) = torch.autograd.grad((exact * cotangent).sum(), weight)
    torch.testing.assert_close(gradient, expected)


def test_power_iteration_advances_while_training_only() -> None:
    weight = random_weight(6, 20)
    norm = SpectralNorm(6).double()
    start = norm.left.clone()

    norm.eval()(weight)
    assert torch.equal(norm.left, start)
    assert torch.equal(norm(weight), norm(weight))
    norm.train()(weight)
    assert not torch.equal(norm.left, start)


def test_spectral_norm_is_exact_under_autocast() -> None:
    weight = random_weight(6, 20).float()
    norm = converged(weight).eval()
    expected = norm(weight)

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(weight), expected)


def test_spectral_norm_of_16_bit_weights_is_as_good_as_their_bits() -> None:
    weight = random_weight(6, 200).bfloat16()

    normalized = converged(weight)(weight)

    assert normalized.dtype == torch.bfloat16
    assert torch.linalg.svdvals(normalized.double())[0].item() == pytest.approx(1, abs=0.01)


def test_a_weight_of_zeros_gives_zeros() -> None:
    weight = torch.zeros(3, 5, requires_grad=True)

    normalized = SpectralNorm(3)(weight)
    normalized.sum().backward()

    assert torch.equal(normalized, torch.zeros(3, 5)) and weight.grad.isfinite().all()


def test_a_discriminator_under_spectral_norm_stretches_no_direction_much() -> None:
    """Leaky rectifiers do not stretch; a 4 x 4 kernel of norm 1 with stride 2 stretches by at most 2, as each pixel is
    in 4 of its windows. So three layers, the last a plain product, stretch [0, 1] pixels by at most 2 * 2 * 2 * 1."""
    model = tiny_model().train()
    for _ in range(100):
        model.discriminate(random_images(model))
    images = random_images(model.eval(), batch=64).requires_grad_()

    (gradient,) = torch.autograd.grad(model.discriminate(images).sum(), images)

    assert gradient.flatten(1).norm(dim=1).max() <= 8


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
    model = GANModel(GANConfig(generator_channels=[64, 32], num_labels=10))
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


def test_all_problems_of_a_config_are_reported_at_once() -> None:
    with pytest.raises(StrictDataclassError) as error:
        GANConfig(
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
        "loss_type must be one of non_saturating, hinge, wasserstein, got 'wgan'",
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
