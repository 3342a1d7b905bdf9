"""Texts of any length from a causal language model, window by window."""

import math
from typing import Any

import torch


class TextSamplingMixin:
    """Gives a causal language model `sample`, from text to text; `generate` works on ids."""

    # What a model with transformers' GenerationMixin has.
    config: Any
    generation_config: Any
    device: Any
    generate: Any

    @torch.no_grad()
    def sample(
        self,
        tokenizer: Any,
        prompt: str = "",
        max_new_tokens: int = 200,
        min_new_tokens: int = 0,
        temperature: float | None = None,
    ) -> str:
        """Writes a text of any length, with the settings of `generation_config`; `torch.manual_seed` makes it
        repeatable.

        The model sees at most its context, `config.max_position_embeddings` tokens. Where that is full, it goes on
        from the last half of it.

        Args:
            tokenizer: the model's tokenizer, from AutoTokenizer.
            prompt: text to continue. All of it is text: what looks like a special token is spelled out. If it holds
                no token, the text starts where an empty page does, after the model's or the tokenizer's bos token,
                its eos token, or a newline, whichever there is.
            max_new_tokens: length of the continuation in tokens, unless the model ends the text before.
            min_new_tokens: length before which the model does not end the text.
            temperature: below 1 for likelier text, 0 for the likeliest token each time. None: as `generation_config`
                says.

        Returns:
            The prompt and what follows it, without special tokens.

        Raises:
            ValueError: max_new_tokens or temperature is out of range, or there is no token to start with.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}. Ask for some text.")
        options = _sampling_options(temperature)
        prompt_ids = _ids_of_text(tokenizer, prompt)
        start = prompt_ids or [self._start_of_text(tokenizer)]
        end = _token_set(self.generation_config.eos_token_id)
        tokens, length, context = start, len(start) + max_new_tokens, self.config.max_position_embeddings
        while len(tokens) < length:
            window = tokens if len(tokens) < context else tokens[-max(1, context // 2) :]
            stop = min(max(context, len(window) + 1), len(window) + length - len(tokens))
            input_ids = torch.tensor([window], device=self.device)
            generated = self.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_length=stop,
                min_length=min(stop, len(window) + len(start) + min_new_tokens - len(tokens)),
                max_new_tokens=None,  # those of generation_config would beat max_length
                min_new_tokens=None,
                pad_token_id=0,  # one text needs no padding, but generate would warn
                return_dict_in_generate=False,
                **options,
            )
            tokens = [*tokens, *generated[0, len(window) :].tolist()]
            if tokens[-1] in end:
                break
        written = tokens if prompt_ids else tokens[len(start) :]
        return str(tokenizer.decode(written, skip_special_tokens=True))

    def _start_of_text(self, tokenizer: Any) -> int:
        """The token that an empty page starts with."""
        for token in (self.generation_config.bos_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        if newline := _ids_of_text(tokenizer, "\n"):
            return newline[-1]
        raise ValueError(
            "prompt must hold a token, got none, and the tokenizer has no bos token, eos token or newline to start "
            "with. Give a prompt of characters or words that the tokenizer knows."
        )


def _ids_of_text(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text in which nothing is a special token."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _sampling_options(temperature: float | None) -> dict[str, Any]:
    """The arguments of `generate` for a temperature; raises ValueError if it is negative or not finite."""
    if temperature is None:
        return {}
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}. 1 samples as trained.")
    return {"do_sample": True, "temperature": float(temperature)} if temperature else {"do_sample": False}


def _token_set(tokens: int | list[int] | None) -> set[int]:
    """The ids of a field of the configuration that holds one token, several or none."""
    return {*tokens} if isinstance(tokens, (list, tuple)) else set() if tokens is None else {tokens}
