"""The last step of every conversion of a model: the weights go over, and what else is not in the config."""

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor
from transformers import PreTrainedModel


Converted = TypeVar("Converted", bound=PreTrainedModel)


def take_over(model: Converted, source: PreTrainedModel, state_dict: Mapping[str, Tensor]) -> Converted:
    """Copies the weights to a new model, and everything about the source that is not in its config."""
    model.to(device=source.device, dtype=source.dtype)  # type: ignore[call-arg]  # an artifact of a wrapper
    model.load_state_dict(state_dict)
    model.set_attn_implementation(source.config._attn_implementation)
    model.generation_config = copy.deepcopy(source.generation_config)
    return model.train(source.training)
