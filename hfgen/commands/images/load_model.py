"""hfgen's models of images, from a folder or the Hub, for the commands that draw. They run hfgen's own code, never the
code that comes with a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from ...embedding import is_conditional
from ...hub import fetch_model
from ...model_folder import read_json
from ...models import MODELS
from ...models.modeling_gpt import GPTConfig


def load_model(name: str, revision: str | None, is_able: Callable[[type], bool], purpose: str) -> Any:
    """A model in evaluation mode with weights in float32, on a GPU if there is one.

    Args:
        name: folder, or repository on the Hub.
        revision: branch, tag or commit of the repository.
        is_able: whether the command can use a class of models.
        purpose: what the command does, after "cannot".

    Raises:
        HubError, LoadError: there is no such model, or it would not load.
        ValueError: the command cannot use this kind of model.
    """
    folder = fetch_model(name, revision)
    model_type = read_json(folder / "config.json").get("model_type", "")
    able = [known for known, entry in MODELS.items() if is_able(entry.base_model_class)]
    if model_type not in able:
        advice = f" Use hfgen generate {name}." if model_type == GPTConfig.model_type else ""
        raise ValueError(
            f"The model_type of {name} must be one of {', '.join(able)}, got {model_type!r}. Other models cannot "
            f"{purpose}.{advice}"
        )
    transformers_logging.disable_progress_bar()
    model_class: Any = MODELS[model_type].base_model_class
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def class_of_each(model: Any, count: int, labels: Sequence[str] | None) -> list[str | int] | None:
    """A class for each image: those that are asked for in turn, or all of a conditional model's.

    Args:
        model: conditional or not.
        count: number of images.
        labels: names or numbers; a name that reads like a number is a name first.

    Returns:
        What the methods of the model take for `labels`; None for an unconditional model.

    Raises:
        ValueError: classes of an unconditional model.
    """
    if not is_conditional(model.config):
        if labels:
            raise ValueError(f"--label must be left out, got {labels[0]!r}. This model knows no classes.")
        return None
    names = model.config.id2label.values()
    classes: list[str | int] = list(range(model.config.num_labels))
    if labels:
        classes = [int(label) if label.isdecimal() and label not in names else label for label in labels]
    return [classes[index % len(classes)] for index in range(count)]


def temperature_option(model: Any, temperature: float | None) -> dict[str, float]:
    """The argument of the model's `sample` that a temperature is; none if it is not given.

    Raises:
        ValueError: it is negative or not finite.
    """
    if temperature is None:
        return {}
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"--temperature must be at least 0 and finite, got {temperature}. 1 samples as trained.")
    return {MODELS[model.config.model_type].temperature: temperature}
