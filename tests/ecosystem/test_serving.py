"""What an engine that serves models asks of them, as far as it can be checked without the engine and its GPU.

vLLM's backend for models of transformers brings its own attention: it lays the tokens of all texts in one row, and
calls the model without a cache. For each layer it has an object that knows which tokens are of which text, and keeps
their keys and values. The calls here are those of vLLM's `model_executor/models/transformers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.ecosystem.small_gpts import both_layouts, random_tokens, small_gpt


ENGINE = "engine-of-tests"


@dataclass
class LayerOfEngine:
    """The attention of one layer over all texts.

    Attributes:
        lengths: how many of the tokens in the row are new ones of each text.
        past: keys and values of each text so far, (heads, tokens, head_dim).
    """

    lengths: list[int] = field(default_factory=list)
    past: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(heads, tokens, head_dim) each, of all texts -> (tokens, heads * head_dim)."""
        outputs = []
        parts = zip(*(tensor.split(self.lengths, dim=1) for tensor in (query, key, value)))
        for text, (q, k, v) in enumerate(parts):
            if text in self.past:
                k, v = (torch.cat((old, new), dim=1) for old, new in zip(self.past[text], (k, v)))
            self.past[text] = (k, v)
            is_seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
            attended = scaled_dot_product_attention(q, k, v, is_seen, scale=scale, enable_gqa=True)
            outputs.append(attended.transpose(0, 1).flatten(1))
        return torch.cat(outputs)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    attention_instances: dict[int, LayerOfEngine] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    assert attention_mask is None and attention_instances is not None and scaling is not None
    return attention_instances[module.layer_idx].forward(query[0], key[0], value[0], scaling), None


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    ALL_ATTENTION_FUNCTIONS[ENGINE] = attend
    yield
    del ALL_ATTENTION_FUNCTIONS[ENGINE]


def engine_of(model: PreTrainedModel) -> tuple[PreTrainedModel, dict[int, LayerOfEngine]]:
    """The model without its head, built from the configuration alone and then filled, and its layers of attention."""
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = ENGINE
    with torch.device("meta"):
        empty = AutoModel.from_config(config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    base = type(empty)(config).eval()
    base.load_state_dict(model.base_model.state_dict())
    return base, {layer: LayerOfEngine() for layer in range(config.num_hidden_layers)}


@both_layouts
@pytest.mark.parametrize(
    "fields", [{}, {"num_attention_heads": 4, "num_key_value_heads": 2}], ids=["plain", "grouped"]
)
def test_texts_in_one_row_get_the_logits_that_each_has_alone(layout: str, fields: dict[str, int]) -> None:
    model = small_gpt(layout, **fields)
    base, layers = engine_of(model)
    texts = [random_tokens(1, length, seed=length)[0] for length in (5, 2, 9)]
    done = [0, 0, 0]

    # Prompts whole, in parts, and one token of each: an engine mixes these as it likes.
    for lengths in ([5, 1, 4], [0, 1, 3], [0, 0, 2]):
        for layer in layers.values():
            layer.lengths = lengths
        rows = [range(start, start + length) for start, length in zip(done, lengths)]
        input_ids = torch.cat([text[[*row]] for text, row in zip(texts, rows)])
        positions = torch.tensor([position for row in rows for position in row])
        with torch.no_grad():
            hidden = base(input_ids=input_ids[None], use_cache=False, position_ids=positions[None],
                          attention_instances=layers, return_dict=False)[0][0]  # fmt: skip
            logits = model.lm_head(hidden).split(lengths)
            for text, row, found in zip(texts, rows, logits):
                torch.testing.assert_close(found, model(text[None]).logits[0, [*row]])
        done = [row.stop for row in rows]
    assert done == [5, 2, 9]
