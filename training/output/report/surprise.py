"""How much each piece of a text surprises a language model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Piece(NamedTuple):
    """Some characters of a text, usually one token.

    Attributes:
        text: at least one character.
        bits: minus the binary logarithm of its probability, given all that the model sees before it.
    """

    text: str
    bits: float


@torch.no_grad()
def measure_surprise(model: Any, tokens: Tensor, tokenizer: Any, context: int) -> list[Piece]:
    """Returns the pieces of a text after its first token, each with its surprise.

    Windows overlap by half, so that every token but those of the first window has at least half a context before it.

    Args:
        model: a causal language model in evaluation mode.
        tokens: (tokens,) of the text.
        tokenizer: that decodes them. Tokens that are no whole character by themselves are put together.
        context: tokens in a window.
    """
    losses = torch.cat(list(_losses(model, tokens.long(), context)))
    pieces: list[Piece] = []
    # Each piece is decoded with the one before it, which shows whether a space belongs between. With all of the text
    # before it, the time would grow with the square of the length.
    start, end, before, waiting = 0, 1, _decode(tokenizer, tokens[:1]), 0.0
    for index, loss in enumerate(losses.tolist(), start=2):
        text, waiting = _decode(tokenizer, tokens[start:index]), waiting + loss / math.log(2)
        # The first bytes of a character decode to a replacement character until the others are there.
        is_whole = not text.endswith("\N{REPLACEMENT CHARACTER}") or index == len(tokens)
        if is_whole and len(text) > len(before):
            pieces.append(Piece(text[len(before) :], waiting))
            start, end, waiting = end, index, 0.0
            before = _decode(tokenizer, tokens[start:end])
    return pieces


def _losses(model: Any, tokens: Tensor, context: int) -> Iterator[Tensor]:
    """Yields the cross-entropy of tokens 1, 2, ... in nats, some at a time."""
    done = 1  # the first token has nothing before it
    while done < len(tokens):
        start = 0 if done == 1 else done - max(1, context // 2)
        window = tokens[start : start + context + 1].to(model.device)
        logits = model(window[None, :-1], use_cache=False).logits[0].float()
        losses = F.cross_entropy(logits, window[1:], reduction="none")
        yield losses[done - start - 1 :].cpu()
        done = start + len(window)


def _decode(tokenizer: Any, tokens: Tensor) -> str:
    return tokenizer.decode(tokens.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
