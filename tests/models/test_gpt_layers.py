"""The layers of a GPT beside analytic answers and torch's own."""

import math

import pytest
import torch
import torch.nn.functional as F

from hfgen.models.gpt_layers import GPTRMSNorm, GPTRotaryEmbedding, rotate

from .tiny_gpt import randomized, tiny_config


def test_rotate_turns_each_pair_by_position_times_frequency() -> None:
    rotary = GPTRotaryEmbedding(tiny_config(hidden_size=16, rope_theta=100.0))  # heads of 4, two pairs
    position = 3

    cos, sin = rotary(torch.tensor([[position]]), torch.float32)
    turned = rotate(torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4), cos, sin).flatten()

    first, second = position * 1.0, position * 100.0**-0.5  # frequencies theta^0 and theta^(-2/4)
    expected = [math.cos(first), -math.sin(second), math.sin(first), math.cos(second)]
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_rotary_scores_depend_only_on_the_distance() -> None:
    rotary = GPTRotaryEmbedding(tiny_config())
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).double()

    def score(query_position: int, key_position: int) -> float:
        cos, sin = rotary(torch.tensor([[query_position, key_position]]), torch.float64)
        turned_query = rotate(query, cos[:, :, :1], sin[:, :, :1])
        turned_key = rotate(key, cos[:, :, 1:], sin[:, :, 1:])
        return float((turned_query * turned_key).sum())

    assert score(5, 2) == pytest.approx(score(103, 100), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-2)
    assert score(7, 7) == pytest.approx(float((query * key).sum()), abs=1e-6)


def test_rmsnorm_equals_that_of_torch_with_its_gradients() -> None:
    norm = GPTRMSNorm(16, eps=1e-3)
    randomized(norm)
    x = torch.randn(3, 5, 16, requires_grad=True)
    inputs = (x, norm.weight)
    upstream = torch.randn(3, 5, 16)

    expected = F.rms_norm(x, (16,), norm.weight, 1e-3)
    actual = norm(x)

    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad(actual, inputs, upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs, upstream))
    assert norm(torch.zeros(1, 16, requires_grad=True)).isfinite().all()
