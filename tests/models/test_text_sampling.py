"""Texts of any length from a GPT: what `sample` writes beside what windows of the context give, and when it ends."""

import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from hfgen.models.modeling_gpt import GPTForCausalLM
from hfgen.tokenization import build_character_tokenizer

from .tiny_gpt import GPT2_SHAPE, SHAPES, random_tokens, tiny_model


def character_tokenizer(characters: str = "ab\n", **special: str) -> PreTrainedTokenizerFast:
    """A token for each character, from 0 on; it drops what it does not know."""
    backend = Tokenizer(BPE({character: i for i, character in enumerate(characters)}, []))
    backend.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


ALPHABET = "".join(map(chr, range(ord("A"), ord("A") + 61)))  # a character for each token of tiny_model


def greedy_by_windows(model: GPTForCausalLM, tokens: list[int], count: int) -> list[int]:
    """What `sample` does at temperature 0, in the plainest way: a forward pass a token, without a cache."""
    context = model.config.max_position_embeddings
    window = tokens[-(context // 2) :] if len(tokens) >= context else tokens
    written: list[int] = []
    while len(written) < count:
        if len(window) == context:
            window = window[-(context // 2) :]
        with torch.no_grad():
            window = [*window, int(model(torch.tensor([window]), use_cache=False).logits[0, -1].argmax())]
        written.append(window[-1])
    return written


@SHAPES
@pytest.mark.parametrize("prompt_length", [1, 7, 15, 16, 40])
def test_sample_continues_any_text_to_any_length(shape: dict[str, object], prompt_length: int) -> None:
    """Also with learned positions, past which a forward pass is an error."""
    model = tiny_model(**{**shape, "tie_word_embeddings": False}, max_position_embeddings=16)
    prompt = random_tokens(prompt_length).tolist()
    expected = [*prompt, *greedy_by_windows(model, prompt, 50)]

    text = model.sample(character_tokenizer(ALPHABET), "".join(ALPHABET[i] for i in prompt), 50, temperature=0)

    assert len(set(expected[prompt_length:])) > 3
    assert text == "".join(ALPHABET[i] for i in expected)


def test_sample_with_a_context_of_one_token_follows_the_likeliest_next() -> None:
    model = tiny_model(max_position_embeddings=1)
    token, expected = 5, [5]
    for _ in range(6):
        token = int(model(torch.tensor([[token]])).logits[0, -1].argmax())
        expected.append(token)

    assert model.sample(character_tokenizer(ALPHABET), ALPHABET[5], 6, temperature=0) == "".join(
        ALPHABET[i] for i in expected
    )


def test_sample_draws_from_the_softmax_at_the_temperature() -> None:
    model = tiny_model(vocab_size=3, initializer_range=0.1)
    logits = model(torch.tensor([[0]])).logits[0, -1]
    torch.manual_seed(0)

    drawn = [model.sample(character_tokenizer(), "a", 1, temperature=0.5)[1] for _ in range(600)]

    frequencies = torch.tensor([drawn.count(character) / 600 for character in "ab\n"])
    expected = (logits / 0.5).softmax(-1)
    deviation = (expected * (1 - expected) / 600).sqrt()
    assert ((frequencies - expected).abs() < 4 * deviation).all() and (expected > 0.05).sum() > 1


def test_sample_is_repeatable_and_follows_the_generation_config() -> None:
    model = tiny_model(max_position_embeddings=16)
    tokenizer = character_tokenizer(ALPHABET)
    model.generation_config.update(do_sample=True, temperature=0.7)

    def drawn(temperature: float | None) -> str:
        torch.manual_seed(1)
        return model.sample(tokenizer, "A", 40, temperature=temperature)

    assert drawn(None) == drawn(None) == drawn(0.7) != drawn(1.4)
    assert drawn(0) == model.sample(tokenizer, "A", 40, temperature=0)


def test_sample_ignores_a_length_in_the_generation_config() -> None:
    """Older models were published with max_new_tokens, which beats a max_length."""
    tokenizer = character_tokenizer(ALPHABET)
    for length in ({"max_new_tokens": 200, "min_new_tokens": 3, "return_dict_in_generate": True}, {"max_length": 16}):
        model = tiny_model(**GPT2_SHAPE, max_position_embeddings=16)
        model.generation_config.update(**length)
        assert len(model.sample(tokenizer, "ABC", 30, temperature=0)) == 33


def ending_model(**fields: object) -> GPTForCausalLM:
    """It always ends the text: "b", token 1, is its end of text; "a" comes second."""
    model = tiny_model(vocab_size=3, max_position_embeddings=8, tie_word_embeddings=True, **fields)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.lm_head.weight.copy_(torch.tensor([[2.0], [3.0], [1.0]]).expand(3, 32))
        model.model.norm.weight.fill_(1.0)
    return model


@pytest.mark.parametrize("end", [1, [2, 1]])
def test_sample_stops_where_the_model_ends_the_text(end: int | list[int]) -> None:
    model = ending_model()
    model.generation_config.eos_token_id = end
    tokenizer = character_tokenizer(eos_token="b")

    assert model.sample(tokenizer, "aa", 20, temperature=0) == "aa"
    assert model.sample(tokenizer, "aa", 20, min_new_tokens=15, temperature=0) == "a" * 17
    model.generation_config.eos_token_id = None
    assert model.sample(character_tokenizer(), "aa", 20, temperature=0) == "aa" + "b" * 20


@pytest.mark.parametrize(
    ("start", "tokenizer", "configured"),
    [
        ("B", {"bos_token": "A", "eos_token": "C"}, 1),
        ("A", {"bos_token": "A", "eos_token": "C"}, None),
        ("C", {"eos_token": "C"}, None),
        ("\n", {}, None),
    ],
)
@pytest.mark.parametrize("prompt", ["", "\t"])  # the tokenizer drops a tab
def test_empty_prompt_starts_where_an_empty_page_does(
    start: str, tokenizer: dict[str, str], configured: int | None, prompt: str
) -> None:
    characters = ALPHABET[:-1] + "\n"
    model = tiny_model(max_position_embeddings=16)
    model.generation_config.bos_token_id = configured
    written = greedy_by_windows(model, [characters.index(start)], 30)

    text = model.sample(character_tokenizer(characters, **tokenizer), prompt, 30, temperature=0)

    special = tokenizer.values()
    assert text == "".join(characters[i] for i in written if characters[i] not in special)


def test_empty_prompt_without_any_token_to_start_with_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prompt must hold a token, got none.*Give a prompt"):
        tiny_model().sample(character_tokenizer(ALPHABET), "", 5)


def test_what_looks_like_a_special_token_in_a_prompt_is_text() -> None:
    model = tiny_model(vocab_size=256)
    tokenizer = build_character_tokenizer("abc")
    prompt = tokenizer("<|endoftext|>", split_special_tokens=True)["input_ids"]
    assert len(prompt) == len("<|endoftext|>")

    text = model.sample(tokenizer, "<|endoftext|>", 5, 5, temperature=0)

    expected = tokenizer.decode([*prompt, *greedy_by_windows(model, prompt, 5)], skip_special_tokens=True)
    assert text == expected and text.startswith("<|endoftext|>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.5}, "temperature must be at least 0 and finite, got -0.5"),
        ({"temperature": math.inf}, "temperature must be .* got inf"),
        ({"temperature": math.nan}, "temperature must be .* got nan"),
    ],
)
def test_sample_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model().sample(character_tokenizer(), "a", **arguments)
