"""`generate` of a GPT writes what transformers' own loop writes, and leaves to it what is unusual."""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, LogitsProcessor, StoppingCriteria

from hfgen.models.cache_name import CACHE
from hfgen.models.gpt_step import GPTStep
from hfgen.models.modeling_gpt import GPTForCausalLM

from .tiny_gpt import SHAPES, left_padded, random_tokens, tiny_model


GREEDY = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GPTStep]]:
    """Those that calls of generate have made."""
    made: list[GPTStep] = []

    class Recorded(GPTStep):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(GPTForCausalLM, "step_class", Recorded)
    yield made


def by_transformers(model: GPTForCausalLM, *arguments: Any, seed: int | None = None, **settings: Any) -> Any:
    """What generate returns with the loop of transformers itself."""
    if seed is not None:
        torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTForCausalLM, "_sample", GenerationMixin._sample)
        return model.generate(*arguments, **settings)


BATCHES = pytest.mark.parametrize("lengths", [(8,), (8, 8), (8, 3, 1)], ids=["alone", "together", "padded"])


def prompts(lengths: tuple[int, ...]) -> dict[str, Tensor]:
    return left_padded([random_tokens(length, seed=length) for length in lengths])


# ------------------------------------------------------------------------------------------------------- the same text


@SHAPES
@BATCHES
def test_greedy_text_is_that_of_transformers(shape: dict[str, object], lengths: tuple[int, ...], steps: list) -> None:
    model = tiny_model(**shape)

    written = model.generate(**prompts(lengths), **GREEDY)

    assert len(steps) == 1
    assert torch.equal(written, by_transformers(model, **prompts(lengths), **GREEDY))
    assert len(written[0, 8:].unique()) > 3


@BATCHES
def test_the_same_seed_draws_the_same_tokens(lengths: tuple[int, ...], steps: list) -> None:
    """With processors that change the logits, and look at the tokens so far."""
    model = tiny_model()
    settings = {**GREEDY, "do_sample": True, "temperature": 0.9, "top_k": 20, "top_p": 0.9}
    settings |= {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "eos_token_id": 5, "min_new_tokens": 6}
    torch.manual_seed(3)

    written = model.generate(**prompts(lengths), **settings)

    assert len(steps) == 1
    assert torch.equal(written, by_transformers(model, **prompts(lengths), **settings, seed=3))


def test_draws_follow_the_probabilities_of_the_model(steps: list) -> None:
    """Chi-square of 4,000 texts of two tokens: the first is drawn after the forward pass, the second after a step."""
    model, prompt, count = tiny_model(vocab_size=4, initializer_range=0.1), torch.tensor([[1, 3]]), 4000
    pairs = torch.tensor(list(itertools.product(range(4), repeat=2)))
    with torch.no_grad():
        log_probabilities = model(torch.cat((prompt.expand(16, -1), pairs), dim=1)).logits.log_softmax(-1)
    expected = count * log_probabilities[:, 1:3].gather(-1, pairs[..., None]).sum((1, 2)).exp()
    torch.manual_seed(0)

    written = model.generate(prompt, num_return_sequences=count, **{**GREEDY, "do_sample": True, "max_new_tokens": 2})

    found = (written[:, 2] * 4 + written[:, 3]).bincount(minlength=16)
    assert len(steps) == 1
    assert expected.min() > 5 and expected.max() > 2 * expected.min()
    assert float(((found - expected).square() / expected).sum()) < 37.7  # exceeded once in 1,000 times, 15 degrees


def test_texts_that_have_ended_are_padded(steps: list) -> None:
    model = tiny_model()
    batch = prompts((8, 3, 1))
    end = int(model.generate(**batch, **GREEDY)[1, 12])  # of the second text, in the middle

    written = model.generate(**batch, **{**GREEDY, "eos_token_id": [end]})

    assert len(steps) == 2
    assert torch.equal(written, by_transformers(model, **batch, **{**GREEDY, "eos_token_id": [end]}))
    assert (written[1, 13:] == 0).all() and (written[0, 13:] != 0).any()


def test_a_changed_weight_counts_from_the_next_call_on() -> None:
    """Also if nothing records the change, as with `.data`."""
    model, prompt = tiny_model(), random_tokens(1, 8)
    before = model.generate(prompt, **GREEDY)
    for module in (model.model.layers[0].self_attn.k_proj, model.model.layers[1].mlp.up_proj, model.model.norm):
        module.weight.data.neg_()

        after = model.generate(prompt, **GREEDY)

        assert torch.equal(after, by_transformers(model, prompt, **GREEDY)) and not torch.equal(after, before)
        before = after


def test_written_tokens_can_be_trained_on() -> None:
    """Tensors of inference mode cannot."""
    model = tiny_model()
    written = model.generate(random_tokens(1, 8), **GREEDY)

    model(written, labels=written).loss.backward()

    assert model.lm_head.weight.grad is not None


