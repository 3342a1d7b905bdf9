"""A step for one position gives the logits of a whole forward pass, whatever the architecture, padding and length."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from hfgen.models import gpt_step
from hfgen.models.cache_name import CACHE
from hfgen.models.gpt_step import GPTStep
from hfgen.models.modeling_gpt import GPTForCausalLM

from .tiny_gpt import (
    GPT2_SHAPE,
    LLAMA_SHAPE,
    MODERN,
    left_padded,
    positions_without_padding,
    random_tokens,
    tiny_model,
)


EVERY_SHAPE = pytest.mark.parametrize(
    "shape",
    [
        MODERN,
        GPT2_SHAPE,
        LLAMA_SHAPE,
        {"norm_type": "layernorm", "use_bias": True, "num_key_value_heads": 1},
        {"norm_type": "layernorm"},
        {"position_embedding": "learned", "num_key_value_heads": 2, "head_dim": 4},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}},
    ],
    ids=["modern", "gpt2", "llama", "layernorm-biased-one-key", "layernorm", "learned-normalized", "linear-rope"],
)


# Packed matrices have single precision. Elsewhere, errors must be those of double precision.
PRECISIONS = {False: (torch.float64, 1e-9), True: (torch.float32, 2e-5)}
HAS_PACKED = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture(params=[False, True], ids=["columns", "packed"])
def is_packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of multiplying, whichever is faster here."""
    if request.param and not HAS_PACKED:
        pytest.skip("this build of torch has no packed linear layers")
    monkeypatch.setattr(gpt_step, "_packing_is_faster", lambda *_: request.param)
    return request.param


def prompts(lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """With positions that count from each text's first token."""
    batch = left_padded([random_tokens(length, seed=length) for length in lengths])
    return {**batch, "position_ids": positions_without_padding(batch["attention_mask"])}


def cache_of(model: GPTForCausalLM, batch: dict[str, Tensor]) -> DynamicCache:
    """What a forward pass over the prompt leaves."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**batch, **{CACHE: cache})
    return cache


def stepped_logits(model: GPTForCausalLM, batch: dict[str, Tensor], following: Tensor) -> Tensor:
    """(batch, steps, vocabulary), step by step."""
    step = GPTStep(model, cache_of(model, batch), batch["attention_mask"], batch["position_ids"][:, -1] + 1)
    return torch.stack([step(tokens) for tokens in following.T], dim=1)


def logits_at_once(model: GPTForCausalLM, batch: dict[str, Tensor], following: Tensor) -> Tensor:
    """The same by one forward pass over all tokens."""
    mask = F.pad(batch["attention_mask"], (0, following.shape[1]), value=1)
    input_ids = torch.cat((batch["input_ids"], following), dim=1)
    with torch.no_grad():
        logits = model(input_ids, attention_mask=mask, position_ids=positions_without_padding(mask)).logits
    return logits[:, -following.shape[1] :]


@EVERY_SHAPE
@pytest.mark.parametrize("lengths", [(6,), (6, 6), (7, 4, 1)], ids=["alone", "together", "padded"])
def test_steps_give_the_logits_of_one_forward(
    shape: dict[str, object], lengths: tuple[int, ...], is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also past the room that is set aside at first."""
    monkeypatch.setattr(gpt_step, "SPARE", 3)
    dtype, error = PRECISIONS[is_packed]
    model = tiny_model(**shape).to(dtype)
    following = random_tokens(len(lengths), 25, seed=9)

    stepped = stepped_logits(model, prompts(lengths), following)

    torch.testing.assert_close(stepped, logits_at_once(model, prompts(lengths), following), rtol=error, atol=error)


@EVERY_SHAPE
@pytest.mark.parametrize("lengths", [(6,), (7, 4, 1)], ids=["alone", "padded"])
def test_large_matrices_are_not_copied(
    shape: dict[str, object], lengths: tuple[int, ...], is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpt_step, "MOST_COPIED", 0)
    dtype, error = PRECISIONS[is_packed]
    model = tiny_model(**shape).to(dtype)
    batch, following = prompts(lengths), random_tokens(len(lengths), 4, seed=9)

    step = GPTStep(model, cache_of(model, batch), batch["attention_mask"], batch["position_ids"][:, -1] + 1)
    stepped = torch.stack([step(tokens) for tokens in following.T], dim=1)

    assert step.to_logits.weight is model.lm_head.weight
    own = [layer.self_attn.v_proj.weight for layer in model.model.layers]
    assert all(layer.projections[2].weight is weight for layer, weight in zip(step.layers, own, strict=True))
    torch.testing.assert_close(stepped, logits_at_once(model, batch, following), rtol=error, atol=error)


@pytest.mark.skipif(not HAS_PACKED, reason="this build of torch has no packed linear layers")
def test_what_is_faster_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else the same seed might write another text when the machine is busy."""
    times = iter([0.6, 1.0, 0.9, 1.0])
    monkeypatch.setattr(gpt_step, "_seconds", lambda *_: next(times))
    monkeypatch.setattr(gpt_step, "_MEASURED", {})

    ways = [step_for(texts) for texts in (1, 1, 2, 2)]

    assert ways == ["_PackedProduct"] * 2 + ["_Product"] * 2


@pytest.mark.skipif(not HAS_PACKED, reason="this build of torch has no packed linear layers")
def test_nothing_is_packed_for_a_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take longer than they do."""
    monkeypatch.setattr(gpt_step, "_packing_is_faster", lambda *_: True)
    assert (step_for(texts=2, steps=15), step_for(texts=2, steps=16)) == ("_Product", "_PackedProduct")


@pytest.mark.parametrize("missing", [AttributeError, RuntimeError])
def test_nothing_is_packed_by_a_torch_without_the_operators(
    missing: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def product(*_: object) -> Tensor:
        raise missing("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(gpt_step._PackedProduct, "__init__", product)
    monkeypatch.setattr(gpt_step, "_MEASURED", {})
    assert step_for(texts=2) == "_Product"


def step_for(texts: int, steps: float = math.inf) -> str:
    """The kind of product in a step for as many texts."""
    model = tiny_model()
    step = GPTStep(model, cache_of(model, prompts((6,) * texts)), None, torch.tensor([6]), steps)
    return type(step.to_logits).__name__


def test_small_vectors_are_normalized_as_in_forward() -> None:
    """There the number that is added to the mean square counts as much as the mean square itself."""
    model = tiny_model(norm_eps=1.0).double()
    batch, following = prompts((5,)), random_tokens(1, 4)

    stepped = stepped_logits(model, batch, following)

    torch.testing.assert_close(stepped, logits_at_once(model, batch, following), rtol=1e-9, atol=1e-9)


def test_one_position_serves_all_texts_of_a_batch() -> None:
    model = tiny_model().double()
    batch, following = prompts((5, 5)), random_tokens(2, 4)
    expected = stepped_logits(model, batch, following)

    actual = stepped_logits(model, {**batch, "position_ids": batch["position_ids"][:1]}, following)

    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
