"""What llama.cpp needs to know of a tokenizer.

It has no reader for tokenizer.json, but several kinds of tokenizers of its own, of which two fit here:

- Characters (`build_character_tokenizer`) become its "llama" kind, SentencePiece with bytes for unknown characters: as
  there are no tokens of several characters, nothing is ever merged. That kind writes a space as "▁", so "▁" itself
  cannot be a token; in a prompt, it is read as a space.
- A byte-level BPE that splits text by GPT-2's rule (`build_bpe_tokenizer`, GPT-2's own) becomes its "gpt2" kind.

Other tokenizers split text by rules that llama.cpp knows one by one: its own converter recognizes those of published
models.
"""

import json
from typing import TYPE_CHECKING, Any

from ..tokenization import reads_single_characters


if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_SPACE = "▁"
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def add_tokenizer(writer: "GGUFWriter", tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> None:
    """Writes a tokenizer into the settings of a GGUF file.

    Args:
        writer: of the file.
        tokenizer: one of the two kinds above.
        vocab_size: rows of the model's embedding; those beyond the tokenizer's tokens get a name and are never used.

    Raises:
        ValueError: llama.cpp cannot express the tokenizer; says why.
    """
    if reads_single_characters(tokenizer):
        _add_characters(writer, tokenizer, vocab_size)
    else:
        _add_byte_level(writer, tokenizer, vocab_size)
    for kind in ("bos", "eos", "pad"):
        if (token := getattr(tokenizer, f"{kind}_token_id")) is not None:
            getattr(writer, f"add_{kind}_token_id")(token)
    writer.add_add_bos_token(False)


def _add_characters(writer: "GGUFWriter", tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> None:
    from gguf import TokenType

    vocabulary = tokenizer.get_vocab()
    if _SPACE in vocabulary:
        raise ValueError(
            f"The tokenizer must have no token {_SPACE!r} (U+2581), got one, which llama.cpp takes for a space. "
            "Train on a text without this character, or with --train_bpe."
        )
    tokens, types = _by_id(tokenizer, vocab_size)
    for token, number in vocabulary.items():
        if token.startswith("<0x") and len(token) == 6:
            types[number] = TokenType.BYTE
    if " " in vocabulary:
        tokens[vocabulary[" "]] = _SPACE
    if "\0" in vocabulary:  # the end of a string of C
        tokens[vocabulary["\0"]], types[vocabulary["\0"]] = "<0x00>", TokenType.BYTE
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_add_space_prefix(False)


def _add_byte_level(writer: "GGUFWriter", tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    splits, model = state.get("pre_tokenizer") or {}, state.get("model") or {}
    if (
        model.get("type") != "BPE"
        or state["normalizer"] is not None
        or any(splits.get(name) != value for name, value in _BYTE_LEVEL.items())
        or model["byte_fallback"]
        or model.get("ignore_merges")
    ):
        raise ValueError(
            "The tokenizer must be one of characters or a byte-level BPE that splits text by GPT-2's rule, as hfgen "
            f"train gpt builds them, got a {model.get('type', type(tokenizer).__name__)} that llama.cpp may not have. "
            "For a tokenizer of a published model, use llama.cpp's own converter on a native folder."
        )
    tokens, types = _by_id(tokenizer, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])


def _by_id(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and kind of each row of the embedding."""
    from gguf import TokenType

    tokens, types = [f"<|unused {row}|>" for row in range(vocab_size)], [int(TokenType.UNUSED)] * vocab_size
    for token, number in tokenizer.get_vocab().items():
        tokens[number], types[number] = token, TokenType.NORMAL
    for number, added in tokenizer.added_tokens_decoder.items():
        types[number] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    return tokens, types
