"""Optimizers, schedules and averages against torch's, transformers' and closed forms."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from hfgen import (
    AutoencoderConfig,
    AutoencoderModel,
    CodecConfig,
    CodecModel,
    GANConfig,
    GANModel,
    GPTConfig,
    GPTForCausalLM,
    LadderVAEConfig,
    LadderVAEModel,
    VAEConfig,
    VAEModel,
)
from training.config.flags import RunArguments
from training.optim import EMA, GradientLimit, build_optimizer, learning_rate_schedule


SMALL_GPT = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "max_position_embeddings": 8}  # fmt: skip
SMALL_IMAGES: dict[str, Any] = {"image_size": [8, 8], "latent_dim": 4}


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    image = {**SMALL_IMAGES, "hidden_channels": [4, 8], "hidden_size": 16}
    return {
        "autoencoder": AutoencoderModel(AutoencoderConfig(**image)),
        "vae": VAEModel(VAEConfig(**image, num_labels=3, num_residual_blocks=1)),
        "ladder_vae": LadderVAEModel(LadderVAEConfig(**image, num_labels=3, num_prior_couplings=2)),
        "codec": CodecModel(CodecConfig(image_size=8, hidden_channels=[4, 8], latent_dim=4)),
        "gan": GANModel(GANConfig(**SMALL_IMAGES, generator_channels=[8, 4], num_labels=3)),
        "gpt": GPTForCausalLM(GPTConfig(**SMALL_GPT)),
        "gpt-tied": GPTForCausalLM(GPTConfig(**SMALL_GPT, tie_word_embeddings=True)),
        "gpt-2": GPTForCausalLM(
            GPTConfig(**SMALL_GPT, use_bias=True, norm_type="layernorm", position_embedding="learned")
        ),
    }


NAMES = ["autoencoder", "vae", "ladder_vae", "codec", "gan", "gpt", "gpt-tied", "gpt-2"]


def optimizer_of(module: nn.Module, run: RunArguments) -> torch.optim.Optimizer:
    return build_optimizer(module, run, run.learning_rate)


def set_gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def groups_by_name(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_exactly_one_group(name: str, optimizer: str) -> None:
    module = models()[name]
    groups = groups_by_name(optimizer_of(module, RunArguments(optimizer=optimizer)), module)
    everything = [parameter for group in groups for parameter in group]
    assert sorted(everything) == sorted(parameter for parameter, _ in module.named_parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", NAMES)
def test_embeddings_norms_and_biases_are_not_decayed(name: str, optimizer: str) -> None:
    module = models()[name]
    run = RunArguments(optimizer=optimizer, weight_decay=0.125)
    embeddings = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Embedding)}
    for group in optimizer_of(module, run).param_groups:
        for parameter, value in module.named_parameters():
            if any(value is member for member in group["params"]):
                plain = value.ndim < 2 or parameter in embeddings
                assert group["weight_decay"] == (0.0 if plain else 0.125), parameter


@pytest.mark.parametrize("name", ["gpt", "gpt-tied", "gpt-2"])
def test_muon_takes_hidden_matrices_and_neither_embeddings_nor_head(name: str) -> None:
    module = models()[name]
    first, *_ = groups_by_name(optimizer_of(module, RunArguments(optimizer="muon")), module)
    assert first == {n for n, p in module.named_parameters() if ".layers." in n and p.ndim == 2}
    assert len(first) == 2 * 6


def test_muon_takes_convolutions_between_features_and_not_those_at_the_ends() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 64, 5), nn.Conv2d(64, 32, 3), nn.Conv2d(32, 32, 3, groups=32), nn.ConvTranspose2d(32, 8, 2),
        nn.Conv2d(8, 4, 3),
    )  # fmt: skip
    first, *_ = groups_by_name(optimizer_of(module, RunArguments(optimizer="muon")), module)
    assert first == {"1.weight", "3.weight"}


def test_frozen_parameters_are_left_out() -> None:
    module = models()["vae"]
    module.encoder.requires_grad_(False)
    for optimizer in ("adamw", "muon"):
        groups = groups_by_name(optimizer_of(module, RunArguments(optimizer=optimizer)), module)
        assert set().union(*groups) == {n for n, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("norm, limit", [(0.0, 40.0), (30.0, 30.0), (50.0, 40.0)])
def test_gradients_are_limited_to_a_multiple_of_the_median_of_the_last_hundred(norm: float, limit: float) -> None:
    gradients = GradientLimit(norm, ratio=10.0)
    for value in [1e6] * 30 + [3.0] * 40 + [4.0] * 30 + [5.0] * 30:  # the first thirty are forgotten
        gradients.record(torch.tensor(value))
    assert gradients.next() == limit
    for value in [math.inf, math.nan, 4000.0]:
        gradients.record(torch.tensor(value))
    assert gradients.next() == limit and list(gradients.norms)[-2:] == [5.0, 4000.0]


def test_gradients_are_limited_by_their_median_only_once_it_says_something() -> None:
    gradients = GradientLimit(norm=0.0, ratio=2.0)
    for value in [1.0, 1.0, 1.0, 1.0]:
        gradients.record(torch.tensor(value))
        assert gradients.next() == math.inf
    gradients.record(torch.tensor(1.0))
    assert gradients.next() == 2.0
    for _ in range(100):
        gradients.record(torch.tensor(0.0))
    assert gradients.next() == math.inf  # and not 0, from which no gradient would come back


def test_a_gradient_limit_without_a_ratio_remembers_nothing() -> None:
    gradients = GradientLimit(norm=0.0, ratio=0.0)
    for _ in range(10):
        gradients.record(torch.tensor(1.0))
    assert gradients.next() == math.inf and not gradients.norms
    assert GradientLimit(norm=3.0, ratio=0.0).next() == 3.0


SCHEDULES = ["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt",
             "warmup_stable_decay"]  # fmt: skip


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_equals_transformers_at_the_same_fraction_of_the_run(name: str, warmup_ratio: float) -> None:
    steps = 1000
    factor = learning_rate_schedule(name, warmup_ratio)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    specific: dict[str, Any] | None = {"num_decay_steps": steps // 5} if name == "warmup_stable_decay" else None
    if name == "inverse_sqrt" and not warmup_ratio:  # a tenth of the run, as there is no warmup to take it from
        specific = {"timescale": steps // 10}
    warmup = round(steps * warmup_ratio)
    scheduler = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=specific)
    for step in range(steps + 1):
        assert factor(step / steps) == pytest.approx(scheduler.get_last_lr()[0], abs=2e-7), step
        optimizer.step()
        scheduler.step()


def test_schedule_with_a_long_warmup_has_no_jump() -> None:
    factor = learning_rate_schedule("warmup_stable_decay", 0.9)
    values = [factor(step / 1000) for step in range(1001)]
    assert max(abs(a - b) for a, b in itertools.pairwise(values)) < 0.02
    assert values[900] == pytest.approx(1.0) and values[-1] == pytest.approx(0.0, abs=1e-6)


def test_moving_average_is_its_closed_form() -> None:
    """With decays d_t = min(decay, t / (t + 9)): mean_T = sum_t w_t (1 - d_t) prod_{s > t} d_s + w_0 prod d."""
    model = models()["gpt"]
    average = EMA(model, copy.deepcopy(model), decay=0.3)  # reached at step 4
    history = [model.model.norm.weight.detach().clone()]
    for step in range(1, 9):
        with torch.no_grad():
            model.model.norm.weight.normal_(generator=torch.Generator().manual_seed(step))
        history.append(model.model.norm.weight.detach().clone())
        average.update(step)
    decays = [min(0.3, step / (step + 9)) for step in range(1, 9)]
    expected = torch.zeros_like(history[0])
    for step, weights in enumerate(history):
        own = 1.0 if step == 0 else 1 - decays[step - 1]
        expected += own * torch.tensor(decays[step:]).prod() * weights
    torch.testing.assert_close(average.updated_model().model.norm.weight, expected)


def test_first_update_of_the_average_forgets_most_of_the_initial_weights() -> None:
    model = models()["vae"]
    average = EMA(model, copy.deepcopy(model), decay=0.999)
    first = model.decoder.hidden.weight.detach().clone()
    with torch.no_grad():
        model.decoder.hidden.weight.add_(1.0)
    average.update(1)
    torch.testing.assert_close(average.model.decoder.hidden.weight, first + 0.9)


def test_average_of_a_prefix_copies_the_rest_when_published() -> None:
    model = models()["gan"].train()
    average = EMA(model, copy.deepcopy(model), decay=0.5, prefixes=("generator.",))
    start = copy.deepcopy(model.state_dict())
    model(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))  # moves running statistics, counts a batch
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.update(1)
    now, published = model.state_dict(), average.updated_model().state_dict()
    assert set(published) == set(now)
    counted = 0
    for name, value in published.items():
        if name.endswith("num_batches_tracked"):
            counted += 1
            assert value == now[name] == 1
        elif name.startswith("generator."):
            torch.testing.assert_close(value, start[name].lerp(now[name], 0.9))
        else:
            assert torch.equal(value, now[name]), name
    assert counted
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())
    assert not any(p is q for p, q in zip(model.parameters(), average.model.parameters()))


def test_average_keeps_tied_weights_tied() -> None:
    model = models()["gpt-tied"]
    average = EMA(model, copy.deepcopy(model), decay=0.5)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    average.update(1)
    published = average.updated_model()
    assert published.get_output_embeddings().weight is published.get_input_embeddings().weight


def test_prefix_that_no_weight_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prefixes.*decoderr"):
        EMA(models()["vae"], models()["vae"], 0.5, prefixes=("decoderr.",))
