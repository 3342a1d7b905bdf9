"""The Ladder VAE, against torch.distributions and numerical integration over all of its latents."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from hfgen.models import likelihoods, modeling_ladder_vae
from hfgen.models.latents import slerp
from hfgen.models.modeling_ladder_vae import LadderVAEConfig, LadderVAEModel, ResidualBlock


LIKELIHOODS = pytest.mark.parametrize("likelihood", likelihoods.LIKELIHOODS)
PRIORS = pytest.mark.parametrize("prior", ["normal", "realnvp"])
SHAPES: dict[str, dict[str, Any]] = {
    "gray": {},
    "color": {"num_channels": 3},
    "not square": {"image_size": [8, 12], "num_channels": 3},
    "one stage": {"hidden_channels": [4]},
    "three stages": {"hidden_channels": [4, 6, 5], "image_size": [8, 16]},
    "a stage without levels": {"num_levels": [0, 1]},
    "several levels in a stage": {"num_levels": [1, 3], "level_channels": [1, 2]},
    "no level below the vector": {"num_levels": [0, 0]},
    "no residual blocks": {"num_residual_blocks": 0},
}
each_shape = pytest.mark.parametrize("shape", SHAPES)


def tiny_model(**fields: object) -> LadderVAEModel:
    """In evaluation mode, with weights large enough for latents, labels, depth and the learned priors to matter."""
    torch.manual_seed(0)
    sizes = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3}
    priors = {"num_prior_couplings": 3, "prior_hidden_size": 8}
    model = LadderVAEModel(LadderVAEConfig(**{**sizes, **priors, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_images(model: LadderVAEModel, batch: int = 2, seed: int = 1) -> Tensor:
    """8-bit images, or black and white ones for the Bernoulli likelihood."""
    shape = (batch, model.config.num_channels, *model.config.image_size)
    levels = 1 if model.config.likelihood == "bernoulli" else 255
    return torch.randint(levels + 1, shape, generator=seeded(seed)) / levels


def random_noise(model: LadderVAEModel, batch: int = 2, seed: int = 2) -> Tensor:
    return torch.randn(batch, *model.config.latent_shape, generator=seeded(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(model: LadderVAEModel) -> list[slice]:
    """Where the latents of each level are, from z_0 down."""
    ends = list(itertools.accumulate(math.prod(shape) for shape in model.config.level_shapes))
    return [slice(start, end) for start, end in zip([0, *ends], ends)]


# ------------------------------------------------------------------------------------------------------------ shapes


@each_shape
def test_shapes(shape: str) -> None:
    model = tiny_model(**SHAPES[shape])
    images, config = random_images(model, 3), model.config

    output = model(images)

    latents = (3, *config.latent_shape)
    assert output.latents.shape == latents and output.latent_mean.shape == (3, config.latent_dim)
    assert output.reconstruction.shape == model.sample(3).shape == images.shape
    assert output.kl_per_level.shape == (len(config.level_shapes),) == (1 + sum(config.num_levels),)
    posterior = model.encode(images).latent_dist
    assert posterior.mean.shape == posterior.mode().shape == posterior.sample().shape == latents
    assert model.sample(0).shape == (0, *images.shape[1:])


def test_levels_come_from_the_coarsest_stage_down() -> None:
    config = LadderVAEConfig(
        image_size=[16, 24], hidden_channels=[4, 5, 6], latent_dim=7, level_channels=[1, 2, 3], num_levels=[1, 0, 2]
    )

    assert config.level_shapes == [(7,), (3, 2, 3), (3, 2, 3), (1, 8, 12)]
    assert config.latent_shape == (7 + 2 * 3 * 2 * 3 + 8 * 12,)


@pytest.mark.parametrize("shape", ["three stages", "several levels in a stage"])
def test_every_level_reaches_the_image_and_hears_of_it(shape: str) -> None:
    model = tiny_model(**SHAPES[shape])
    latents = random_noise(model, 1)
    decoded = model.decode(latents).sample
    white, black = (model.encode(image).latent_dist.mode() for image in (torch.ones_like(decoded), 0 * decoded))

    for part in parts(model):
        moved = latents.clone()
        moved[:, part] += 1
        assert not torch.allclose(model.decode(moved).sample, decoded)
        assert not torch.allclose(white[:, part], black[:, part])


# ------------------------------------------------------------------------------------------------- the evidence bound


@LIKELIHOODS
@PRIORS
@each_shape
def test_loss_is_reconstruction_plus_beta_times_the_kl_of_all_levels(shape: str, prior: str, likelihood: str) -> None:
    model = tiny_model(**SHAPES[shape], prior=prior, likelihood=likelihood, beta=0.25)
    images, noise = random_images(model, 3), random_noise(model, 3)

    output = model(images, noise=noise)
    reconstruction_loss, kl = model.evidence_terms(images, noise=noise)

    torch.testing.assert_close(output.loss, output.reconstruction_loss + 0.25 * output.kl_loss)
    torch.testing.assert_close(output.kl_loss, output.kl_per_level.sum())
    torch.testing.assert_close(kl.mean(0), output.kl_per_level)
    torch.testing.assert_close(reconstruction_loss.mean(), output.reconstruction_loss)
    assert reconstruction_loss.shape == (3,) and kl.shape == (3, len(model.config.level_shapes))


def posteriors(model: LadderVAEModel, images: Tensor, noise: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and standard deviation of q for each level, given what this noise draws above: its latents are
    mean + std * noise, and those of z_0 are what the prior turns into z_0."""
    posterior, found = model.encode(images).latent_dist, []
    for level, part in enumerate(parts(model)):
        at = []
        for value in (0.0, 1.0):
            moved = noise.clone()
            moved[:, part] = value
            latents = posterior.sample(noise=moved)[:, part]
            at.append(model.prior.sample(latents) if level == 0 else latents)
        found.append((at[0], at[1] - at[0]))
    return found


