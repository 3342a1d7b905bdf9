"""A folder as a training leaves it, without a training."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hfgen.models.modeling_gpt import GPTConfig, GPTForCausalLM
from hfgen.tokenization import build_character_tokenizer
from tests.convert.random_weights import randomized


TEXT = "To be, or not to be: that is the question.\n“naïve” 日本\n"
GENERATION = {"do_sample": True, "temperature": 0.75, "max_length": 32, "bos_token_id": 3, "eos_token_id": 5}
RESULTS = {"model_type": "hfgen_gpt", "dataset": "python-docs", "split": "test", "metrics": {"loss": 1.5}, "steps": 9}


def save_gpt(folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, **shape: Any) -> GPTForCausalLM:
    """Saves a small model with random weights, its tokenizer, results, a sample and what does not belong to it."""
    tokenizer = tokenizer or build_character_tokenizer(TEXT, model_max_length=32)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32, "eos_token_id": 5}
    vocab_size = -(-len(tokenizer) // 64) * 64
    model = randomized(GPTForCausalLM(GPTConfig(**{"vocab_size": vocab_size, **sizes, **shape})).eval())
    model.generation_config = GenerationConfig(**GENERATION)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "samples").mkdir()
    (folder / "samples" / "step-000009.txt").write_text("A sample.")
    (folder / "checkpoints").mkdir()
    (folder / ".lock").touch()
    return model
