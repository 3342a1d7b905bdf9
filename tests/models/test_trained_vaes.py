"""Both VAEs learn handwritten digits with each of the likelihoods: on digits that they have not seen, the evidence
lower bound beats the log-likelihood of a distribution of the same kind that is fitted to every pixel by itself."""

import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from hfgen import LadderVAEConfig, LadderVAEModel, VAEConfig, VAEModel
from hfgen.models.likelihoods import LIKELIHOODS, discretized_logistic_log_prob


BATCH = 64
# Black and white says less in a step than gray.
STEPS = {"bernoulli": 400, "gaussian": 300, "discretized_logistic": 200, "logistic_mixture": 200}


@functools.cache
def digits(likelihood: str) -> tuple[Tensor, Tensor]:
    """1,500 images of 8 x 8 pixels to learn from and 297 others: black and white, or with 256 levels of gray."""
    pixels = torch.from_numpy(load_digits().images).float()[:, None] / 16
    if likelihood == "bernoulli":
        pixels = (pixels > 0.5).float()
    elif likelihood != "gaussian":
        # The scans have 17 levels. Averages over neighbors have many more, as photographs do.
        blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1)), kernel_size=3, stride=1)
        pixels = (255 * blurred / blurred.amax((1, 2, 3), keepdim=True)).round() / 255
    return pixels[:1500], pixels[1500:]


def baseline(likelihood: str) -> float:
    """Negative log-likelihood of the images not seen, nats per image, if pixels are independent of each other."""
    seen, unseen = digits(likelihood)
    mean, std = seen.mean(0), seen.std(0)
    if likelihood == "bernoulli":
        log_prob = Bernoulli(mean.clamp(1e-3, 1 - 1e-3)).log_prob(unseen)
    elif likelihood == "gaussian":
        log_prob = Normal(mean, (seen - mean).square().mean().sqrt()).log_prob(unseen)  # one std, as in the model
    else:
        log_scale = (std * math.sqrt(3) / math.pi).clamp(min=1 / 255).log()  # of the logistic with this std
        log_prob = discretized_logistic_log_prob(unseen, *(t.expand_as(unseen) for t in (mean, log_scale)))
    return -log_prob.flatten(1).sum(1).mean().item()


def new_model(family: str, likelihood: str) -> Any:
    sizes = {"image_size": 8, "hidden_channels": [16, 24], "hidden_size": 64, "latent_dim": 8, "num_mixtures": 5}
    torch.manual_seed(0)
    if family == "vae":
        return VAEModel(VAEConfig(**sizes, likelihood=likelihood))
    return LadderVAEModel(LadderVAEConfig(**sizes, likelihood=likelihood, level_channels=[1, 2]))


def negative_elbo_after_training(family: str, likelihood: str) -> float:
    model = new_model(family, likelihood)
    seen, unseen = digits(likelihood)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS[likelihood]):
        rows = torch.randint(len(seen), (BATCH,), generator=generator)
        loss = model(seen[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
    with torch.no_grad():
        return model.eval()(
            unseen, noise=torch.randn(297, *model.config.latent_shape, generator=generator)
        ).loss.item()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("family", ["vae", "ladder_vae"])
def test_a_few_hundred_steps_beat_independent_pixels(family: str, likelihood: str) -> None:
    # A tenth of the nats. A density's may be negative, so there it is 3 nats, a factor of 20 in the density.
    margin = 3.0 if likelihood == "gaussian" else 0.1 * baseline(likelihood)

    assert negative_elbo_after_training(family, likelihood) < baseline(likelihood) - margin