@pytest.mark.parametrize("shape", ["three stages", "several levels in a stage"])
def test_kl_of_each_level_is_that_of_torch_distributions(shape: str) -> None:
    model = tiny_model(**SHAPES[shape], prior="normal").double()
    images, noise = random_images(model).double(), random_noise(model).double()

    kl = model.evidence_terms(images, noise=noise)[1]

    expected = [
        kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1) for mean, std in posteriors(model, images, noise)
    ]
    torch.testing.assert_close(kl, torch.stack(expected, dim=1))


def test_kl_of_a_learned_prior_is_log_q_minus_log_p_at_the_sampled_vector() -> None:
    model = tiny_model(beta=2.0).double()
    images, noise = random_images(model).double(), random_noise(model).double()

    kl = model.evidence_terms(images, noise=noise)[1]

    mean, std = posteriors(model, images, noise)[0]
    top = mean + std * noise[:, : model.config.latent_dim]
    expected = Normal(mean, std).log_prob(top).sum(1) - model.prior.log_prob(top)
    torch.testing.assert_close(kl[:, 0], expected)
    assert (kl[:, 0] - kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1)).abs().min() > 0.01


@PRIORS
def test_analytic_kl_is_the_mean_of_log_q_minus_log_p_over_many_draws(prior: str) -> None:
    model = tiny_model(prior=prior, num_levels=[1, 2]).double()
    images, draws = random_images(model, 1).double(), 4000
    noise = random_noise(model, draws).double()

    reconstruction_loss, kl = model.evidence_terms(images.expand(draws, -1, -1, -1), noise=noise)
    log_weights = model.log_importance_weights(images, draws, noise=noise[:, None])[:, 0]

    errors = (-reconstruction_loss - log_weights - kl.sum(1)).detach()
    assert errors.std() > 0.1  # draw by draw, they differ
    assert errors.mean().abs() < 4 * errors.std() / draws**0.5


@PRIORS
@each_shape
def test_decoding_the_latents_of_a_forward_pass_gives_its_reconstruction(shape: str, prior: str) -> None:
    model = tiny_model(**SHAPES[shape], prior=prior)

    output = model(random_images(model), noise=random_noise(model))

    torch.testing.assert_close(model.decode(output.latents).sample, output.reconstruction)


def test_given_noise_makes_the_forward_pass_reproducible() -> None:
    model = tiny_model()
    images, noise = random_images(model), random_noise(model)

    output = model(images, noise=noise)

    assert torch.equal(output.loss, model(images, noise=noise).loss)
    assert not torch.equal(model(images).loss, model(images).loss)
    assert torch.equal(output.latents, model.encode(images).latent_dist.sample(noise=noise))


# -------------------------------------------------------------------------------------------------- the likelihood


