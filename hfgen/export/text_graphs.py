"""The graph of a GPT: one for the prompt and for every token after it, because the cache that it takes may be empty.

Inputs and outputs have the names that transformers.js passes them by.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..models.cache_name import named_cache
from .checks import TOLERANCE
from .graphs import BATCH, ExportError, Graph, Input, Output, Shape, Sizes, draw_integers, draw_normal
from .onnx_files import Session


LENGTH, PAST, TOTAL = "sequence_length", "past_sequence_length", "total_sequence_length"
PROMPT, WRITTEN = 4, 20  # tokens, in the check of what is written with a cache


def text_graph(model: Any) -> Graph:
    """The graph of a causal language model of transformers, or a GPTForCausalLM, in evaluation mode.

    The attention is computed step by step (eager), in which a row of padding, which sees nothing, is a number.
    """
    model.set_attn_implementation("eager")
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def compute(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> list[Tensor]:
        cache = DynamicCache(config=config)
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2])):
            cache.update(keys, values, layer)
        outputs = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                        use_cache=True, **named_cache(cache))  # fmt: skip
        layers: Any = cache.layers
        return [outputs.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values))]

    token, past = draw_integers(config.vocab_size), (BATCH, heads, PAST, head_dim)
    inputs = [
        Input("input_ids", (BATCH, LENGTH), token, torch.int64),
        Input("attention_mask", (BATCH, TOTAL), token, torch.int64),
        Input("position_ids", (BATCH, LENGTH), token, torch.int64),
    ]
    present: Shape = (BATCH, heads, TOTAL, head_dim)
    outputs = [Output("logits", (BATCH, LENGTH, config.vocab_size))]
    for layer in range(config.num_hidden_layers):
        inputs += [Input(f"past_key_values.{layer}.{part}", past, draw_normal) for part in ("key", "value")]
        outputs += [Output(f"present.{layer}.{part}", present) for part in ("key", "value")]
    cached = [[sizes for sizes in entry.shape if isinstance(sizes, int)] for entry in inputs[3:]]

    def draw(sizes: Sizes, generator: torch.Generator) -> list[Tensor]:
        batch, length, past_length = sizes[BATCH], sizes[LENGTH], sizes[PAST]
        mask = torch.ones(batch, past_length + length, dtype=torch.int64)
        mask[0, : (past_length + length) // 3] = 0  # a shorter text is filled up at its left
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, past_length:]
        earlier = [torch.randn(batch, kept, past_length, width, generator=generator) for kept, width in cached]
        return [token([batch, length], generator), mask, positions, *earlier]

    return Graph(
        "model", "The next token at every position, and the cache of keys and values, which may be empty.", compute,
        tuple(inputs), tuple(outputs), model, _sizes(2, 3, 4), (_sizes(1, 5, 0), _sizes(3, 1, 6), _sizes(2, 4, 2)),
        sums=(TOTAL,), draw_all=draw, writes_text=True,
    )  # fmt: skip


@torch.no_grad()
def check_writing(path: Path, graph: Graph) -> int:
    """Writes tokens with a file and its cache, each the likeliest one, and compares them with those of PyTorch without
    a cache.

    Returns:
        How many were compared.

    Raises:
        ExportError: another token was likelier.
    """
    session, model = Session(path), graph.model
    config: Any = model.config
    count = max(1, min(WRITTEN, config.max_position_embeddings - PROMPT))
    text = torch.randint(config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    past = [torch.zeros([1 if side == BATCH else 0 if side == PAST else int(side) for side in entry.shape])
            for entry in graph.inputs[3:]]  # fmt: skip
    new = text
    for index in range(count):
        positions = torch.arange(text.shape[1] - new.shape[1], text.shape[1])[None]
        logits, *past = session([new, torch.ones_like(text), positions, *past])
        expected = model(input_ids=text).logits[0, -1]
        written = int(logits[0, -1].argmax())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not float(expected.max() - expected[written]) <= 2 * allowed:
            raise ExportError(
                f"{path.name} must write what PyTorch writes, got another token after {index} of {count}. Please "
                "report this model's config.json as a bug of hfgen."
            )
        new = torch.tensor([[written]])
        text = torch.cat([text, new], dim=1)
    return count


def _sizes(batch: int, length: int, past: int) -> dict[str, int]:
    return {BATCH: batch, LENGTH: length, PAST: past, TOTAL: past + length}
