"""Which tokens is a text? A text as ids that a model was trained on, and what it takes to restore the rest.

    form = split_text(text, tokenizer)      # form.tokens is what the model predicts
    join_text(form, tokenizer) == text      # to the last character

With a character tokenizer, a text may hold characters that the model never saw, such as the digits and curly quotes in
a book for a model of Shakespeare. Each is replaced by a similar character that it did see, the stand-in, so that the
model meets a text of the kind that it knows. Which of the characters behind a stand-in is meant is stored beside the
tokens: with few or no bits, since where a book writes ’, it seldom writes '.

Any other tokenizer must be able to spell the text, or the text is refused.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...tokenization import encode_corpus


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CODE_POINT = np.dtype("<u4")
# Characters whose decomposition (NFKD) does not begin with the character that people type for them.
_TYPED_AS = {
    **dict.fromkeys("‘’‚‛′`´ʼ", "'"),
    **dict.fromkeys("“”„‟″«»\"", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    "æ": "a", "Æ": "A", "ø": "o", "Ø": "O", "œ": "o", "Œ": "O", "ß": "s", "ð": "d", "þ": "t",
    '"': "'", "\t": " ", "\r": "\n", "(": ",", ")": ",", "/": "-", "_": "-", "*": "-",
}  # fmt: skip


@dataclass
class StandIn:
    """A token that stands for several characters, each as often as `counts` says.

    Attributes:
        token: the id of the stand-in.
        characters: code points that it stands for, ascending, besides its own.
        counts: how often each occurs in the text.
    """

    token: int
    characters: list[int]
    counts: list[int]

    def weights(self, occurrences: int) -> np.ndarray:
        """How often the token is its own character, and how often each of the others.

        Raises:
            ValueError: they occur more often than the token.
        """
        own = occurrences - sum(self.counts)
        if own < 0:
            raise ValueError(f"Token {self.token} must occur {sum(self.counts)} times or more, got {occurrences}.")
        return np.array([own, *self.counts], np.int64)


@dataclass
class TextForm:
    """A text as a model predicts it.

    Attributes:
        tokens: (tokens,), the ids.
        alphabet_size: ids are below it; at least 2.
        is_characters: each token is the character that its id names in the tokenizer's vocabulary.
        has_crlf: each line break of the text is two characters, "\\r\\n", and one in the tokens.
        stand_ins: tokens that stand for other characters too, in the order of their ids.
        choices: for each of `stand_ins`, which character each of its occurrences is, (occurrences,): 0 is its own.
    """

    tokens: np.ndarray
    alphabet_size: int
    is_characters: bool
    has_crlf: bool
    stand_ins: list[StandIn] = field(default_factory=list)
    choices: list[np.ndarray] = field(default_factory=list)

    def places(self, stand_in: StandIn) -> np.ndarray:
        """Where the token of a stand-in occurs."""
        return np.flatnonzero(self.tokens == stand_in.token)


def split_text(text: str, tokenizer: PreTrainedTokenizerBase) -> TextForm:
    """The form of a text for a tokenizer.

    Raises:
        ValueError: the tokenizer cannot spell the text so that it can be read back.
    """
    breaks = text.count("\r\n")
    has_crlf = 0 < breaks == text.count("\n") == text.count("\r")
    plain = text.replace("\r\n", "\n") if has_crlf else text
    if known := known_characters(tokenizer):
        return _split_characters(plain, known, has_crlf)
    form = TextForm(encode_corpus(tokenizer, plain), max(2, len(tokenizer)), is_characters=False, has_crlf=has_crlf)
    if join_text(form, tokenizer) != text:
        raise ValueError(
            "The tokenizer of the model must spell the text without loss, got another text when its tokens were "
            "decoded. Use a model with a character or byte-level tokenizer."
        )
    return form


def join_text(form: TextForm, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a form.

    Raises:
        ValueError: it has tokens that the tokenizer lacks.
    """
    plain = _join_characters(form, tokenizer) if form.is_characters else _decode(form, tokenizer)
    return plain.replace("\n", "\r\n") if form.has_crlf else plain


