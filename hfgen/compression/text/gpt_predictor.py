"""What does a GPT expect next, in many texts at once? The numbers that the text codec turns into tables.

A text is cut into streams of equal length, which are one batch. Each stream is read in windows of the model's context:
the first begins with the start token, and where a window is full, the next one begins with the last tokens of it. The
encoder knows the text and computes a window at once; the decoder computes it token by token, with a cache. What both
compute differs in the last bits, as it does between machines; logit_levels.py takes care of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...models.modeling_gpt import CACHE, GPTForCausalLM
from ..self_test import check_independence, mix


# Logits that are held at a time: 32 MB.
_LOGITS_AT_ONCE = 1 << 22
_SELF_TEST_TOKENS = 16


@dataclass(frozen=True)
class Window:
    """A stretch of the streams, in tokens counted from 0 (the start token) where the first of the text is 1.

    Attributes:
        start: the first input.
        first: the first prediction; inputs end before it.
        stop: one past the last prediction.
    """

    start: int
    first: int
    stop: int


def windows(length: int, context: int, kept: int) -> Iterator[Window]:
    """Splits streams into the windows that the network sees, one after the other.

    Args:
        length: tokens of the longest stream.
        context: the most inputs of a window.
        kept: tokens with which all windows but the first begin; from 1 to `context`.
    """
    first = 1
    while first <= length:
        start = max(0, first - kept)
        stop = min(start + context, length) + 1
        yield Window(start, first, stop)
        first = stop


class GPTPredictor:
    """Logits of the next token, float64, which the output layer's rows beyond the alphabet are not part of.

    Args:
        model: in float64, with eager attention.
        alphabet_size: of the tokens that can follow.
    """

    def __init__(self, model: GPTForCausalLM, alphabet_size: int):
        self._model = model
        self._alphabet_size = alphabet_size
        self._cache: Any = None

    def predict_window(self, tokens: np.ndarray, window: Window) -> Iterator[np.ndarray]:
        """The logits of a window whose tokens are known.

        Args:
            tokens: (streams, 1 + length), the start token first.
            window: the stretch to predict.

        Yields:
            (predictions, streams, alphabet), together all predictions of the window in order.
        """
        hidden = self._run(tokens[:, window.start : window.stop - 1])[:, window.first - 1 - window.start :]
        at_once = max(1, _LOGITS_AT_ONCE // (len(tokens) * self._alphabet_size))
        for part in hidden.split(at_once, dim=1):
            yield self._logits(part).transpose(1, 0, 2)

    def begin_window(self, tokens: np.ndarray) -> np.ndarray:
        """The logits after the first inputs of a window, (streams, inputs) -> (streams, alphabet)."""
        self._cache = None
        return self.continue_window(tokens)

    def continue_window(self, tokens: np.ndarray) -> np.ndarray:
        """The logits after further inputs of the window that was begun, (streams, inputs) -> (streams, alphabet)."""
        return self._logits(self._run(tokens, use_cache=True)[:, -1])

    def self_test(self, context: int) -> np.ndarray:
        """Numbers in which the last bits of many logits add up, (SELF_TEST_NUMBERS,).

        Raises:
            ValueError: they depend on whether a window is computed at once, as they do in single precision.
        """
        length = min(_SELF_TEST_TOKENS, context)
        tokens = (np.arange(1 + length) * 7919 % self._alphabet_size)[None]
        at_once = np.concatenate([*self.predict_window(tokens, Window(0, 1, 1 + length))])
        in_steps = [self.begin_window(tokens[:, :1])]
        in_steps += [self.continue_window(tokens[:, [place]]) for place in range(1, length)]
        found = mix(np.stack(in_steps))
        check_independence(mix(at_once), found, "tokens")
        return found

    def _run(self, tokens: np.ndarray, use_cache: bool = False) -> torch.Tensor:
        with torch.inference_mode():
            input_ids = torch.from_numpy(np.ascontiguousarray(tokens, np.int64))
            output = self._model.model(
                input_ids=input_ids, cache=self._cache if use_cache else None, use_cache=use_cache
            )
        if use_cache:
            self._cache = getattr(output, CACHE)
        return output.last_hidden_state

    def _logits(self, hidden: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return self._model.lm_head(hidden)[..., : self._alphabet_size].numpy()