def integrated_log_likelihood(model: LadderVAEModel, images: Tensor, step: float) -> Tensor:
    """log of the integral of p(x|z) p(z) over a grid of all latents, which are standard normal under the prior."""
    axis = torch.arange(-6, 6 + step / 2, step).double()
    (dimensions,) = model.config.latent_shape
    grid = torch.cartesian_prod(*[axis] * dimensions)
    with torch.no_grad():
        means = model.decode(grid).sample
    log_pixels = torch.stack([(image * means + (1 - image) * (1 - means)).log().sum((1, 2, 3)) for image in images])
    log_prior = Normal(0.0, 1.0).log_prob(grid).sum(1)
    return (log_pixels + log_prior).logsumexp(1) + dimensions * math.log(step)


@pytest.mark.parametrize("prior, latent_dim, step", [("normal", 1, 0.1), ("realnvp", 2, 0.25)])
def test_importance_weights_are_unbiased_for_the_likelihood_of_numerical_integration(
    prior: str, latent_dim: int, step: float
) -> None:
    """Images of 2 x 2 pixels, with a vector of one or two numbers and a level of one number."""
    sizes = {"image_size": 2, "hidden_channels": [4], "level_channels": [1], "latent_dim": latent_dim}
    model = tiny_model(**sizes, prior=prior).double()
    images = random_images(model, 3).double()
    exact = integrated_log_likelihood(model, images, step)
    # A coarser grid gives the same, so the integral is far more exact than the estimate.
    torch.testing.assert_close(exact, integrated_log_likelihood(model, images, 1.5 * step), atol=1e-4, rtol=0)

    weights = model.log_importance_weights(images, 20_000, generator=seeded(), chunk_size=8192).detach()

    standard_error = (weights - exact).exp().std(0) / 20_000**0.5
    assert (standard_error < 0.05).all()
    assert ((weights - exact).exp().mean(0) - 1).abs().lt(4 * standard_error).all()


@PRIORS
def test_likelihood_is_the_mean_of_the_importance_weights(prior: str) -> None:
    model = tiny_model(num_labels=2, prior=prior)
    images, labels = random_images(model, 3), torch.tensor([0, 1, 1])

    weights = model.log_importance_weights(images, 50, labels, seeded(), chunk_size=30)

    likelihoods = model.log_likelihood(images, 50, labels, seeded(), chunk_size=30)
    torch.testing.assert_close(likelihoods, weights.exp().mean(0).log(), rtol=1e-4, atol=1e-4)
    assert weights.std(0).min() > 0 and not likelihoods.requires_grad


def test_images_are_encoded_once_and_decoded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = tiny_model(), {"encoder": [], "decoder": []}
    for name, seen in sizes.items():
        network = getattr(model, name)
        forward = network.forward
        monkeypatch.setattr(network, "forward", lambda x, *y, f=forward, s=seen: (s.append(len(x)), f(x, *y))[1])

    model.log_importance_weights(random_images(model, 3), 10, chunk_size=10)

    assert sizes == {"encoder": [3], "decoder": [12, 12, 6]}


def test_given_noise_makes_importance_weights_those_of_its_draws() -> None:
    model = tiny_model()
    images, noise = random_images(model, 2), torch.randn(5, 2, *tiny_model().config.latent_shape, generator=seeded(3))

    weights = model.log_importance_weights(images, 5, noise=noise)

    torch.testing.assert_close(model.log_importance_weights(images, 5, noise=noise, chunk_size=4), weights)
    torch.testing.assert_close(model.log_importance_weights(images, 2, noise=noise[3:]), weights[3:])


# ------------------------------------------------------------------------------------------------- encode and decode


def test_encode_gives_a_distribution() -> None:
    model = tiny_model()
    images = random_images(model)

    posterior = model.encode(images).latent_dist

    assert torch.equal(posterior.mode(), posterior.sample(noise=torch.zeros(2, *model.config.latent_shape)))
    assert torch.equal(posterior.mean, posterior.mode())
    assert torch.equal(posterior.sample(seeded(3)), posterior.sample(seeded(3)))
    assert not torch.equal(posterior.sample(seeded(3)), posterior.sample(seeded(4)))
    # As diffusers' pipelines call AutoencoderKL.
    (latent_dist,) = model.encode(images, return_dict=False)
    (decoded,) = model.decode(latent_dist.mode(), return_dict=False, generator=seeded())
    assert torch.equal(decoded, model.decode(posterior.mode()).sample)


