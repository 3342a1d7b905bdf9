"""A text as tokens of a model, and back to the last character."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfgen import build_character_tokenizer
from hfgen.compression.text.text_tokens import TextForm, join_text, known_characters, split_text

from ..tiny_gpt import ALPHABET


# A busy machine may be slow to draw examples.
QUICK = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
TOKENIZER = build_character_tokenizer(ALPHABET)
BYTE_LEVEL = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    ),
    clean_up_tokenization_spaces=False,
)
BYTE_LEVEL.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTE_LEVEL.backend_tokenizer.decoder = decoders.ByteLevel()
NANOGPT = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"b": 0, "a": 1, " ": 2}, merges=[])))
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from("ab \r\n“”’—é日\ufeff"))


def shown(form: TextForm) -> str:
    """The text that the model sees."""
    return "".join(np.array([*known_characters(TOKENIZER)])[form.tokens])


@QUICK
@given(TEXTS)
def test_every_text_comes_back(text: str) -> None:
    for tokenizer in (TOKENIZER, NANOGPT, BYTE_LEVEL):
        assert join_text(split_text(text, tokenizer), tokenizer) == text


def test_known_characters_are_those_of_the_training_text() -> None:
    assert known_characters(TOKENIZER) == {character: index for index, character in enumerate(sorted(ALPHABET))}
    assert known_characters(build_character_tokenizer("zä日")) == {"z": 0, "ä": 1, "日": 2}
    assert known_characters(NANOGPT) == {"b": 0, "a": 1, " ": 2}
    assert known_characters(BYTE_LEVEL) == {}


def test_known_text_needs_nothing_else() -> None:
    form = split_text("to be, or not to be:\n", TOKENIZER)
    assert (form.stand_ins, form.has_crlf, form.alphabet_size) == ([], False, len(ALPHABET))
    assert form.tokens.tolist() == [sorted(ALPHABET).index(c) for c in "to be, or not to be:\n"]


@pytest.mark.parametrize(
    "character, stand_in",
    [("’", "'"), ("“", "'"), ("—", "-"), ("é", "e"), ("É", "E"), ("7", "3"), ("½", "3"),
     ("\u00a0", " "), ("\t", " "), ("(", ","), ("…", "."), ("Z", "T"), ("z", "o")],
)  # fmt: skip
def test_a_stand_in_is_like_the_character(character: str, stand_in: str) -> None:
    """Where no form of a character is known, it is the most frequent in the text of the same category."""
    assert shown(split_text(f"To too To{character}", TOKENIZER)) == f"To too To{stand_in}"


def test_stand_ins_remember_which_character_was_meant() -> None:
    form = split_text("it’s 'it', it’s “it”", TOKENIZER)
    assert shown(form) == "it's 'it', it's 'it'"
    (stand_in,) = form.stand_ins
    assert stand_in.token == sorted(ALPHABET).index("'")
    assert (stand_in.characters, stand_in.counts) == ([*map(ord, "’“”")], [2, 1, 1])
    assert form.choices[0].tolist() == [1, 0, 0, 1, 2, 3]
    assert stand_in.weights(6).tolist() == [2, 2, 1, 1]
    with pytest.raises(ValueError, match="must occur 4 times or more, got 3"):
        stand_in.weights(3)


@pytest.mark.parametrize("text, is_crlf", [("a\r\nb\r\n", True), ("a\r\nb\n", False), ("a\rb\r\n", False),
                                           ("a\n\r\n", False), ("ab", False), ("\r\n", True)])  # fmt: skip
def test_line_breaks_of_windows_are_one_character_if_all_are(text: str, is_crlf: bool) -> None:
    for tokenizer in (TOKENIZER, BYTE_LEVEL):
        form = split_text(text, tokenizer)
        assert form.has_crlf == is_crlf and join_text(form, tokenizer) == text
        assert len(form.tokens) == len(text.replace("\r\n", "\n") if is_crlf else text)


def test_a_tokenizer_that_loses_something_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"to": 0, "be": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="must spell the text without loss"):
        split_text("To be", PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?"))


def test_tokens_of_another_tokenizer_are_refused() -> None:
    form = split_text("to be", TOKENIZER)
    with pytest.raises(ValueError, match=r"Tokens must be characters of the model's tokenizer, got \["):
        join_text(form, build_character_tokenizer("ab"))
