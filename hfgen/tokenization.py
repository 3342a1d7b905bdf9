"""Tokenizers built from the training text, and the fast way to turn a corpus into ids.

    tokenizer = build_character_tokenizer(text, model_max_length=256)
    tokenizer = build_bpe_tokenizer(text, vocab_size=1024, model_max_length=256)    # or longer tokens, fewer of them
    ids = encode_corpus(tokenizer, text)          # numpy, one id per token
    tokenizer.save_pretrained("my-gpt")           # AutoTokenizer.from_pretrained("my-gpt"), no custom code

The character tokenizer is a byte-fallback BPE without any merges: a character of the corpus is one token, and any
other character is spelled by the bytes of its UTF-8 encoding. The other one is a byte-level BPE, as GPT-2's. Both
encode every Unicode text, and `decode(encode(text)) == text`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"

# The bytes that spell characters beyond ASCII in UTF-8 (RFC 3629): continuation bytes 80..BF, first bytes C2..F4.
# ASCII characters have tokens of their own, so a byte token for 00..7F could never occur; C0, C1 and F5..FF never do.
_UTF8_BYTES = [*range(0x80, 0xC0), *range(0xC2, 0xF5)]

_CHUNK_CHARACTERS = 1 << 20


def build_character_tokenizer(
    text: str | Iterable[str], model_max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Builds the tokenizer whose tokens are the characters of `text`.

    The ids, in this order: the characters of the corpus sorted by code point (so the ids seen in training are 0, 1, 2,
    … without gaps), the ASCII characters that the corpus lacks, 115 UTF-8 byte tokens `<0x80>`…`<0xF4>` for everything
    else, and two special tokens: `<|endoftext|>` is begin and end, and `<|pad|>` is padding. Padding needs a token of
    its own, because training ignores it: a model for which it is also the end would never learn to stop. It is on
    the left, as generation requires.

    As everywhere in transformers, special tokens in a text are parsed, those that you add included, so that chat
    templates work. `tokenizer(text, split_special_tokens=True)` takes all of a text as text: a literal
    `<|endoftext|>` is then thirteen characters. So do [`encode_corpus`] and `GPTForCausalLM.sample`. To mark where a
    document ends, insert `tokenizer.eos_token_id`, or give [`encode_corpus`] a list of documents. A literal `<0x41>`
    is always six characters.

    Args:
        text: the training text, or its documents.
        model_max_length: the longest sequence, in tokens, that the model takes; the tokenizer warns beyond it.

    Raises:
        ValueError: there is no text, something is not a `str`, or it holds lone surrogates (which UTF-8 cannot store).
    """
    from tokenizers import Tokenizer, decoders, models

    corpus = sorted(_alphabet(_documents(text)))
    if not corpus:
        raise ValueError("text must hold characters, got none. Check the file or column it was read from.")
    ascii_rest = sorted(set(map(chr, range(128))) - set(corpus))
    tokens = [*corpus, *ascii_rest, *map(_byte_token, _UTF8_BYTES)]

    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _with_special_tokens(backend, model_max_length)


def build_bpe_tokenizer(
    text: str | Iterable[str], vocab_size: int, model_max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909, on bytes as GPT-2).

    The text is first split by GPT-2's rule, into words with the space before them, numbers and punctuation. The ids
    are, in this order: the 256 bytes, the pairs that were merged, most frequent first, and the special tokens of
    [`build_character_tokenizer`], whose remarks on special tokens hold here too. The same text always gives the same
    tokenizer.

    Args:
        text: the training text, or parts of it, as an iterable that need not fit in memory. No token crosses from one
            part to the next.
        vocab_size: number of tokens, at most: a text too small for as many pairs gives fewer.
        model_max_length: as for `build_character_tokenizer`.

    Raises:
        ValueError: vocab_size is below 258, which bytes and special tokens need, there is no text, or something is not
            a `str` or holds lone surrogates.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet, specials = pre_tokenizers.ByteLevel.alphabet(), (END_OF_TEXT, PADDING)
    if vocab_size < len(alphabet) + len(specials):
        raise ValueError(
            f"vocab_size must be at least {len(alphabet) + len(specials)}, for the bytes and the special tokens, got "
            f"{vocab_size}. Ask for some hundreds more."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials), initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    parts = iter([text] if isinstance(text, str) else text)
    first = next((part for part in parts if part), None)
    if first is None:
        raise ValueError("text must hold characters, got none. Check the file or column it was read from.")
    backend.train_from_iterator(_checked(chain([first], parts)), trainer)
    return _with_special_tokens(backend, model_max_length)


def _checked(parts: Iterable[str]) -> Iterator[str]:
    """The parts of a text; raises ValueError if one is no text that UTF-8 can store."""
    for part in parts:
        _alphabet(_documents([part]))
        yield part


def _with_special_tokens(backend: Any, model_max_length: int | None) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    length = {} if model_max_length is None else {"model_max_length": model_max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **length,
    )


def encode_corpus(tokenizer: PreTrainedTokenizerBase, text: str | Iterable[str]) -> np.ndarray:
    """Encodes a whole corpus into one array of ids, exactly those of `tokenizer` with `split_special_tokens=True`.

    A character tokenizer reads each character by itself, so encoding is one table lookup per character (about 60
    million characters per second). Any other tokenizer is simply called.

    Args:
        tokenizer: one of [`build_character_tokenizer`], or any other.
        text: one text, encoded as it is; or documents, each closed by `tokenizer.eos_token_id`.

    Returns:
        ids of shape (tokens,): uint16 where the vocabulary fits, else int32. No special token is parsed from text.

    Raises:
        ValueError: something is not a `str` or holds lone surrogates, or there are documents but the tokenizer has
            no end-of-sequence token.
    """
    documents = _documents(text)
    encoder = CorpusEncoder(tokenizer, _alphabet(documents))
    closes = not isinstance(text, str)
    parts = [np.empty(0, encoder.dtype)]
    for document in documents:
        size = _CHUNK_CHARACTERS if encoder.reads_single_characters else max(1, len(document))
        for start in range(0, max(1, len(document)), size):
            is_last = start + size >= len(document)
            parts.append(encoder([document[start : start + size]], [closes and is_last]))
    return np.concatenate(parts)


