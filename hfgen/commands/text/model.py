"""A causal language model and its tokenizer, from a folder or the Hub."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from ...hub import fetch_model
from ...model_folder import read_json
from ...models import MODELS


class TextModel:
    """Continues texts, with hfgen's GPT or another causal language model of transformers.

    Args:
        name: folder, or repository on the Hub.
        revision: branch, tag or commit of the repository.

    Attributes:
        model: in evaluation mode, on a GPU if there is one.
        tokenizer: of the model.

    Raises:
        HubError, LoadError: there is no such model, or it would not load.
        ValueError: it does not write text, or its tokenizer is missing.
    """

    def __init__(self, name: str, revision: str | None = None):
        folder = fetch_model(name, revision)
        _check_writes(read_json(folder / "config.json"), name)
        transformers_logging.disable_progress_bar()
        # Its own code would win over hfgen's if it were trusted.
        model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def write(
        self, prompt: str, max_new_tokens: int, temperature: float | None = None, streamer: BaseStreamer | None = None
    ) -> str:
        """The prompt and what follows it.

        Args:
            prompt: text to continue; an empty one starts where the model starts a text.
            max_new_tokens: length of the continuation, unless the model ends it before.
            temperature: 0 takes the likeliest token each time; None: as the model's generation_config says.
            streamer: gets the tokens as they come.

        Raises:
            ValueError: temperature is negative or not finite, or the model cannot start with an empty prompt.
        """
        if hasattr(self.model, "sample"):
            return self._sample(prompt, max_new_tokens, temperature, streamer)
        if temperature is not None and not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}. 1 samples as trained.")
        encoded = self.tokenizer(prompt or self._start(), return_tensors="pt").to(self.model.device)
        options: dict[str, Any] = {} if temperature is None else {"do_sample": temperature > 0}
        if temperature:
            options["temperature"] = temperature
        self.model.generation_config.max_length = None  # transformers warns if both lengths are given
        tokens = self.model.generate(
            encoded.input_ids, attention_mask=encoded.attention_mask, max_new_tokens=max_new_tokens, streamer=streamer,
            **options,
        )  # fmt: skip
        return prompt + self.tokenizer.decode(tokens[0, encoded.input_ids.shape[1] :], skip_special_tokens=True)

    def _sample(
        self, prompt: str, max_new_tokens: int, temperature: float | None, streamer: BaseStreamer | None
    ) -> str:
        """`sample` calls `generate` as often as the length of the text needs it, and knows no streamer."""
        if streamer is None:
            return self.model.sample(self.tokenizer, prompt, max_new_tokens, temperature=temperature)
        self.model.generate = functools.partial(self.model.generate, streamer=streamer)
        try:
            return self.model.sample(self.tokenizer, prompt, max_new_tokens, temperature=temperature)
        finally:
            del self.model.generate

    def _start(self) -> str:
        """The text of the token that an empty page starts with."""
        token = self.model.generation_config.bos_token_id
        if token is not None:
            return str(self.tokenizer.decode([token]))
        start = self.tokenizer.bos_token or self.tokenizer.eos_token
        if start is None:
            raise ValueError("--prompt must hold text, got none, and this model has no token to start a text with.")
        return start


def _check_writes(config: dict[str, Any], name: str) -> None:
    """Raises a ValueError for one of hfgen's models that writes no text."""
    model_type = config.get("model_type", "")
    known = MODELS.get(model_type)
    if known is None:
        return
    if known.samples != "text":
        advice = f"Use hfgen sample {name}." if known.samples == "images" else "Name a GPT."
        raise ValueError(f"The model_type of {name} must be one that writes text, got {model_type!r}. {advice}")
    able = [head.__name__ for head in known.head_classes.values()]
    found = (config.get("architectures") or [known.base_model_class.__name__])[0]
    if found not in able:
        raise ValueError(f"{name} must hold a {able[0]}, got a {found}. Save the model with its output layer.")
