"""The objective of the VAEs: warm-up of the KL, free bits and the importance-weighted bound, for both models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hfgen import LadderVAEConfig, LadderVAEModel, VAEConfig, VAEModel
from tests.runs import ONE, TWO, metrics, shared_run
from training.config.scripts import VAEArguments
from training.randomness import BatchRNG
from training.variational import EvidenceLowerBound, VariationalObjective


BATCH = 6
SIZES: dict[str, Any] = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3,
                         "num_prior_couplings": 2, "prior_hidden_size": 8}  # fmt: skip
each_family = pytest.mark.parametrize("family", ["vae", "ladder_vae"])


def tiny_model(family: str, **fields: object) -> Any:
    """In evaluation mode, with weights large enough for every level of latents to carry some nats."""
    torch.manual_seed(0)
    model: Any
    if family == "vae":
        model = VAEModel(VAEConfig(**{**SIZES, "prior": "normal", **fields}))
    else:
        model = LadderVAEModel(LadderVAEConfig(**{**SIZES, "prior": "normal", **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch(size: int = BATCH) -> dict[str, Tensor]:
    return {"pixel_values": torch.randint(2, (size, 1, 8, 8), generator=torch.Generator().manual_seed(1)).float()}


def rng(total: int = BATCH, rows: slice = slice(None)) -> BatchRNG:
    return BatchRNG((0, "draw", 7), total, rows, torch.device("cpu"))


def loss_of(model: Any, progress: float = 0.5, **flags: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return EvidenceLowerBound(model, VAEArguments(**flags))(batch(), rng(), progress)


def terms(model: Any) -> tuple[Tensor, Tensor]:
    """Reconstruction loss, and KL of each level, averaged over the batch, with the noise of these losses."""
    reconstruction, kl = terms_of_images(model)
    return reconstruction.mean(), kl.mean(0)


def terms_of_images(model: Any) -> tuple[Tensor, Tensor]:
    return model.evidence_terms(batch()["pixel_values"], noise=rng().normal(*model.config.latent_shape))


@each_family
def test_loss_is_the_negative_evidence_lower_bound(family: str) -> None:
    model = tiny_model(family)
    reconstruction, kl = terms(model)

    loss, logged = loss_of(model)

    torch.testing.assert_close(loss, reconstruction + kl.sum())
    expected = {"loss": loss, "reconstruction_loss": reconstruction, "kl_loss": kl.sum()}
    assert logged.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(logged[name], value)


def test_without_free_bits_a_kl_that_was_sampled_may_be_negative() -> None:
    """That of a learned prior is log q - log p at one draw."""
    model = tiny_model("ladder_vae", prior="realnvp")
    reconstruction, kl = terms_of_images(model)
    assert kl.min() < 0

    torch.testing.assert_close(loss_of(model)[0], reconstruction.mean() + kl.sum(1).mean())


# ------------------------------------------------------------------------------------------------------ weight of KL


@pytest.mark.parametrize("progress, weight", [(0.0, 0.0), (0.1, 0.25), (0.2, 0.5), (0.4, 1.0), (0.7, 1.0), (1.0, 1.0)])
@each_family
def test_weight_of_the_kl_grows_from_0_to_beta(family: str, progress: float, weight: float) -> None:
    model = tiny_model(family, beta=2.0)
    reconstruction, kl = terms(model)

    loss, logged = loss_of(model, progress, kl_warmup_ratio=0.4)

    torch.testing.assert_close(loss, reconstruction + weight * 2.0 * kl.sum())
    torch.testing.assert_close(logged["kl_loss"], kl.sum())


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_without_warm_up_the_weight_is_beta_all_the_time(progress: float) -> None:
    model = tiny_model("ladder_vae", beta=0.5)
    reconstruction, kl = terms(model)

    torch.testing.assert_close(loss_of(model, progress)[0], reconstruction + 0.5 * kl.sum())


# --------------------------------------------------------------------------------------------------------- free bits


def test_a_level_below_its_free_bits_counts_as_much_as_they_are() -> None:
    model = tiny_model("ladder_vae", num_levels=[1, 2])
    reconstruction, kl = terms_of_images(model)
    bits = kl.quantile(0.5).item()  # between two of them

    loss, logged = loss_of(model, free_bits=bits)

    counted = [sum(max(level, bits) for level in image) for image in kl.tolist()]
    torch.testing.assert_close(loss, reconstruction.mean() + sum(counted) / BATCH)
    torch.testing.assert_close(logged["kl_loss"], kl.sum(1).mean())


def test_a_level_below_its_free_bits_has_no_gradient() -> None:
    """The loss has the gradient of the reconstruction and of the KL of those levels that are above."""
    model = tiny_model("ladder_vae", num_levels=[1, 2])
    bits = terms_of_images(model)[1].quantile(0.5).item()

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    found = gradients(loss_of(model, free_bits=bits)[0])

    reconstruction, kl = terms_of_images(model)
    expected = gradients(reconstruction.mean() + kl[kl > bits].sum() / BATCH)
    for parameter, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(parameter, reference)
    with_all = gradients(loss_of(model)[0])
    assert any(not torch.allclose(parameter, other) for parameter, other in zip(found, with_all))


def test_with_more_free_bits_than_any_level_carries_only_the_reconstruction_is_trained() -> None:
    model, reference = tiny_model("vae"), tiny_model("vae")

    loss_of(model, free_bits=1000.0)[0].backward()
    terms(reference)[0].backward()

    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


# --------------------------------------------------------------------------------------- the importance-weighted bound


@pytest.mark.parametrize("fields", [{}, {"prior": "realnvp"}], ids=["normal prior", "learned prior"])
@each_family
def test_the_importance_weighted_loss_is_minus_the_likelihood_with_its_noise(
    family: str, fields: dict[str, Any]
) -> None:
    model = tiny_model(family, **fields)
    noise = rng().normal(5, *model.config.latent_shape)  # belongs to the examples, so they come first

    loss, logged = loss_of(model, importance_samples=5)
    loss.backward()

    weights = torch.stack([
        model.log_importance_weights(batch()["pixel_values"], 1, noise=noise[:, k][None])[0] for k in range(5)
    ])  # fmt: skip
    torch.testing.assert_close(loss, -weights.double().exp().mean(0).log().mean().float())
    assert logged.keys() == {"loss"}
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@each_family
def test_more_importance_samples_are_a_tighter_bound(family: str) -> None:
    model, images = tiny_model(family), {"pixel_values": batch(1)["pixel_values"].expand(400, -1, -1, -1)}

    def bound(**flags: int) -> float:
        return EvidenceLowerBound(model, VAEArguments(**flags))(images, rng(400), 0.5)[0].item()

    exact = -model.log_likelihood(images["pixel_values"][:1], 50_000).item()
    assert bound() > bound(importance_samples=4) > bound(importance_samples=64) > exact - 0.02


@each_family
def test_the_bound_of_one_sample_is_the_evidence_lower_bound_on_average(family: str) -> None:
    """With one sample, the KL is log q - log p at what was drawn, whose expectation the other loss has in closed
    form."""
    model, draws = tiny_model(family), 4000
    images = batch(1)["pixel_values"]
    noise = torch.randn(draws, 1, *model.config.latent_shape, generator=torch.Generator().manual_seed(3))

    with torch.no_grad():
        weights = model.log_importance_weights(images, draws, noise=noise)[:, 0]
        reconstruction, kl = model.evidence_terms(images.expand(draws, -1, -1, -1), noise=noise[:, 0])

    difference = weights + reconstruction + kl.sum(1)
    assert difference.std() > 0.1
    assert difference.mean().abs() < 4 * difference.std() / draws**0.5


@pytest.mark.parametrize("progress, is_weighted", [(0.0, False), (0.49, False), (0.5, True), (1.0, True)])
def test_importance_start_is_when_the_bound_changes(progress: float, is_weighted: bool) -> None:
    model = tiny_model("ladder_vae")
    flags = {"importance_samples": 3, "kl_warmup_ratio": 0.9, "free_bits": 1.0}

    loss, _ = loss_of(model, progress, importance_start=0.5, **flags)

    # Warm-up and free bits belong to the evidence lower bound alone.
    expected = {"importance_samples": 3} if is_weighted else {"kl_warmup_ratio": 0.9, "free_bits": 1.0}
    torch.testing.assert_close(loss, loss_of(model, progress, **expected)[0])
    assert not torch.allclose(loss_of(model, progress, importance_samples=3)[0], loss_of(model, progress)[0])


@pytest.mark.parametrize("flags", [{}, {"importance_samples": 3}])
@each_family
def test_noise_belongs_to_the_examples(family: str, flags: dict[str, int]) -> None:
    """Half batches have the losses of the whole one."""
    objective = EvidenceLowerBound(tiny_model(family), VAEArguments(**flags))
    pixels = batch()["pixel_values"]

    whole = objective({"pixel_values": pixels}, rng(), 0.5)[0]
    halves = [objective({"pixel_values": pixels[rows]}, rng(rows=rows), 0.5)[0] for rows in (slice(3), slice(3, 6))]

    torch.testing.assert_close(sum(halves) / 2, whole)


# -------------------------------------------------------------------------------------------------------- evaluations


@each_family
def test_an_evaluation_has_weight_1_whatever_beta_and_the_flags_are(family: str) -> None:
    model = tiny_model(family, beta=7.0)
    reconstruction, kl = terms(model)

    values = VariationalObjective.evaluate(None, model, batch(), rng())  # type: ignore[arg-type]

    means = {name: value.mean() for name, value in values.items()}
    torch.testing.assert_close(means["elbo"], -(reconstruction + kl.sum()))
    torch.testing.assert_close(means["kl_loss"], kl.sum())
    levels = {name: value for name, value in means.items() if name.startswith("kl_level_")}
    assert list(levels) == ([] if family == "vae" else ["kl_level_0", "kl_level_1", "kl_level_2"])
    for value, expected in zip(levels.values(), kl):
        torch.testing.assert_close(value, expected)


FLAGS = ["--kl_warmup_ratio", 0.4, "--free_bits", 0.5, "--importance_samples", 3, "--importance_start", 0.6,
         "--nll_samples", 0, "--logging_steps", 1]  # fmt: skip


@each_family
def test_a_training_with_all_of_it_is_the_same_in_one_process_and_in_two(family: str) -> None:
    started = [shared_run(family, *ONE, *FLAGS), shared_run(family, *TWO, *FLAGS, processes=2)]
    one, two = (metrics(run.folder) for run in started)

    assert len(one) == len(two)
    for expected, found in zip(one, two):
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)
    losses = [line for line in one if "learning_rate" in line]
    assert len(losses) == 12 and all(math.isfinite(line["loss"]) for line in losses)
    # The importance-weighted bound has no terms of its own to log.
    assert ["kl_loss" in line for line in losses] == [step < 0.6 * 12 for step in range(12)]