@PRIORS
def test_the_vector_alone_is_decoded_with_the_levels_at_the_mean_of_their_priors(prior: str) -> None:
    model = tiny_model(prior=prior)
    top = torch.randn(4, 3, generator=seeded())
    latents = torch.cat([top, torch.zeros(4, model.config.latent_shape[0] - 3)], dim=1)

    assert torch.equal(model.decode(top).sample, model.decode(latents).sample)


def test_latents_and_sample_counts_that_do_not_fit_are_refused() -> None:
    model = tiny_model()
    (whole,) = model.config.latent_shape

    for shape in ((2, 4), (2, whole + 1), (2, 3, 1, 1)):
        with pytest.raises(
            ValueError, match=rf"z must have the shape \(batch, {whole}\), or \(batch, 3\) for the top"
        ):
            model.decode(torch.zeros(shape))
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        model.log_likelihood(random_images(model), 0)


# ------------------------------------------------------------------------------------------- samples and interpolation


@LIKELIHOODS
@each_shape
def test_samples_are_images(shape: str, likelihood: str) -> None:
    model = tiny_model(**SHAPES[shape], likelihood=likelihood)

    images = model.sample(5, generator=seeded())

    assert images.shape == (5, model.config.num_channels, *model.config.image_size)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0


def test_sampling_is_reproducible_with_a_generator() -> None:
    model = tiny_model()
    noise = torch.randn(4, *model.config.latent_shape, generator=seeded(7))

    assert torch.equal(model.sample(4, generator=seeded(7)), model.decode(noise).sample)
    assert not torch.equal(model.sample(4, generator=seeded(7)), model.sample(4, generator=seeded(8)))
    assert torch.equal(model.sample(4, temperature=0.5, generator=seeded(7)), model.decode(0.5 * noise).sample)


def test_temperature_zero_draws_the_center_of_the_prior() -> None:
    model = tiny_model()

    samples = model.sample(3, temperature=0.0)

    torch.testing.assert_close(samples, model.decode(torch.zeros(3, *model.config.latent_shape)).sample)
    assert torch.equal(samples[0], samples[1])


def test_each_level_can_have_a_temperature_of_its_own() -> None:
    model = tiny_model(num_levels=[1, 2])
    noise = torch.randn(4, *model.config.latent_shape, generator=seeded(7))

    for level, part in enumerate(parts(model)):
        temperature = [0.7 if other == level else 0.0 for other in range(4)]
        latents = torch.zeros_like(noise)
        latents[:, part] = 0.7 * noise[:, part]
        images = model.sample(4, temperature=temperature, generator=seeded(7))
        assert torch.equal(images, model.decode(latents).sample)
        assert images.std(0).max() > 0
    for temperature in ([1.0], [1.0] * 5):
        with pytest.raises(ValueError, match="temperature must be one number or 4, one for each level"):
            model.sample(2, temperature=temperature)


@PRIORS
def test_interpolation_starts_and_ends_at_the_reconstructions(prior: str) -> None:
    model = tiny_model(image_size=[8, 12], num_channels=3, prior=prior)
    images = random_images(model, 4)
    a, b = images[:2], images[2:]

    paths = model.interpolate(a, b, steps=5)

    assert paths.shape == (2, 5, 3, 8, 12)
    torch.testing.assert_close(paths[:, 0], model.decode(model.encode(a).latent_dist.mode()).sample)
    torch.testing.assert_close(paths[:, -1], model.decode(model.encode(b).latent_dist.mode()).sample)
    torch.testing.assert_close(model.interpolate(a[1], b[1], steps=5), paths[1])
    torch.testing.assert_close(model.interpolate(b, a, steps=5), paths.flip(1))


def test_interpolation_follows_the_great_circle_of_each_level() -> None:
    model = tiny_model(num_labels=2)
    a, b, labels = random_images(model, 1), random_images(model, 1, seed=5), torch.tensor([1])
    start, end = (model.encode(images, labels).latent_dist.mode() for images in (a, b))

    path = model.interpolate(a, b, 3, labels)[0]

    middle = torch.cat([slerp(start[:, part], end[:, part], 0.5) for part in parts(model)], dim=1)
    torch.testing.assert_close(path[1], model.decode(middle, labels).sample[0])
    with pytest.raises(ValueError, match="steps must be at least 2"):
        model.interpolate(a, b, 1, labels)
    with pytest.raises(ValueError, match="one shape"):
        model.interpolate(a, b[0], 3, labels)


# -------------------------------------------------------------------------------------------------- class-conditional


