"""The same small GPT in hfgen's layout and in its native one."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hfgen.convert import to_native
from hfgen.models.modeling_gpt import GPTConfig, GPTForCausalLM
from hfgen.tokenization import build_character_tokenizer
from tests.convert.random_weights import randomized


TOKENIZER: PreTrainedTokenizerFast = build_character_tokenizer("to be or not to be\n", model_max_length=64)
GREEDY = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 0}
# The first 128 tokens are characters; after them come bytes, which may not be text, special tokens and unused rows.
GREEDY_CHARACTERS = {**GREEDY, "suppress_tokens": list(range(128, 256))}

both_layouts = pytest.mark.parametrize("layout", ["hfgen", "native"])


def small_gpt(layout: str, seed: int = 0, **fields: object) -> PreTrainedModel:
    """In evaluation mode, with random weights that are large enough for every token to matter."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
    model = randomized(GPTForCausalLM(GPTConfig(**{**sizes, **fields})).eval())
    return to_native(model) if layout == "native" else model


def random_tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(len(TOKENIZER), shape, generator=torch.Generator().manual_seed(seed))
