"""What does a file of kind `TEXT` hold? A text, coded token by token with the predictions of a GPT.

Each token takes -log2 of the probability that the model gave it, so the size is the model's loss. FORMAT.md describes
parameters and payload byte by byte.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub.utils import tqdm

from ...models.modeling_gpt import GPTForCausalLM
from ..container import ByteReader, pack_integer
from ..entropy_coder import SymbolDecoder, SymbolEncoder
from ..logit_levels import Decisions, round_logits, round_logits_as, weights_of_levels
from ..self_test import SELF_TEST_NUMBERS, check_self_test
from .gpt_predictor import GPTPredictor, windows
from .text_tokens import StandIn, TextForm, join_text, split_text


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A stream loses what its first tokens would have gained from those before them, about 25 bits with characters; more
# streams make a larger batch, and a larger batch is faster.
TOKENS_PER_STREAM = 2048
MAX_STREAMS = 64
# Scores of attention, for all streams: 1 GB.
_MAX_SCORES = 1 << 27
# Distance of the checks inside the payload, and their size.
_CHECKED_TOKENS = 1 << 14
_CHECK_BITS = 16
_IS_CHARACTERS, _HAS_CRLF = 1, 2
_SELF_TEST = struct.Struct(f"<{SELF_TEST_NUMBERS}d")
_MAX_CODE_POINT = 0x10FFFF


@dataclass
class Layout:
    """How the tokens of a text are cut into streams.

    Attributes:
        num_tokens: of the text.
        num_streams: the first ones are longer by one token, if the streams are not of equal length.
        context: the most inputs of a window.
        kept: tokens with which all windows but the first begin.
        start_token: the first input of each stream.
    """

    num_tokens: int
    num_streams: int
    context: int
    kept: int
    start_token: int

    @property
    def length(self) -> int:
        """Tokens of the longest stream."""
        return -(-self.num_tokens // self.num_streams)

    @property
    def num_long(self) -> int:
        """Streams of that length; the others are shorter by one."""
        return self.num_tokens - (self.length - 1) * self.num_streams

    def empty_grid(self) -> np.ndarray:
        """The streams with nothing but their start token, (streams, 1 + length)."""
        grid = np.zeros((self.num_streams, 1 + self.length), np.int64)
        grid[:, 0] = self.start_token
        return grid

    def arrange(self, tokens: np.ndarray) -> np.ndarray:
        """The streams of a text, (tokens,) -> (streams, 1 + length); 0 where a stream has no token."""
        grid, long = self.empty_grid(), self.num_long
        grid[:long, 1:] = tokens[: long * self.length].reshape(long, self.length)
        if long < self.num_streams:
            grid[long:, 1:-1] = tokens[long * self.length :].reshape(-1, self.length - 1)
        return grid

    def join(self, grid: np.ndarray) -> np.ndarray:
        """The tokens of `arrange`, (streams, 1 + length) -> (tokens,)."""
        return np.concatenate([grid[: self.num_long, 1:].ravel(), grid[self.num_long :, 1:-1].ravel()])


def encode(
    content: bytes, model: GPTForCausalLM, tokenizer: PreTrainedTokenizerBase, num_streams: int | None = None
) -> tuple[bytes, bytes]:
    """Codes a text.

    Args:
        content: the text in UTF-8.
        model: in float64, with eager attention.
        tokenizer: its tokenizer.
        num_streams: that are coded at the same time; None chooses by the length of the text.

    Returns:
        parameters and payload of a `Container`.

    Raises:
        ValueError: the content is not UTF-8, or the model or its tokenizer does not fit.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"The file must be a text in UTF-8, got other bytes: {error}. Convert it first.") from None
    form = split_text(text, tokenizer)
    form.alphabet_size = min(form.alphabet_size, model.config.vocab_size)
    if form.tokens.max(initial=0) >= form.alphabet_size:
        raise ValueError(
            f"Tokens must be below {form.alphabet_size}, the model's vocab_size, got {form.tokens.max()}. The "
            "tokenizer belongs to another model."
        )
    context = model.config.max_position_embeddings
    layout = Layout(
        num_tokens=len(form.tokens),
        num_streams=num_streams or _choose_num_streams(len(form.tokens), model),
        context=context,
        kept=max(1, context // 2),
        start_token=_start_token(model, tokenizer),
    )
    predictor, encoder = GPTPredictor(model, form.alphabet_size), SymbolEncoder()
    self_test = predictor.self_test(context)
    decisions = _encode_tokens(form.tokens, layout, predictor, encoder)
    for stand_in, choices in zip(form.stand_ins, form.choices, strict=True):
        encoder.encode_alike(choices, stand_in.weights(len(choices)))
    return _pack_parameters(form, layout, self_test), decisions.to_bytes() + encoder.to_bytes()


def decode(parameters: bytes, payload: bytes, model: GPTForCausalLM, tokenizer: PreTrainedTokenizerBase) -> bytes:
    """The text that `encode` coded, with the same model.

    Raises:
        ValueError: the machine's arithmetic, the model or the tokenizer is not what the text was coded with.
    """
    form, layout, self_test = _unpack_parameters(parameters)
    if max(form.alphabet_size, layout.start_token + 1) > model.config.vocab_size:
        raise ValueError(
            f"The model's vocab_size must be at least {form.alphabet_size}, got {model.config.vocab_size}. It is not "
            "the model that compressed the file."
        )
    predictor = GPTPredictor(model, form.alphabet_size)
    check_self_test(self_test, predictor.self_test(layout.context))
    reader = ByteReader(payload, "The payload")
    decisions = Decisions.from_reader(reader, layout.num_tokens * form.alphabet_size)
    decoder = SymbolDecoder(reader.rest())
    form.tokens = _decode_tokens(layout, decisions, predictor, decoder)
    for stand_in in form.stand_ins:
        occurrences = len(form.places(stand_in))
        form.choices.append(decoder.decode_alike(occurrences, stand_in.weights(occurrences)))
    return join_text(form, tokenizer).encode("utf-8")


def describe(parameters: bytes) -> dict[str, Any]:
    """What `hfgen info` shows of the parameters."""
    form, layout, _ = _unpack_parameters(parameters)
    return {
        "tokens": layout.num_tokens,
        "alphabet_size": form.alphabet_size,
        "characters_replaced": sum(sum(stand_in.counts) for stand_in in form.stand_ins),
        "line_breaks": "CRLF" if form.has_crlf else "as they are",
        "streams": layout.num_streams,
        "context": layout.context,
        "kept": layout.kept,
    }


def _encode_tokens(tokens: np.ndarray, layout: Layout, predictor: GPTPredictor, encoder: SymbolEncoder) -> Decisions:
    grid, progress = layout.arrange(tokens), _Progress(layout)
    decided: list[Decisions] = [Decisions(np.empty(0, np.int64), np.empty(0, np.int64))]
    coded = place = 0
    for window in windows(layout.length, layout.context, layout.kept):
        token = window.first
        for logits in predictor.predict_window(grid, window):
            # Step by step, and in each step stream by stream; in the last step, not all streams have a token.
            symbols = grid[:, token : token + len(logits)].T.ravel()[: layout.num_tokens - coded]
            rows = logits.reshape(-1, logits.shape[-1])[: len(symbols)]
            levels, decisions = round_logits(rows, place)
            encoder.encode(symbols, weights_of_levels(levels))
            decided.append(decisions)
            token, coded, place = token + len(logits), coded + len(symbols), place + rows.size
        check = progress.check_due(grid, window.stop)
        if check is not None:
            encoder.encode_number(check, _CHECK_BITS)
    progress.close()
    return Decisions(*(np.concatenate(parts) for parts in zip(*((d.places, d.ups) for d in decided))))


def _decode_tokens(
    layout: Layout, decisions: Decisions, predictor: GPTPredictor, decoder: SymbolDecoder
) -> np.ndarray:
    grid, progress = layout.empty_grid(), _Progress(layout)
    coded = place = 0
    for window in windows(layout.length, layout.context, layout.kept):
        logits = predictor.begin_window(grid[:, window.start : window.first])
        for token in range(window.first, window.stop):
            if token > window.first:
                logits = predictor.continue_window(grid[:, [token - 1]])
            rows = logits[: layout.num_tokens - coded]
            symbols = decoder.decode(weights_of_levels(round_logits_as(rows, place, decisions)))
            grid[: len(symbols), token] = symbols
            coded, place = coded + len(symbols), place + rows.size
        check = progress.check_due(grid, window.stop)
        if check is not None and decoder.decode_number(_CHECK_BITS) != check:
            raise ValueError(
                f"The decoded tokens up to {coded:,} of {layout.num_tokens:,} must match their checksum, got others. "
                "The model or this machine's arithmetic differs from the one that compressed the file. Nothing was "
                "written."
            )
    progress.close()
    return layout.join(grid)


class _Progress:
    """A bar on a terminal, and the checks that are due inside the payload."""

    def __init__(self, layout: Layout):
        self._checked = 1
        self._layout = layout
        self._bar = tqdm(total=layout.num_tokens, unit=" tokens", disable=None, leave=False)

    def check_due(self, grid: np.ndarray, stop: int) -> int | None:
        """The checksum of the tokens before `stop`; None if there are too few since the last one."""
        self._bar.n = min(self._layout.num_tokens, (stop - 1) * self._layout.num_streams)
        self._bar.refresh()
        if (stop - self._checked) * self._layout.num_streams < _CHECKED_TOKENS:
            return None
        tokens = grid[:, self._checked : stop].T.astype("<u4")
        self._checked = stop
        return zlib.crc32(tokens.tobytes()) & (1 << _CHECK_BITS) - 1

    def close(self) -> None:
        self._bar.close()


def _choose_num_streams(num_tokens: int, model: GPTForCausalLM) -> int:
    config = model.config
    scores_of_stream: int = config.num_attention_heads * config.max_position_embeddings**2
    return max(1, min(MAX_STREAMS, num_tokens // TOKENS_PER_STREAM, _MAX_SCORES // scores_of_stream))


def _start_token(model: GPTForCausalLM, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that an empty page starts with; any would do, and it is stored."""
    for token in (model.generation_config.bos_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None and token < model.config.vocab_size:
            return int(token)
    return 0


def _pack_parameters(form: TextForm, layout: Layout, self_test: np.ndarray) -> bytes:
    flags = _IS_CHARACTERS * form.is_characters + _HAS_CRLF * form.has_crlf
    numbers = [layout.num_tokens, form.alphabet_size, layout.start_token, layout.context, layout.kept,
               layout.num_streams, len(form.stand_ins)]  # fmt: skip
    previous = 0
    for stand_in in form.stand_ins:
        numbers += [stand_in.token - previous, len(stand_in.characters)]
        for character, before, count in zip(stand_in.characters, [0, *stand_in.characters], stand_in.counts):
            numbers += [character - before, count]
        previous = stand_in.token
    return bytes([flags]) + _SELF_TEST.pack(*self_test) + b"".join(map(pack_integer, numbers))


def _unpack_parameters(parameters: bytes) -> tuple[TextForm, Layout, np.ndarray]:
    """Raises ValueError where a parameter is out of range."""
    reader = ByteReader(parameters, "The parameters")
    (flags,) = reader.take(1)
    self_test = np.array(_SELF_TEST.unpack(reader.take(_SELF_TEST.size)))
    num_tokens, alphabet_size, start_token, context, kept, num_streams, num_stand_ins = (
        reader.integer(most=1 << 40) for _ in range(7)
    )
    layout = Layout(num_tokens, num_streams, context, kept, start_token)
    if flags > _IS_CHARACTERS | _HAS_CRLF or not 1 <= kept <= context or not 1 <= num_streams <= max(1, num_tokens):
        raise ValueError(f"The parameters of the text must fit together, got {layout} and flags {flags}.")
    form = TextForm(
        np.empty(0, np.int64), alphabet_size, bool(flags & _IS_CHARACTERS), has_crlf=bool(flags & _HAS_CRLF)
    )
    token = 0
    for _ in range(num_stand_ins):
        token += reader.integer(most=alphabet_size)
        characters, counts = [0], [0]
        for _ in range(reader.integer(most=_MAX_CODE_POINT)):
            characters.append(characters[-1] + reader.integer(most=_MAX_CODE_POINT - characters[-1]))
            counts.append(reader.integer(most=num_tokens))
        form.stand_ins.append(StandIn(token, characters[1:], counts[1:]))
    return form, layout, self_test
