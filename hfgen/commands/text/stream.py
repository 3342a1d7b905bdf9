"""Text on the terminal while a model writes it."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer


INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # for a character of several bytes, of which some are missing


class TextPrinter(BaseStreamer):
    """Prints a text as its tokens come, which may take several calls of `generate`.

    Args:
        tokenizer: of the model.
        prompt: printed first.
    """

    def __init__(self, tokenizer: Any, prompt: str = ""):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []  # of the line that is being written
        self._printed = ""  # of that line
        self._print(prompt)

    def put(self, value: Tensor) -> None:
        """Takes a new token; what `generate` passes on first, a batch of its input, is left out."""
        if value.ndim > 1:
            return
        self._tokens += value.tolist()
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        if not text.endswith(INCOMPLETE):
            self._print_rest(text)
        if text.endswith("\n"):
            self._tokens, self._printed = [], ""

    def end(self) -> None:
        """Ends a part of the text, after which another one may come."""

    def finish(self) -> None:
        """Prints bytes that have not become a character, and ends the line."""
        self._print_rest(self._tokenizer.decode(self._tokens, skip_special_tokens=True))
        self._print("\n")

    def _print_rest(self, line: str) -> None:
        self._print(line[len(self._printed) :])
        self._printed = line

    def _print(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