def test_a_single_token_needs_no_step(steps: list) -> None:
    model = tiny_model()

    assert model.generate(random_tokens(1, 8), **{**GREEDY, "max_new_tokens": 1}).shape == (1, 9)
    assert steps == []


# ------------------------------------------------------------------------------------------- what is called on the way


class OnlyEven(LogitsProcessor):
    """Changes the logits in place, and keeps how many tokens it was shown."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.lengths.append(input_ids.shape[1])
        scores[:, 1::2] = -torch.inf
        return scores


class AtLength(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


class Collected:
    """A streamer."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_processors_criteria_and_streamers_are_called(steps: list) -> None:
    model, processor, streamer = tiny_model(), OnlyEven(), Collected()

    written = model.generate(
        random_tokens(1, 8),
        logits_processor=[processor],
        stopping_criteria=[AtLength(20)],
        streamer=streamer,
        **GREEDY,
    )

    assert len(steps) == 1
    assert processor.lengths == list(range(8, 20))
    assert written.shape == (1, 20) and (written[0, 8:] % 2 == 0).all() and len(written[0, 8:].unique()) > 2
    assert streamer.tokens == written[0].tolist() and streamer.ended


# --------------------------------------------------------------------------------------- what transformers' loop does


UNUSUAL_CALLS: dict[str, dict[str, Any]] = {
    "scores": {"return_dict_in_generate": True, "output_scores": True},
    "hidden states": {"return_dict_in_generate": True, "output_hidden_states": True},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "beams": {"num_beams": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "chunks": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("settings", UNUSUAL_CALLS.values(), ids=UNUSUAL_CALLS)
def test_an_unusual_call_is_left_to_transformers(settings: dict[str, Any], steps: list) -> None:
    model, prompt = tiny_model(), random_tokens(1, 8)

    written = model.generate(prompt, **GREEDY, **settings)

    assert steps == []
    expected = by_transformers(model, prompt, **GREEDY, **settings)
    if isinstance(written, dict):
        assert written.keys() == expected.keys()
        written, expected = written.sequences, expected.sequences
    assert torch.equal(written, expected)


def test_a_cache_of_the_caller_holds_all_tokens_afterwards(steps: list) -> None:
    model, prompt = tiny_model(), random_tokens(1, 8)
    cache = DynamicCache(config=model.config)

    written = model.generate(prompt, **GREEDY, **{CACHE: cache})
    longer = model.generate(written, **{**GREEDY, CACHE: cache})

    assert steps == [] and cache.get_seq_length() == 8 + 2 * 24 - 1
    assert torch.equal(longer, by_transformers(model, prompt, **{**GREEDY, "max_new_tokens": 48}))


class Halved(GPTForCausalLM):
    def forward(self, *arguments: Any, **named: Any) -> Any:
        outputs = super().forward(*arguments, **named)
        outputs.logits = outputs.logits * 0.5
        return outputs


class Doubled(torch.nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_hook(model: GPTForCausalLM) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)


def with_replaced_forward(model: GPTForCausalLM) -> None:
    usual = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: 2 * usual(x)


def with_another_layer(model: GPTForCausalLM) -> None:
    model.model.layers[0].self_attn.v_proj.__class__ = Doubled


def with_another_class(model: GPTForCausalLM) -> None:
    model.__class__ = Halved


def with_a_parametrized_weight(model: GPTForCausalLM) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)


def in_half_precision(model: GPTForCausalLM) -> None:
    model.bfloat16()


def partly_in_training(model: GPTForCausalLM) -> None:
    model.model.layers[0].train()


UNUSUAL_MODELS = [with_hook, with_replaced_forward, with_another_layer, with_another_class, with_a_parametrized_weight]
UNUSUAL_MODELS += [in_half_precision, partly_in_training]


@pytest.mark.parametrize("change", UNUSUAL_MODELS)
def test_an_unusual_model_is_left_to_transformers(change: Callable[[GPTForCausalLM], None], steps: list) -> None:
    model, prompt = tiny_model(hidden_dropout=0.0), random_tokens(1, 8)
    changed = copy.deepcopy(model)
    change(changed)

    written = changed.generate(prompt, **GREEDY)

    assert steps == []
    assert torch.equal(written, by_transformers(changed, prompt, **GREEDY))
    model.generate(prompt, **GREEDY)
    assert len(steps) == 1  # the change is what made the difference


def test_autocast_is_left_to_transformers(steps: list) -> None:
    model, prompt = tiny_model(), random_tokens(1, 8)

    with torch.autocast("cpu", torch.bfloat16):
        model.generate(prompt, **GREEDY)

    assert steps == []


def test_a_subclass_that_computes_the_same_is_fast_too(steps: list) -> None:
    class MyGPT(GPTForCausalLM):
        pass

    model = tiny_model()
    model.__class__ = MyGPT

    model.generate(random_tokens(1, 8), **GREEDY)

    assert len(steps) == 1
