"""Muon against singular value decompositions, torch's Muon and torch's AdamW."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hfgen import GPTConfig, GPTForCausalLM
from training import muon
from training.config.flags import RunArguments
from training.muon import POLAR_EXPRESS, MuonWithAdamW, orthogonalize
from training.optim import build_optimizer


def polynomials(values: Tensor) -> Tensor:
    for a, b, c in POLAR_EXPRESS:
        values = a * values + b * values**3 + c * values**5
    return values


def random_matrices(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# Square, nearly square, and long ones, whose products are taken on the short side.
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 24), (2, 16, 64), (2, 64, 16), (1, 1, 8)])
def test_orthogonalize_applies_the_polynomials_to_the_singular_values(shape: tuple[int, int, int]) -> None:
    matrices = random_matrices(*shape)
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    norm = 1.01 * s.norm(dim=-1, keepdim=True)
    expected = u @ torch.diag_embed(polynomials(s / norm)) @ v
    torch.testing.assert_close(orthogonalize(matrices).double(), expected, rtol=1e-4, atol=1e-4)


def test_polynomials_bring_all_but_the_smallest_singular_values_near_one() -> None:
    values = polynomials(torch.linspace(0.003, 1 / 1.01, 10_000, dtype=torch.double))
    assert (values - 1).abs().max() < 0.2


@pytest.mark.parametrize("shape", [(4, 32, 32), (4, 32, 128)])
def test_orthogonalize_in_bf16_is_near_the_one_in_fp32(shape: tuple[int, int, int]) -> None:
    matrices = random_matrices(*shape)
    rounded = orthogonalize(matrices.bfloat16()).float()
    difference = (rounded - orthogonalize(matrices)).norm() / orthogonalize(matrices).norm()
    assert difference < 0.05


def gpt() -> GPTForCausalLM:
    torch.manual_seed(0)
    return GPTForCausalLM(
        GPTConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=8)
    )


def set_gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("momentum", [0.95, 0.5])
def test_it_is_torchs_muon_and_torchs_adamw_even_after_a_reload(
    monkeypatch: pytest.MonkeyPatch, momentum: float
) -> None:
    """With the polynomial of torch's Muon, which multiplies in bf16."""
    monkeypatch.setattr(muon, "POLAR_EXPRESS", ((3.4445, -4.775, 2.0315),) * 5)
    ours = gpt()
    theirs = copy.deepcopy(ours)
    run = RunArguments(optimizer="muon", weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, muon_momentum=momentum)
    optimizer = build_optimizer(ours, run, 1e-3)
    assert isinstance(optimizer, MuonWithAdamW)
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    named = dict(theirs.named_parameters())
    decays = [group["weight_decay"] for group in optimizer.param_groups[1:]]
    references: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [named[name] for name in groups[0]], lr=1e-3, weight_decay=0.1, momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [{"params": [named[name] for name in group], "weight_decay": decay}
             for group, decay in zip(groups[1:], decays)],
            lr=1e-3, betas=(0.8, 0.95), fused=True,
        ),
    ]  # fmt: skip
    for step in range(6):
        if step == 3:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = build_optimizer(ours, run, 1e-3)
            optimizer.load_state_dict(state)
        lr = 0.01 / (step + 1)
        for group in [*optimizer.param_groups, *(g for reference in references for g in reference.param_groups)]:
            group["lr"] = lr
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        for reference in references:
            reference.step()
    for name, value in ours.named_parameters():
        if name in groups[0]:
            torch.testing.assert_close(value, named[name], rtol=0, atol=2e-3)  # after moving by 0.02 in all
        else:
            assert torch.equal(value, named[name]), name


def test_muon_refuses_a_closure() -> None:
    with pytest.raises(ValueError, match="closure"):
        build_optimizer(gpt(), RunArguments(optimizer="muon"), 1e-3).step(lambda: 0.0)


def test_a_convolution_moves_as_the_matrix_that_multiplies_its_patches() -> None:
    """A convolution of 1 x 1 pixels with 3 x 3 ones is a linear layer of 9 * channels numbers."""
    convolution = nn.Conv2d(16, 40, 3).to(memory_format=torch.channels_last)
    linear = nn.Linear(16 * 9, 40)
    with torch.no_grad():
        linear.weight.copy_(convolution.weight.flatten(1))
        linear.bias.copy_(convolution.bias)
    run = RunArguments(optimizer="muon", weight_decay=0.1)
    optimizers = [build_optimizer(layer, run, 1e-2) for layer in (convolution, linear)]
    for step in range(3):
        set_gradients(convolution, step)
        linear.weight.grad, linear.bias.grad = convolution.weight.grad.flatten(1), convolution.bias.grad
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(convolution.weight.flatten(1), linear.weight)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
