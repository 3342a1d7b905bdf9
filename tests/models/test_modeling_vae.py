"""The VAE, against torch.distributions, a linear-Gaussian model whose likelihood is known, and diffusers."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from hfgen.models import likelihoods, modeling_vae
from hfgen.models.latents import slerp
from hfgen.models.modeling_vae import (
    DiagonalGaussianDistribution,
    ResidualBlock,
    VAEConfig,
    VAEModel,
    discretized_logistic_log_prob,
)


LATENT_TYPES = pytest.mark.parametrize("latent_type", ["vector", "spatial"])
LIKELIHOODS = pytest.mark.parametrize("likelihood", likelihoods.LIKELIHOODS)


def tiny_model(**fields: object) -> VAEModel:
    """In evaluation mode, with weights large enough for latents, labels and depth to matter, and the prior N(0, I)."""
    torch.manual_seed(0)
    sizes = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3, "prior": "normal"}
    model = VAEModel(VAEConfig(**{**sizes, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def random_images(model: VAEModel, batch: int = 2, seed: int = 1) -> Tensor:
    """8-bit images, or black and white ones for the Bernoulli likelihood."""
    shape = (batch, model.config.num_channels, *model.config.image_size)
    levels = 1 if model.config.likelihood == "bernoulli" else 255
    return torch.randint(levels + 1, shape, generator=torch.Generator().manual_seed(seed)) / levels


def random_noise(model: VAEModel, batch: int = 2, seed: int = 2) -> Tensor:
    return torch.randn(batch, *model.config.latent_shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------------------------- the distribution


@pytest.fixture
def posterior() -> DiagonalGaussianDistribution:
    return DiagonalGaussianDistribution(torch.randn(5, 8, generator=seeded()).double())


def as_normal(posterior: DiagonalGaussianDistribution) -> Normal:
    return Normal(posterior.mean, posterior.std)


def test_kl_is_that_of_torch_distributions(posterior: DiagonalGaussianDistribution) -> None:
    prior = Normal(torch.zeros(5, 4).double(), 1.0)

    torch.testing.assert_close(posterior.kl(), kl_divergence(as_normal(posterior), prior).sum(1))


def test_kl_of_the_prior_itself_is_zero() -> None:
    assert torch.equal(DiagonalGaussianDistribution(torch.zeros(2, 6, 3, 3)).kl(), torch.zeros(2))


def test_log_prob_is_that_of_torch_distributions(posterior: DiagonalGaussianDistribution) -> None:
    latents = torch.randn(5, 4, generator=seeded(1)).double()

    torch.testing.assert_close(posterior.log_prob(latents), as_normal(posterior).log_prob(latents).sum(1))


def test_samples_have_the_mean_and_std_of_the_distribution() -> None:
    posterior = DiagonalGaussianDistribution(torch.tensor([[1.5, -2.0, 2 * math.log(0.5), 2 * math.log(3.0)]]))

    samples = torch.cat([posterior.sample(generator=generator) for generator in [seeded()] for _ in range(4000)])

    torch.testing.assert_close(samples.mean(0), torch.tensor([1.5, -2.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([0.5, 3.0]), rtol=0.05, atol=0)


def test_sampling_is_differentiable_in_mean_and_variance() -> None:
    """d z / d mean = 1 and d z / d logvar = std noise / 2: the reparameterisation."""
    parameters = torch.randn(2, 6, generator=seeded()).double().requires_grad_()
    noise = torch.randn(2, 3, generator=seeded(1)).double()

    def draw(parameters: Tensor) -> Tensor:
        return DiagonalGaussianDistribution(parameters).sample(noise=noise)

    (gradient,) = torch.autograd.grad(draw(parameters).sum(), parameters)

    std = torch.exp(0.5 * parameters[:, 3:])
    torch.testing.assert_close(gradient, torch.cat([torch.ones(2, 3).double(), 0.5 * std * noise], dim=1))
    assert torch.autograd.gradcheck(draw, parameters)  # against finite differences


def test_gradient_of_an_expectation_is_estimated_without_bias() -> None:
    """E[z^2] = mean^2 + exp(logvar) has the gradient (2 mean, exp(logvar))."""
    parameters = torch.tensor([[0.7, -0.4]]).double().requires_grad_()
    noise = torch.randn(200_000, 1, generator=seeded()).double()

    DiagonalGaussianDistribution(parameters).sample(noise=noise).square().mean().backward()

    torch.testing.assert_close(parameters.grad, torch.tensor([[1.4, math.exp(-0.4)]]).double(), atol=0.02, rtol=0)


def test_a_wild_variance_overflows_nothing() -> None:
    parameters = torch.tensor([[0.0, 0.0, 1e4, -1e4]], requires_grad=True)
    posterior = DiagonalGaussianDistribution(parameters)

    (posterior.kl() + posterior.sample(noise=torch.ones(1, 2)).sum()).backward()

    assert posterior.kl().isfinite().all() and parameters.grad.isfinite().all()


def test_distribution_is_in_float32_when_the_network_is_in_16_bits() -> None:
    posterior = DiagonalGaussianDistribution(torch.zeros(1, 4, dtype=torch.bfloat16))

    assert posterior.kl().dtype == posterior.sample().dtype == torch.float32


def test_distribution_is_used_as_the_one_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers.models.autoencoders.vae")
    parameters = torch.randn(2, 8, 3, 5, generator=seeded()) * 10

    ours = DiagonalGaussianDistribution(parameters)
    theirs = diffusers.DiagonalGaussianDistribution(parameters)

    for name in ("mean", "logvar", "std", "var", "parameters"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(ours.mode(), theirs.mode())
    torch.testing.assert_close(ours.kl(), theirs.kl())
    torch.testing.assert_close(ours.sample(seeded(3)), theirs.sample(seeded(3)))


# ------------------------------------------------------------------------------------------------------- likelihoods


def decoder_output(model: VAEModel, latents: Tensor) -> Tensor:
    return model.decoder(latents, None)


def test_bernoulli_likelihood_is_that_of_torch_distributions() -> None:
    model = tiny_model()
    images = random_images(model)

    output = model(images, noise=random_noise(model))

    expected = Bernoulli(logits=decoder_output(model, output.latents))
    torch.testing.assert_close(output.reconstruction_loss, -expected.log_prob(images).flatten(1).sum(1).mean())
    torch.testing.assert_close(output.reconstruction, expected.mean)


def test_gaussian_likelihood_is_that_of_torch_distributions_with_a_std_per_channel() -> None:
    model = tiny_model(likelihood="gaussian", num_channels=3)
    model.log_scale.data = torch.tensor([-1.0, 0.0, 0.5]).view(3, 1, 1)
    images = random_images(model)

    output = model(images, noise=random_noise(model))

    expected = Normal(decoder_output(model, output.latents), model.log_scale.exp())
    torch.testing.assert_close(output.reconstruction_loss, -expected.log_prob(images).flatten(1).sum(1).mean())
    torch.testing.assert_close(output.reconstruction, expected.mean.clamp(0, 1))


def test_logistic_likelihood_reads_mean_and_scale_from_the_decoder() -> None:
    model = tiny_model(likelihood="discretized_logistic", num_channels=3)
    images = random_images(model)

    output = model(images, noise=random_noise(model))

    mean, log_scale = decoder_output(model, output.latents).chunk(2, dim=1)
    expected = discretized_logistic_log_prob(images, mean + 0.5, log_scale - 2)
    torch.testing.assert_close(output.reconstruction_loss, -expected.flatten(1).sum(1).mean())
    torch.testing.assert_close(output.reconstruction, (mean + 0.5).clamp(0, 1))


LEVELS = torch.arange(256).double() / 255


@pytest.mark.parametrize("mean", [-1e4, -3.0, 0.0, 1 / 510, 0.3, 0.5, 1.0, 2.0, 1e4])
@pytest.mark.parametrize("log_scale", [-1e4, -7.0, -4.0, -2.0, 0.0, 7.0, 1e4])
def test_probabilities_of_the_256_levels_sum_to_one(mean: float, log_scale: float) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        parameters = torch.tensor([mean, log_scale], dtype=dtype).expand(256, 2)
        log_prob = discretized_logistic_log_prob(LEVELS.to(dtype), parameters[:, 0], parameters[:, 1])

        assert log_prob.isfinite().all() and log_prob.max() <= 0
        assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("mean", [-1e6, -3.0, 0.0, 0.5, 2.0, 1e6])
@pytest.mark.parametrize("log_scale", [-1e6, -7.0, -2.0, 7.0, 1e6])
def test_gradients_of_the_logistic_are_finite_even_far_in_the_tails(mean: float, log_scale: float) -> None:
    means = torch.full((256,), mean, requires_grad=True)
    log_scales = torch.full((256,), log_scale, requires_grad=True)

    discretized_logistic_log_prob(LEVELS.float(), means, log_scales).sum().backward()

    assert means.grad.isfinite().all() and log_scales.grad.isfinite().all()
    # A mean out of range is pulled back from any distance, where a difference of sigmoids has no gradient left.
    assert 0 <= mean <= 1 or means.grad[1:-1].abs().min() > 0


def test_logistic_matches_the_difference_of_sigmoids_where_that_is_accurate() -> None:
    mean, log_scale = torch.meshgrid(
        torch.linspace(0.2, 0.8, 7).double(), torch.linspace(-3, 1, 9).double(), indexing="ij"
    )
    mean, log_scale = mean.reshape(-1, 1), log_scale.reshape(-1, 1)

    def cumulative(x: Tensor) -> Tensor:
        return torch.sigmoid((x - mean) / log_scale.exp())

    above = torch.where(LEVELS == 1, 1.0, cumulative(LEVELS + 1 / 510))
    below = torch.where(LEVELS == 0, 0.0, cumulative(LEVELS - 1 / 510))

    log_prob = discretized_logistic_log_prob(LEVELS.expand(len(mean), 256), mean, log_scale)

    torch.testing.assert_close(log_prob, (above - below).log(), rtol=1e-6, atol=1e-6)


def test_a_fresh_logistic_model_starts_near_a_uniform_guess() -> None:
    torch.manual_seed(0)
    model = VAEModel(VAEConfig(likelihood="discretized_logistic"))

    nats_per_pixel = model(random_images(model)).reconstruction_loss.item() / 28**2

    assert nats_per_pixel == pytest.approx(math.log(256), rel=0.1)


# ------------------------------------------------------------------------------------------------- the evidence bound


@LIKELIHOODS
@LATENT_TYPES
def test_loss_is_reconstruction_plus_beta_times_kl(likelihood: str, latent_type: str) -> None:
    model = tiny_model(likelihood=likelihood, latent_type=latent_type, beta=0.25)
    images = random_images(model)

    output = model(images, noise=random_noise(model))

    torch.testing.assert_close(output.loss, output.reconstruction_loss + 0.25 * output.kl_loss)
    torch.testing.assert_close(output.kl_loss, model.encode(images).latent_dist.kl().mean())


def test_evidence_terms_are_the_two_losses_of_every_image() -> None:
    model = tiny_model(num_labels=2, beta=3.0)
    images, labels, noise = random_images(model, 4), torch.tensor([0, 1, 1, 0]), random_noise(model, 4)

    reconstruction_loss, kl_loss = model.evidence_terms(images, labels, noise=noise)

    assert reconstruction_loss.shape == (4,) and kl_loss.shape == (4, 1)
    output = model(images, labels, noise=noise)
    torch.testing.assert_close(reconstruction_loss.mean(), output.reconstruction_loss)
    torch.testing.assert_close(kl_loss.mean(), output.kl_loss)


@LATENT_TYPES
def test_given_noise_makes_the_forward_pass_reproducible(latent_type: str) -> None:
    model = tiny_model(latent_type=latent_type)
    images, noise = random_images(model), random_noise(model)

    output = model(images, noise=noise)

    posterior = model.encode(images).latent_dist
    assert torch.equal(output.latents, posterior.mean + posterior.std * noise)
    assert torch.equal(output.loss, model(images, noise=noise).loss)
    assert not torch.equal(model(images).loss, model(images).loss)


class LinearEncoder(nn.Module):
    """q(z|x) = N(gain (x - offset), diag(exp(logvar))), from pixels in [-1, 1]."""

    def __init__(self, gain: Tensor, offset: Tensor, logvar: Tensor):
        super().__init__()
        self.gain, self.offset, self.logvar = gain, offset, logvar

    def forward(self, hidden_states: Tensor, labels: None) -> Tensor:
        mean = ((hidden_states.flatten(1) + 1) / 2 - self.offset) @ self.gain.T
        return torch.cat([mean, self.logvar.expand_as(mean)], dim=1)


class LinearDecoder(nn.Module):
    def __init__(self, weight: Tensor, offset: Tensor):
        super().__init__()
        self.weight, self.offset = weight, offset

    def forward(self, latents: Tensor, labels: None) -> Tensor:
        return (latents @ self.weight.T + self.offset).view(-1, 1, 2, 2)


STD = 0.3
OFFSET = torch.tensor([0.1, 0.4, 0.5, 0.9]).double()
# Orthogonal columns: only then is the true posterior a distribution with independent dimensions.
WEIGHT = torch.tensor([[0.5, 0.2], [0.5, -0.2], [0.3, 0.0], [0.0, 0.6]]).double()
WEIGHT[:, 1] -= WEIGHT[:, 0] * (WEIGHT[:, 0] @ WEIGHT[:, 1]) / WEIGHT[:, 0].square().sum()


def linear_gaussian_model(is_posterior_exact: bool) -> VAEModel:
    """x = WEIGHT z + OFFSET + STD noise: a VAE whose likelihood and posterior have a formula.

    p(z|x) = N(S W' (x - OFFSET) / STD^2, S) with S = (I + W'W / STD^2)^-1.
    """
    sizes = {"image_size": 2, "hidden_channels": [1], "hidden_size": 1, "latent_dim": 2}
    model = VAEModel(VAEConfig(**sizes, prior="normal", likelihood="gaussian")).double().eval()
    model.log_scale.data.fill_(math.log(STD))
    covariance = torch.linalg.inv(torch.eye(2) + WEIGHT.T @ WEIGHT / STD**2)
    torch.testing.assert_close(covariance, covariance.diagonal().diag())
    gain, logvar = covariance @ WEIGHT.T / STD**2, covariance.diagonal().log()
    if not is_posterior_exact:
        gain, logvar = 0.8 * gain, logvar + 0.5
    model.encoder = LinearEncoder(gain, OFFSET, logvar)
    model.decoder = LinearDecoder(WEIGHT, OFFSET)
    return model


def linear_gaussian_images(batch: int) -> Tensor:
    latents = torch.randn(batch, 2, generator=seeded()).double()
    noise = torch.randn(batch, 4, generator=seeded(1)).double()
    return (latents @ WEIGHT.T + OFFSET + STD * noise).view(batch, 1, 2, 2)


def exact_log_likelihood(images: Tensor) -> Tensor:
    marginal = MultivariateNormal(OFFSET, WEIGHT @ WEIGHT.T + STD**2 * torch.eye(4))
    return marginal.log_prob(images.flatten(1))


@pytest.mark.parametrize("num_samples", [1, 7])
def test_likelihood_is_exact_with_a_single_sample_of_the_true_posterior(num_samples: int) -> None:
    images = linear_gaussian_images(6)

    estimate = linear_gaussian_model(is_posterior_exact=True).log_likelihood(images, num_samples)

    torch.testing.assert_close(estimate, exact_log_likelihood(images))


@pytest.mark.parametrize("chunk_size", [1, 4, 10, 1000])
def test_importance_weights_of_the_true_posterior_are_all_the_exact_likelihood(chunk_size: int) -> None:
    model, images = linear_gaussian_model(is_posterior_exact=True), linear_gaussian_images(4)

    weights = model.log_importance_weights(images, 7, generator=seeded(), chunk_size=chunk_size)

    assert weights.shape == (7, 4)
    torch.testing.assert_close(weights, exact_log_likelihood(images).expand(7, 4))


def test_likelihood_is_the_mean_of_the_importance_weights() -> None:
    model = tiny_model(num_labels=2)
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
        monkeypatch.setattr(network, "forward", lambda x, y, f=forward, s=seen: (s.append(len(x)), f(x, y))[1])

    model.log_importance_weights(random_images(model, 3), 10, chunk_size=10)

    assert sizes == {"encoder": [3], "decoder": [12, 12, 6]}


def test_importance_weights_have_gradients_in_both_networks() -> None:
    model = tiny_model()

    (model.log_importance_weights(random_images(model), 5).logsumexp(0) - math.log(5)).mean().neg().backward()

    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_likelihood_tightens_from_below_towards_the_exact_value() -> None:
    model, images = linear_gaussian_model(is_posterior_exact=False), linear_gaussian_images(400)
    exact = exact_log_likelihood(images).mean().item()

    bounds = [model.log_likelihood(images, k, generator=seeded(k)).mean().item() for k in (1, 10, 1000)]

    assert bounds[0] < bounds[1] - 0.05 < bounds[2]
    assert bounds[2] == pytest.approx(exact, abs=0.005)


@pytest.mark.parametrize("is_posterior_exact", [True, False])
def test_elbo_is_the_likelihood_less_the_kl_to_the_true_posterior(is_posterior_exact: bool) -> None:
    model, images = linear_gaussian_model(is_posterior_exact), linear_gaussian_images(1)
    noise = torch.randn(100_000, 2, generator=seeded(2)).double()

    reconstruction_loss, kl_loss = model.evidence_terms(images.expand(100_000, -1, -1, -1), noise=noise)

    truth = as_normal(linear_gaussian_model(is_posterior_exact=True).encode(images).latent_dist)
    gap = kl_divergence(as_normal(model.encode(images).latent_dist), truth).sum()
    assert gap > 0.1 or is_posterior_exact
    elbo = -(reconstruction_loss + kl_loss[:, 0]).mean()
    assert elbo.item() == pytest.approx((exact_log_likelihood(images) - gap).item(), abs=0.02)


@LATENT_TYPES
def test_likelihood_in_chunks_is_the_likelihood_at_once(latent_type: str) -> None:
    model = tiny_model(latent_type=latent_type, latent_dim=4, num_labels=2)
    images, labels = random_images(model, 4), torch.tensor([0, 1, 1, 0])

    at_once = model.log_likelihood(images, 12, labels, seeded())

    for chunk_size in (1, 4, 12, 20):  # of 48; torch draws the same numbers in pieces if those are multiples of 16
        in_chunks = model.log_likelihood(images, 12, labels, seeded(), chunk_size=chunk_size)
        torch.testing.assert_close(in_chunks, at_once)
    assert at_once.shape == (4,) and not at_once.requires_grad


@LIKELIHOODS
@LATENT_TYPES
def test_likelihood_of_one_sample_is_its_weight_by_definition(likelihood: str, latent_type: str) -> None:
    """log p(x|z) + log p(z) - log q(z|x), with z the same draw."""
    model = tiny_model(likelihood=likelihood, latent_type=latent_type)
    images = random_images(model)

    estimate = model.log_likelihood(images, 1, generator=seeded())

    noise = torch.randn(1, 2, *model.config.latent_shape, generator=seeded())[0]
    posterior = model.encode(images).latent_dist
    latents = posterior.sample(noise=noise)
    log_prior = Normal(0.0, 1.0).log_prob(latents).flatten(1).sum(1)
    log_pixels = -model.evidence_terms(images, noise=noise)[0]
    torch.testing.assert_close(estimate, log_pixels + log_prior - posterior.log_prob(latents))


# ---------------------------------------------------------------------------------------------------- what it is for


def test_encode_and_decode_are_used_as_those_of_diffusers() -> None:
    model = tiny_model()
    images = random_images(model)

    latents = model.encode(images).latent_dist.sample(seeded())
    decoded = model.decode(latents).sample

    assert latents.shape == (2, 3) and decoded.shape == images.shape
    assert torch.equal(model.encode(images)[0].mode(), model.encode(images)["latent_dist"].mean)
    assert torch.equal(model.decode(latents)[0], decoded)
    # As diffusers' pipelines call AutoencoderKL.
    (latent_dist,), (images_again,) = (
        model.encode(images, return_dict=False),
        model.decode(latents, return_dict=False, generator=seeded()),
    )
    assert torch.equal(latent_dist.mean, model.encode(images).latent_dist.mean)
    assert torch.equal(images_again, decoded)


@LATENT_TYPES
def test_config_has_what_pipelines_of_diffusers_read(latent_type: str) -> None:
    config = VAEConfig(image_size=[16, 24], num_channels=3, hidden_channels=[4, 6, 8], latent_type=latent_type)

    assert config.latent_channels == config.latent_dim == 32
    # As diffusers' pipelines derive vae_scale_factor.
    assert 2 ** (len(config.block_out_channels) - 1) == config.downsampling == 8
    assert config.block_out_channels == [3, 4, 6, 8]
    assert (config.scaling_factor, config.shift_factor) == (1.0, 0.0)
    saved = config.to_dict()
    assert "latent_channels" not in saved and "block_out_channels" not in saved


@torch.no_grad()
def test_latents_are_decoded_and_images_processed_as_in_pipelines_of_diffusers() -> None:
    image_processor = pytest.importorskip("diffusers.image_processor")
    model = tiny_model(latent_type="spatial", scaling_factor=0.5, shift_factor=-0.25)
    vae, z = model, torch.randn(2, *model.config.latent_shape, generator=seeded())
    # Its own models have pixels in [-1, 1]; without this switch, it would map [0, 1] to [0.5, 1].
    processor = image_processor.VaeImageProcessor(vae_scale_factor=4, do_normalize=False)

    decoded = vae.decode(z / vae.config.scaling_factor, return_dict=False, generator=seeded())[0]

    assert torch.equal(decoded, model.decode(2 * z).sample)
    assert torch.equal(processor.postprocess(decoded, output_type="pt"), decoded)
    again = processor.preprocess(processor.postprocess(decoded, output_type="pil"))
    torch.testing.assert_close(again, decoded, rtol=0, atol=0.5 / 255 + 1e-6)


@LIKELIHOODS
@LATENT_TYPES
@pytest.mark.parametrize("size", [{"image_size": 8}, {"image_size": [8, 20], "num_channels": 3}])
def test_samples_are_images(likelihood: str, latent_type: str, size: dict[str, object]) -> None:
    model = tiny_model(likelihood=likelihood, latent_type=latent_type, **size)

    images = model.sample(5, generator=seeded())

    assert images.shape == (5, model.config.num_channels, *model.config.image_size)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0
    assert model.sample(0).shape == (0, *images.shape[1:])
    assert model(images).reconstruction.shape == images.shape


@LATENT_TYPES
def test_sampling_is_reproducible_with_a_generator(latent_type: str) -> None:
    model = tiny_model(latent_type=latent_type)

    assert torch.equal(model.sample(4, generator=seeded(7)), model.sample(4, generator=seeded(7)))
    assert not torch.equal(model.sample(4, generator=seeded(7)), model.sample(4, generator=seeded(8)))
    latents = torch.randn(4, *model.config.latent_shape, generator=seeded(7))
    assert torch.equal(model.sample(4, temperature=0.5, generator=seeded(7)), model.decode(0.5 * latents).sample)


def test_temperature_zero_draws_the_center_of_the_prior() -> None:
    model = tiny_model()

    samples = model.sample(3, temperature=0.0)

    torch.testing.assert_close(samples, model.decode(torch.zeros(3, 3)).sample)
    assert torch.equal(samples[0], samples[1])


@LATENT_TYPES
def test_interpolation_starts_and_ends_at_the_reconstructions(latent_type: str) -> None:
    model = tiny_model(latent_type=latent_type, image_size=[8, 12], num_channels=3)
    images = random_images(model, 4)
    a, b = images[:2], images[2:]

    paths = model.interpolate(a, b, steps=5)

    assert paths.shape == (2, 5, 3, 8, 12)
    torch.testing.assert_close(paths[:, 0], model.decode(model.encode(a).latent_dist.mode()).sample)
    torch.testing.assert_close(paths[:, -1], model.decode(model.encode(b).latent_dist.mode()).sample)
    torch.testing.assert_close(model.interpolate(a[1], b[1], steps=5), paths[1])
    torch.testing.assert_close(model.interpolate(b, a, steps=5), paths.flip(1))


def test_interpolation_of_a_conditional_model_stays_in_the_class() -> None:
    model = tiny_model(num_labels=3)
    a, b = random_images(model, 2), random_images(model, 2, seed=5)

    batch = model.interpolate(a, b, 3, labels=torch.tensor([2, 0]))

    torch.testing.assert_close(model.interpolate(a[0], b[0], 3, labels=torch.tensor(2)), batch[0])
    with pytest.raises(ValueError, match="labels must be given"):
        model.interpolate(a, b, 3)


def test_interpolation_needs_two_steps_and_images_of_one_shape() -> None:
    model = tiny_model()
    images = random_images(model)

    with pytest.raises(ValueError, match="steps must be at least 2"):
        model.interpolate(images, images, 1)
    with pytest.raises(ValueError, match="one shape"):
        model.interpolate(images, images[0], 3)


def test_slerp_turns_evenly_and_keeps_the_length() -> None:
    start, end = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])

    for t in (0.0, 0.25, 0.5, 1.0):
        angle, length = t * math.pi / 2, 2 + 2 * t
        expected = torch.tensor([[length * math.cos(angle), length * math.sin(angle), 0.0]])
        torch.testing.assert_close(slerp(start, end, t), expected)

    a, b = torch.randn(2, 8, 2, 3, 3, generator=seeded())
    a, b = (x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for x in (a, b))
    torch.testing.assert_close(slerp(a, b, 0.3).flatten(1).norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("end", [[1.0, 0.0], [-1.0, 0.0], [3.0, 1e-6]])
def test_slerp_is_a_straight_line_where_no_arc_is_defined(end: list[float]) -> None:
    start, stop = torch.tensor([[1.0, 0.0]]), torch.tensor([end])

    torch.testing.assert_close(slerp(start, stop, 0.25), torch.lerp(start, stop, 0.25))


def test_four_images_are_memorized() -> None:
    torch.manual_seed(0)
    model = VAEModel(VAEConfig(image_size=8, hidden_channels=[16, 16], hidden_size=64, latent_dim=4, beta=0.1))
    images = random_images(model, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = model(images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.no_grad():
        assert model(images).reconstruction_loss < 0.2 * 64 * math.log(2)  # a fair coin's is 64 log 2


# -------------------------------------------------------------------------------------------------- class-conditional


@LATENT_TYPES
def test_labels_reach_encoder_and_decoder(latent_type: str) -> None:
    model = tiny_model(latent_type=latent_type, num_labels=3)
    images = random_images(model, 1).expand(3, -1, -1, -1)
    latents = random_noise(model, 1).expand(3, *model.config.latent_shape)
    labels = torch.arange(3)

    means, drawn = model.encode(images, labels).latent_dist.mean, model.decode(latents, labels).sample

    for first, second in ((0, 1), (1, 2)):
        assert not torch.allclose(means[first], means[second])
        assert not torch.allclose(drawn[first], drawn[second])


def test_samples_are_spread_over_the_classes_by_default() -> None:
    model = tiny_model(num_labels=3)

    by_default = model.sample(7, generator=seeded())

    assert torch.equal(by_default, model.sample(7, labels=torch.tensor([0, 1, 2, 0, 1, 2, 0]), generator=seeded()))


def test_labels_may_be_of_any_integer_type() -> None:
    model = tiny_model(num_labels=3)
    images, labels, noise = random_images(model), torch.tensor([2, 0]), random_noise(model)

    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(model(images, labels.to(dtype), noise).loss, model(images, labels, noise).loss)


def test_labels_are_ignored_by_the_forward_pass_of_an_unconditional_model_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model()
    images, noise = random_images(model), random_noise(model)
    modeling_vae.logger.warning_once.cache_clear()

    for _ in range(3):
        assert torch.equal(model(images, torch.tensor([0, 1]), noise).loss, model(images, None, noise).loss)

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ignores the labels" in caplog.text


def test_labels_that_are_missing_uncalled_for_or_too_many_are_refused() -> None:
    conditional, unconditional = tiny_model(num_labels=3), tiny_model()
    images = random_images(conditional)

    with pytest.raises(ValueError, match=r"labels must be given, got NoneType\. It is conditional on 3 classes"):
        conditional(images)
    with pytest.raises(ValueError, match=r"labels must be None, got Tensor\. It is unconditional"):
        unconditional.encode(images, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels must have the shape \(2,\), got \(3,\)"):
        conditional(images, labels=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="labels must be given"):
        conditional.decode(random_noise(conditional))


def test_names_of_classes_make_a_model_conditional(tmp_path: Path) -> None:
    VAEConfig(id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}).save_pretrained(tmp_path)

    loaded = VAEConfig.from_pretrained(tmp_path)

    assert loaded.num_labels == 2 and loaded.id2label == {0: "cat", 1: "dog"}


def test_labels_and_generators_on_the_cpu_serve_a_model_on_another_device() -> None:
    model, labels = tiny_model(num_labels=2).to("meta"), torch.tensor([0, 1, 1, 0])

    images = model.sample(4, labels=labels, generator=seeded())

    assert images.device.type == model.sample(4, generator=seeded()).device.type == "meta"
    assert model(images, labels).loss.device.type == "meta"
    assert model.log_likelihood(images, 3, labels, seeded()).device.type == "meta"
    assert model.interpolate(images, images, 3, labels).device.type == "meta"


# ------------------------------------------------------------------------------------------------- the learned prior


def model_with_learned_prior(**fields: object) -> VAEModel:
    return tiny_model(prior="realnvp", num_prior_couplings=3, prior_hidden_size=8, **fields)


def test_kl_of_a_learned_prior_is_log_q_minus_log_p_at_the_sampled_latents() -> None:
    model = model_with_learned_prior(num_labels=2, beta=0.5)
    images, labels, noise = random_images(model, 4), torch.tensor([0, 1, 1, 0]), random_noise(model, 4)

    output = model(images, labels, noise=noise)

    posterior = as_normal(model.encode(images, labels).latent_dist)
    log_q, log_p = posterior.log_prob(output.latents).sum(1), model.prior.log_prob(output.latents, labels)
    torch.testing.assert_close(output.kl_loss, (log_q - log_p).mean())
    torch.testing.assert_close(output.loss, output.reconstruction_loss + 0.5 * output.kl_loss)
    torch.testing.assert_close(model.evidence_terms(images, labels, noise=noise)[1], (log_q - log_p)[:, None])


def test_likelihood_under_a_learned_prior_is_that_of_numerical_integration() -> None:
    """log of the integral of p(x|z) p(z) over a grid of the two latents."""
    model = model_with_learned_prior(latent_dim=2).double()
    images = random_images(model, 3).double()
    axis = torch.linspace(-12, 12, 241).double()
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_joint = torch.stack([
            model.likelihood.log_prob(model.decoder(grid, None), image.expand(len(grid), -1, -1, -1))
            for image in images
        ]) + model.prior.log_prob(grid)  # fmt: skip
    exact = log_joint.logsumexp(1) + 2 * math.log(axis[1] - axis[0])

    weights = model.log_importance_weights(images, 20_000, generator=seeded(), chunk_size=8192).detach()

    standard_error = (weights - exact).exp().std(0) / 20_000**0.5
    assert (standard_error < 0.05).all()
    assert ((weights - exact).exp().mean(0) - 1).abs().lt(4 * standard_error).all()


def test_temperature_scales_the_noise_that_the_learned_prior_turns_into_latents() -> None:
    model = model_with_learned_prior()
    noise = torch.randn(4, 3, generator=seeded(7))

    latents = model.prior.sample(0.5 * noise)

    assert torch.equal(model.sample(4, temperature=0.5, generator=seeded(7)), model.decode(latents).sample)
    assert not torch.allclose(latents, 0.5 * noise)


def test_interpolation_follows_the_great_circle_of_the_noise() -> None:
    model = model_with_learned_prior(num_labels=2)
    a, b, labels = random_images(model, 1), random_images(model, 1, seed=5), torch.tensor([1])

    path = model.interpolate(a, b, 3, labels)[0]

    ends = [model.encode(images, labels).latent_dist.mode() for images in (a, b)]
    for image, end in ((path[0], ends[0]), (path[2], ends[1])):
        torch.testing.assert_close(image, model.decode(end, labels).sample[0])
    middle = slerp(*(model.prior.to_noise(end, labels)[0] for end in ends), 0.5)
    torch.testing.assert_close(path[1], model.decode(model.prior.sample(middle, labels), labels).sample[0])


def test_a_fresh_learned_prior_is_the_normal_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VAEModel(VAEConfig(prior="realnvp")).eval()
    images, noise = random_images(model), random_noise(model)

    kl = model.evidence_terms(images, noise=noise)[1]

    posterior = model.encode(images).latent_dist
    latents = posterior.sample(noise=noise)
    expected = posterior.log_prob(latents) - Normal(0.0, 1.0).log_prob(latents).sum(1)
    torch.testing.assert_close(kl[:, 0], expected, rtol=0, atol=1e-4)
    model.save_pretrained(tmp_path)
    forget(tmp_path, "prior.couplings.0.to_shift_and_scale.weight")
    assert torch.equal(VAEModel.from_pretrained(tmp_path).evidence_terms(images, noise=noise)[1], kl)


def test_the_prior_of_vector_latents_is_learned_unless_another_is_asked_for(tmp_path: Path) -> None:
    assert VAEConfig().prior == "realnvp" and VAEConfig(prior="normal").prior == "normal"
    VAEConfig().save_pretrained(tmp_path)
    assert VAEConfig.from_pretrained(tmp_path).prior == "realnvp"


@pytest.mark.parametrize("fields", [{"latent_type": "spatial"}, {"latent_dim": 1}])
def test_a_learned_prior_needs_a_vector_of_two_or_more(fields: dict[str, object]) -> None:
    assert VAEConfig(**fields).prior == "normal"
    with pytest.raises(StrictDataclassError) as error:
        VAEConfig(prior="realnvp", **fields)

    assert 'prior "realnvp" needs latent_type "vector" and latent_dim of at least 2' in str(error.value)


def test_a_learned_prior_learns_and_is_saved(tmp_path: Path) -> None:
    model = model_with_learned_prior(num_labels=2).train()
    images, labels, noise = random_images(model, 8), torch.arange(8) % 2, random_noise(model, 8)

    model(images, labels, noise).loss.backward()
    model.eval().save_pretrained(tmp_path)

    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert torch.equal(
        VAEModel.from_pretrained(tmp_path)(images, labels, noise).loss, model(images, labels, noise).loss
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_learned_prior_works_in_any_precision(dtype: torch.dtype) -> None:
    model = model_with_learned_prior()
    images, noise = random_images(model), random_noise(model)
    expected = model(images, noise=noise).loss

    found = model.to(dtype)(images, noise=noise).loss

    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0)


# ------------------------------------------------------------------------------------------------------------ errors


def test_latents_and_sample_counts_that_do_not_fit_are_refused() -> None:
    model = tiny_model()

    with pytest.raises(ValueError, match=r"z must have the shape \(batch, 3\), got \(2, 4\)"):
        model.decode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        model.log_likelihood(random_images(model), 0)


def test_all_problems_of_a_config_are_reported_at_once() -> None:
    with pytest.raises(StrictDataclassError) as error:
        VAEConfig(
            image_size=[30, 28],
            num_channels=0,
            num_residual_blocks=-1,
            hidden_size=0,
            latent_dim=0,
            latent_type="round",
            likelihood="poisson",
            num_mixtures=0,
            prior="uniform",
            num_prior_couplings=0,
            prior_hidden_size=0,
            beta=-1.0,
            hidden_act="relo",
            scaling_factor=0.0,
            shift_factor=float("nan"),
        )

    assert isinstance(error.value.__cause__, ValueError)
    for problem in (
        "image_size [30, 28] must be divisible by 4",
        "num_channels must be at least 1, got 0",
        "num_residual_blocks must be at least 0, got -1",
        "hidden_size must be at least 1, got 0",
        "latent_dim must be at least 1, got 0",
        "latent_type must be one of vector, spatial, got 'round'",
        "likelihood must be one of bernoulli, gaussian, discretized_logistic, logistic_mixture, got 'poisson'",
        "num_mixtures must be at least 1, got 0",
        "prior must be one of normal, realnvp, got 'uniform'",
        "num_prior_couplings must be at least 1, got 0",
        "prior_hidden_size must be at least 1, got 0",
        "beta must be a finite number of at least 0, got -1.0",
        "hidden_act must be the name of an activation in transformers, got 'relo'",
        "scaling_factor must be a finite number above 0, got 0.0",
        "shift_factor must be a finite number, got nan",
    ):
        assert problem in str(error.value)


# --------------------------------------------------------------------------------------------- precision and training


@LIKELIHOODS
@LATENT_TYPES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_works_in_any_precision_on_images_of_any(likelihood: str, latent_type: str, dtype: torch.dtype) -> None:
    model = tiny_model(likelihood=likelihood, latent_type=latent_type, num_labels=2, num_residual_blocks=1)
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
    model = tiny_model(likelihood=likelihood, num_residual_blocks=1).train()
    images, noise = random_images(model), random_noise(model)

    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, noise=noise)
        likelihoods = model.log_likelihood(images, 2)
    output.loss.backward()

    assert output.loss.dtype == likelihoods.dtype == torch.float32
    torch.testing.assert_close(output.loss, model(images, noise=noise).loss, rtol=0.03, atol=0)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@LIKELIHOODS
@LATENT_TYPES
def test_every_parameter_learns(likelihood: str, latent_type: str) -> None:
    """A parameter without a gradient would also stop DistributedDataParallel."""
    model = tiny_model(likelihood=likelihood, latent_type=latent_type, num_labels=2, num_residual_blocks=1).train()

    model(random_images(model, 8), torch.arange(8) % 2).loss.backward()

    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def residual_blocks(model: VAEModel) -> list[ResidualBlock]:
    return [module for module in model.modules() if isinstance(module, ResidualBlock)]


@LATENT_TYPES
def test_a_fresh_model_starts_with_identity_blocks_and_next_to_the_prior(latent_type: str) -> None:
    torch.manual_seed(0)
    fields = {"num_residual_blocks": 2, "latent_type": latent_type, "prior": "normal", "likelihood": "gaussian"}
    model = VAEModel(VAEConfig(**fields))
    blocks = residual_blocks(model)
    hidden_states = torch.randn(1, 32, 4, 4)

    assert len(blocks) == 8
    assert torch.equal(blocks[0](hidden_states), hidden_states)
    kl_per_latent = model(random_images(model)).kl_loss / math.prod(model.config.latent_shape)
    assert kl_per_latent < 0.02
    assert not model.log_scale.any()


# ------------------------------------------------------------------------------------------------- saving and loading


def forget(folder: Path, *names: str) -> dict[str, Tensor]:
    """Takes weights out of a saved model and returns the remaining ones."""
    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name not in names}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return kept


@LIKELIHOODS
@LATENT_TYPES
def test_a_saved_model_gives_the_same_outputs(tmp_path: Path, likelihood: str, latent_type: str) -> None:
    model = tiny_model(likelihood=likelihood, latent_type=latent_type, num_labels=2, num_residual_blocks=1)
    images, labels, noise = random_images(model), torch.tensor([0, 1]), random_noise(model)
    model.save_pretrained(tmp_path)

    loaded = VAEModel.from_pretrained(tmp_path)

    assert not loaded.training
    expected, output = model(images, labels, noise), loaded(images, labels, noise)
    assert all(torch.equal(output[name], expected[name]) for name in expected)
    assert torch.equal(loaded.sample(3, generator=seeded()), model.sample(3, generator=seeded()))


def test_weights_that_are_missing_are_initialized_and_the_others_kept(tmp_path: Path) -> None:
    tiny_model(likelihood="gaussian", num_residual_blocks=1, hidden_size=512).save_pretrained(tmp_path)
    kept = forget(
        tmp_path, "log_scale", "encoder.to_latents.weight", "encoder.stages.0.1.conv2.weight", "decoder.hidden.weight"
    )

    loaded = VAEModel.from_pretrained(tmp_path)

    assert not loaded.log_scale.any() and not loaded.encoder.stages[0][1].conv2.weight.any()
    assert loaded.encoder.stages[0][1].conv1.weight.any()
    assert loaded.encoder.to_latents.weight.std().item() == pytest.approx(0.1 / math.sqrt(512), rel=0.1)
    assert loaded.decoder.hidden.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.1)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in kept.items())


OLD = {
    "image_size": [8, 8], "num_channels": 1, "hidden_channels": [2, 3], "hidden_size": 5, "latent_dim": 2,
    "latent_type": "vector", "likelihood": "bernoulli", "beta": 1.0, "model_type": "hfgen_vae",
    "architectures": ["VAEModel"],
}  # fmt: skip


def test_a_checkpoint_from_before_the_learned_prior_is_the_network_that_it_was(tmp_path: Path) -> None:
    """With ReLU and N(0, I), and no word of either in its config.json."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(1, 2, 4, stride=2, padding=1), nn.Conv2d(2, 3, 4, stride=2, padding=1)]
    linears = [nn.Linear(12, 5), nn.Linear(5, 4), nn.Linear(2, 5), nn.Linear(5, 12)]
    ups = [nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1), nn.ConvTranspose2d(2, 1, 4, stride=2, padding=1)]
    names = ["encoder.stages.0.0", "encoder.stages.1.0", "encoder.hidden", "encoder.to_latents",
             "decoder.from_latents", "decoder.hidden", "decoder.stages.0.0", "decoder.stages.1.0"]  # fmt: skip
    weights = {}
    for name, layer in zip(names, [*convs, *linears, *ups], strict=True):
        weights |= {f"{name}.{kind}": value.detach() for kind, value in layer.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    images, noise = torch.rand(3, 1, 8, 8), torch.randn(3, 2)
    x = 2 * images - 1
    for conv in convs:
        x = F.relu(conv(x))
    posterior = DiagonalGaussianDistribution(linears[1](F.relu(linears[0](x.flatten(1)))))
    x = linears[3](F.relu(linears[2](posterior.sample(noise=noise)))).unflatten(1, (3, 2, 2))
    for up in ups:
        x = up(F.relu(x))

    model, report = VAEModel.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(report.values()), report
    output = model(images, noise=noise)
    torch.testing.assert_close(output.reconstruction, x.sigmoid())
    torch.testing.assert_close(output.kl_loss, posterior.kl().mean())
    model.save_pretrained(tmp_path / "again")
    again = VAEModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again(images, noise=noise).loss, output.loss)
    assert (again.config.prior, again.config.hidden_act) == ("normal", "relu")