@PRIORS
def test_labels_reach_encoder_decoder_and_prior(prior: str) -> None:
    model = tiny_model(num_labels=3, prior=prior)
    images, labels = random_images(model, 1).expand(3, -1, -1, -1), torch.arange(3)
    latents = random_noise(model, 1).expand(3, *model.config.latent_shape)

    output, drawn = model(images, labels, latents), model.decode(latents, labels).sample

    for first, second in ((0, 1), (1, 2)):
        assert not torch.allclose(output.latent_mean[first], output.latent_mean[second])
        assert not torch.allclose(drawn[first], drawn[second])
    torch.testing.assert_close(model.decode(output.latents, labels).sample, output.reconstruction)
    if prior == "realnvp":
        top = latents[:, :3]
        assert not torch.allclose(*model.prior.sample(top, labels)[:2])


def test_samples_are_spread_over_the_classes_by_default() -> None:
    model = tiny_model(num_labels=3)

    by_default = model.sample(7, generator=seeded())

    assert torch.equal(by_default, model.sample(7, labels=torch.tensor([0, 1, 2, 0, 1, 2, 0]), generator=seeded()))


def test_labels_are_ignored_by_the_forward_pass_of_an_unconditional_model_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model()
    images, noise = random_images(model), random_noise(model)
    modeling_ladder_vae.logger.warning_once.cache_clear()

    for _ in range(3):
        assert torch.equal(model(images, torch.tensor([0, 1]), noise).loss, model(images, None, noise).loss)

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ignores the labels" in caplog.text


def test_labels_and_generators_on_the_cpu_serve_a_model_on_another_device() -> None:
    model, labels = tiny_model(num_labels=2).to("meta"), torch.tensor([0, 1, 1, 0])

    images = model.sample(4, labels=labels, generator=seeded())

    assert images.device.type == model.sample(4, generator=seeded()).device.type == "meta"
    assert model(images, labels).loss.device.type == "meta"
    assert model.encode(images, labels).latent_dist.mode().device.type == "meta"
    assert model.log_likelihood(images, 3, labels, seeded()).device.type == "meta"
    assert model.interpolate(images, images, 3, labels).device.type == "meta"


# ------------------------------------------------------------------------------------------------------------ errors


def test_all_problems_of_a_config_are_reported_at_once() -> None:
    with pytest.raises(StrictDataclassError) as error:
        LadderVAEConfig(
            image_size=[30, 28],
            num_channels=0,
            num_residual_blocks=-1,
            hidden_size=0,
            latent_dim=0,
            level_channels=[2],
            num_levels=[1, -1],
            prior="uniform",
            likelihood="poisson",
            beta=-1.0,
            dropout=1.0,
            hidden_act="relo",
        )

    assert isinstance(error.value.__cause__, ValueError)
    for problem in (
        "image_size [30, 28] must be divisible by 4",
        "num_channels must be at least 1, got 0",
        "num_residual_blocks must be at least 0, got -1",
        "hidden_size must be at least 1, got 0",
        "latent_dim must be at least 1, got 0",
        "level_channels must be 2 numbers of at least 1, one for each stage in hidden_channels, got [2]",
        "num_levels must be 2 numbers of at least 0, one for each stage in hidden_channels, got [1, -1]",
        "prior must be one of normal, realnvp, got 'uniform'",
        "likelihood must be one of bernoulli, gaussian, discretized_logistic, logistic_mixture, got 'poisson'",
        "beta must be a finite number of at least 0, got -1.0",
        "dropout must be at least 0 and less than 1, got 1.0",
        "hidden_act must be the name of an activation in transformers, got 'relo'",
    ):
        assert problem in str(error.value)


def test_a_learned_prior_needs_a_vector_of_two_or_more() -> None:
    with pytest.raises(StrictDataclassError, match='latent_dim must be at least 2 with the prior "realnvp", got 1'):
        LadderVAEConfig(latent_dim=1)


# --------------------------------------------------------------------------------------------- precision and training