def known_characters(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The characters that a character tokenizer was built from, and their ids; none for any other tokenizer.

    `tokenizer_from_nanogpt` has no others. `build_character_tokenizer` sorts them by code point from id 0 on, and the
    characters that it adds, which a model never saw, begin anew at U+0000.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {} if backend is None else json.loads(backend.to_str())
    model = state.get("model", {})
    reads_characters = (
        model.get("type") == "BPE"
        and not any(model[name] for name in ("merges", "continuing_subword_prefix", "end_of_word_suffix"))
        and state["normalizer"] is None
        and state["pre_tokenizer"] is None
    )
    if not reads_characters:
        return {}
    known: dict[str, int] = {}
    last = ""
    for index, token in sorted((index, token) for token, index in model["vocab"].items()):
        if model["byte_fallback"] and (len(token) != 1 or token <= last):
            break
        if len(token) == 1:
            known[token] = index
        last = token
    return known


def _split_characters(text: str, known: dict[str, int], has_crlf: bool) -> TextForm:
    code_points = np.frombuffer(text.encode("utf-32-le"), _CODE_POINT)
    used, indices, counts = np.unique(code_points, return_inverse=True, return_counts=True)
    count_of = {chr(code): int(count) for code, count in zip(used, counts)}
    frequent = sorted(known, key=lambda character: (-count_of.get(character, 0), character))
    tokens_of = {c: known[c if c in known else _find_stand_in(c, frequent)] for c in count_of}
    table = np.array([tokens_of[chr(code)] for code in used], np.int64)
    form = TextForm(table[indices], max(2, 1 + max(known.values())), is_characters=True, has_crlf=has_crlf)
    behind: dict[int, list[str]] = {}
    for character, token in tokens_of.items():
        if character not in known:
            behind.setdefault(token, []).append(character)
    for token, characters in sorted(behind.items()):
        stand_in = StandIn(token, [*map(ord, characters)], [count_of[character] for character in characters])
        form.stand_ins.append(stand_in)
        originals = code_points[form.places(stand_in)]
        is_other = np.isin(originals, stand_in.characters)
        form.choices.append(np.where(is_other, np.searchsorted(stand_in.characters, originals) + 1, 0))
    return form


def _find_stand_in(character: str, frequent: list[str]) -> str:
    """The known character that is most like another.

    Args:
        character: that the model does not know.
        frequent: the known characters, the most frequent in the text first.
    """
    for form in (_TYPED_AS.get(character, ""), unicodedata.normalize("NFKD", character)[:1]):
        for similar in (form, _TYPED_AS.get(form, ""), form.lower(), form.upper()):
            if similar in frequent:
                return similar
    category = unicodedata.category(character)
    for length in (2, 1):
        for known in frequent:
            if unicodedata.category(known)[:length] == category[:length]:
                return known
    return frequent[0]


def _join_characters(form: TextForm, tokenizer: PreTrainedTokenizerBase) -> str:
    character_of = {index: ord(character) for character, index in known_characters(tokenizer).items()}
    used = {*np.unique(form.tokens).tolist(), *(stand_in.token for stand_in in form.stand_ins)}
    if unknown := used - {*character_of}:
        raise ValueError(f"Tokens must be characters of the model's tokenizer, got {sorted(unknown)[:5]}.")
    table = np.zeros(1 + max(used, default=0), _CODE_POINT)
    for token in used:
        table[token] = character_of[token]
    code_points = table[form.tokens]
    for stand_in, choices in zip(form.stand_ins, form.choices, strict=True):
        meant = np.array([character_of[stand_in.token], *stand_in.characters], _CODE_POINT)
        code_points[form.places(stand_in)] = meant[choices]
    return code_points.tobytes().decode("utf-32-le")


def _decode(form: TextForm, tokenizer: PreTrainedTokenizerBase) -> str:
    if form.tokens.max(initial=0) >= len(tokenizer):
        raise ValueError(f"Tokens must be below {len(tokenizer)}, the tokenizer's size, got {form.tokens.max()}.")
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(form.tokens.tolist(), **options))