class CorpusEncoder:
    """[`encode_corpus`] for a corpus that comes in pieces: the lookup table is built once.

    Args:
        tokenizer: one of [`build_character_tokenizer`], or any other.
        alphabet: every character that will come.

    Attributes:
        dtype: of the ids, uint16 where the vocabulary fits, else int32.
        reads_single_characters: a text may be cut anywhere, its parts have the ids of the whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, alphabet: Iterable[str]):
        self.tokenizer = tokenizer
        self.dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.int32)
        self.reads_single_characters = reads_single_characters(tokenizer)
        self._table = np.empty((0, 1), np.int32)
        self._backend = None
        if self.reads_single_characters:
            self._table = _character_table(tokenizer.get_vocab(), sorted(alphabet))
        elif getattr(tokenizer, "backend_tokenizer", None) is not None:
            # A copy, set up as a call of the tokenizer would set it up: asked directly, it keeps no offsets and masks,
            # which makes it two to four times as fast.
            self._backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
            self._backend.no_padding()
            self._backend.no_truncation()
            self._backend.encode_special_tokens = True

    def __call__(self, texts: list[str], closed: list[bool]) -> np.ndarray:
        """The ids of some texts, one after the other.

        Args:
            texts: whole documents or, where they may be cut, parts of them.
            closed: of each text, whether `tokenizer.eos_token_id` follows.

        Returns:
            ids of shape (tokens,).

        Raises:
            ValueError: a text is to be closed and the tokenizer has no end-of-sequence token.
        """
        if self.reads_single_characters:
            ids, stops = _look_up(self._table, texts)
        else:
            lists = self._call(texts)
            ids = np.fromiter(chain.from_iterable(lists), self.dtype)
            stops = np.cumsum([len(part) for part in lists])
        ids = ids.astype(self.dtype, copy=False)
        if not any(closed):
            return ids
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "tokenizer must have an eos_token, which closes each document, got none. Set "
                "tokenizer.eos_token, or join the documents to one text."
            )
        return np.insert(ids, stops[np.asarray(closed)], self.tokenizer.eos_token_id)

    def _call(self, texts: list[str]) -> list[list[int]]:
        if self._backend is not None:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return self.tokenizer(texts, **options)["input_ids"]


def _documents(text: str | Iterable[str]) -> list[str]:
    documents = [text] if isinstance(text, str) else list(text)
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise ValueError(
                f"text must be a str or an iterable of str, got {type(document).__name__} at position {index}. "
                "Decode bytes first (`.decode('utf-8')`), and drop empty (None) rows of a text column."
            )
    return documents


def _alphabet(documents: list[str]) -> set[str]:
    alphabet: set[str] = set().union(*documents)
    surrogates = sorted(c for c in alphabet if "\ud800" <= c <= "\udfff")
    if surrogates:
        raise ValueError(
            f"text must be valid Unicode, got the lone surrogate U+{ord(surrogates[0]):04X}, which UTF-8 cannot "
            "store. Read the file as UTF-8 with errors='replace' instead of errors='surrogateescape'."
        )
    return alphabet


def reads_single_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer looks every character up by itself and spells the unknown ones by bytes, as those of
    [`build_character_tokenizer`]."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    state = json.loads(backend.to_str())
    model = state["model"]
    vocab = model.get("vocab", {})
    return (
        state["normalizer"] is None
        and state["pre_tokenizer"] is None
        and all(token["special"] and len(token["content"]) > 1 for token in state["added_tokens"])
        and model.get("type") == "BPE"
        and model["byte_fallback"]
        and not model["merges"]
        and not model["continuing_subword_prefix"]
        and not model["end_of_word_suffix"]
        and all(chr(byte) in vocab or _byte_token(byte) in vocab for byte in range(128))
        and all(_byte_token(byte) in vocab for byte in _UTF8_BYTES)
    )


def _character_table(vocab: dict[str, int], alphabet: list[str]) -> np.ndarray:
    """The ids of each character, one row a code point, padded with -1 (a character has one to four ids)."""
    rows = [[vocab[c]] if c in vocab else [vocab[_byte_token(byte)] for byte in c.encode()] for c in alphabet]
    table = np.full((ord(alphabet[-1]) + 1 if alphabet else 0, max(map(len, rows), default=1)), -1, np.int32)
    for character, ids in zip(alphabet, rows, strict=True):
        table[ord(character), : len(ids)] = ids
    return table


def _byte_token(byte: int) -> str:
    return f"<0x{byte:02X}>"


def _look_up(table: np.ndarray, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the texts one after the other, and how many there are up to the end of each text."""
    stops = np.cumsum([len(text) for text in texts], dtype=np.int64)
    rows = table[np.frombuffer("".join(texts).encode("utf-32-le"), np.dtype("<u4"))]
    if table.shape[1] == 1:
        return rows[:, 0], stops
    is_id = rows >= 0
    return rows[is_id], np.cumsum(np.append(0, is_id.sum(axis=1)))[stops]