@LIKELIHOODS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_works_in_any_precision_on_images_of_any(likelihood: str, dtype: torch.dtype) -> None:
    model = tiny_model(likelihood=likelihood, num_labels=2)
    images, labels, noise = random_images(model), torch.tensor([0, 1]), random_noise(model)
    expected = model(images, labels, noise)
    likelihoods = model.log_likelihood(images, 4, labels, seeded())

    output = model.to(dtype)(images, labels, noise)
    output.loss.backward()

    wide = torch.promote_types(dtype, torch.float32)
    assert output.loss.dtype == output.reconstruction.dtype == wide
    torch.testing.assert_close(output.loss.float(), expected.loss, rtol=0.05, atol=0)
    found = model.log_likelihood(images, 4, labels, seeded())
    torch.testing.assert_close(found.float(), likelihoods, rtol=0.05, atol=0)
    assert model.sample(2).dtype == wide
    assert model.interpolate(*images.to(dtype), steps=3, labels=torch.tensor([1])).dtype == wide
    assert model(images.to(dtype), labels, noise.to(dtype)).loss.dtype == wide


@LIKELIHOODS
def test_trains_under_autocast(likelihood: str) -> None:
    model = tiny_model(likelihood=likelihood).train()
    images, noise = random_images(model), random_noise(model)

    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, noise=noise)
        likelihoods = model.log_likelihood(images, 2)
    output.loss.backward()

    assert output.loss.dtype == likelihoods.dtype == torch.float32
    torch.testing.assert_close(output.loss, model(images, noise=noise).loss, rtol=0.03, atol=0)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def without_gradient(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@LIKELIHOODS
@each_shape
def test_every_parameter_learns(shape: str, likelihood: str) -> None:
    """A parameter without a gradient would also stop DistributedDataParallel."""
    model = tiny_model(**SHAPES[shape], likelihood=likelihood, num_labels=2).train()

    model(random_images(model, 8), torch.arange(8) % 2).loss.backward()

    assert without_gradient(model) == []


def test_importance_weights_have_gradients_in_every_parameter() -> None:
    model = tiny_model()

    (model.log_importance_weights(random_images(model), 5).logsumexp(0) - math.log(5)).mean().neg().backward()

    assert without_gradient(model) == []


def test_features_are_dropped_in_training_only() -> None:
    model, without = tiny_model(dropout=0.5), tiny_model()
    images, noise = random_images(model), random_noise(model)

    def losses(model: LadderVAEModel) -> list[float]:
        return [model(images, noise=noise).loss.item() for _ in range(2)]

    assert losses(model) == losses(without)
    first, second = losses(model.train())
    assert first != second


def test_a_fresh_model_starts_with_identity_blocks_and_next_to_the_prior() -> None:
    torch.manual_seed(0)
    model = LadderVAEModel(LadderVAEConfig(likelihood="gaussian"))
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    hidden_states = torch.randn(1, 32, 4, 4)

    assert torch.equal(blocks[0](hidden_states), hidden_states)
    # The levels' priors are N(0, 1): latents at their mean say nothing to the features.
    assert not any(level.prior.weight.any() for stage in model.decoder.stages for level in stage.levels)
    assert model(random_images(model)).kl_loss / math.prod(model.config.latent_shape) < 0.05
    assert not model.log_scale.any()


# ----------------------------------------------------------------------------------------------- saving and exporting


@LIKELIHOODS
def test_a_saved_model_gives_the_same_outputs(tmp_path: Path, likelihood: str) -> None:
    model = tiny_model(likelihood=likelihood, num_labels=2, num_levels=[0, 2])
    images, labels, noise = random_images(model), torch.tensor([0, 1]), random_noise(model)
    model.save_pretrained(tmp_path)

    loaded = LadderVAEModel.from_pretrained(tmp_path)

    assert not loaded.training
    expected, output = model(images, labels, noise), loaded(images, labels, noise)
    assert all(torch.equal(output[name], expected[name]) for name in expected)
    assert torch.equal(loaded.sample(3, generator=seeded()), model.sample(3, generator=seeded()))


class Autoencoding(nn.Module):
    """What a deployed model does: the latents of images, and the images of latents."""

    def __init__(self, model: LadderVAEModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.model.encode(images).latent_dist.mode()
        return latents, self.model.decode(latents).sample


@torch.no_grad()
def test_encoding_and_decoding_as_an_exported_graph_for_batches_of_any_size() -> None:
    network = Autoencoding(tiny_model())
    any_size = ({0: torch.export.Dim("batch", min=2, max=64)},)

    program = torch.export.export(network, (random_images(network.model, 4),), dynamic_shapes=any_size).module()

    for size in (2, 7):
        images = random_images(network.model, size)
        for found, expected in zip(program(images), network(images), strict=True):
            torch.testing.assert_close(found, expected)
