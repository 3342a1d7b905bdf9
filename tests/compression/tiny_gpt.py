"""A GPT of a few thousand weights, for tests that compress with it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from hfgen import GPTConfig, GPTForCausalLM, build_character_tokenizer


ALPHABET = "\n '-,.:ABCEIMOTabcdefghiklmnoprstuvwxy3"


def save_tiny_gpt(folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 0, **fields) -> Path:
    """Saves a model with large random weights, so that its predictions are far from even, and a tokenizer."""
    tokenizer = tokenizer or build_character_tokenizer(ALPHABET)
    torch.manual_seed(seed)
    default = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8,
               "initializer_range": 0.4}  # fmt: skip
    model = GPTForCausalLM(GPTConfig(vocab_size=len(tokenizer), **{**default, **fields}))
    model.generation_config.bos_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
