"""From flags to a model: fresh, or with the weights of one that was published."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from hfgen.hub import fetch_model

from .config.flags import Arguments
from .config.parser import strict_error_text
from .data.images import ImageData, load_images


Config = TypeVar("Config", bound=PreTrainedConfig)
Model = TypeVar("Model", bound=PreTrainedModel)


def build_config(config_class: type[Config], given: dict[str, Any], **derived: Any) -> Config:
    """A config from flags and from what follows from the data; flags win.

    Raises:
        ValueError: everything that is wrong with the values.
    """
    try:
        return config_class(**{**derived, **given})
    except StrictDataclassError as error:
        raise ValueError(strict_error_text(error)) from error
    except TypeError as error:
        raise ValueError(f"{config_class.__name__}: {error}") from error


def load_model(model_class: type[Model], arguments: Arguments) -> Model | None:
    """The model that --model_name_or_path names, with the config fields that were given; None without the flag.

    Weights are float32 whatever they were published in.

    Raises:
        ValueError: it cannot be loaded, is of another architecture, or a config field that was given changes its
            shape.
    """
    name = arguments.run.model_name_or_path
    if name is None:
        return None
    config_class = model_class.config_class
    assert config_class is not None
    try:
        name = str(fetch_model(name, model_type=config_class.model_type))
        config = config_class.from_pretrained(name)
        for field, value in arguments.model.items():
            setattr(config, field, value)
        config.validate()
        loaded: Any = model_class.from_pretrained(
            name, config=config, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True,
            output_loading_info=True,
        )  # fmt: skip
    except StrictDataclassError as error:
        raise ValueError(f"--model_name_or_path {name} cannot be used: {strict_error_text(error)}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"--model_name_or_path {name} cannot be used: {error}") from error
    model, report = loaded
    _check_every_weight_was_loaded(report, name, arguments.model)
    for tensor in (*model.parameters(), *model.buffers()):
        # In memory of torch's own, which is aligned: where weights read from a file begin is chance, and with it, on
        # some processors, the last bit of a matrix product. A run could then not be repeated.
        tensor.data = tensor.data.clone()
    return model


def _check_every_weight_was_loaded(report: dict[str, Any], name: str, given: dict[str, Any]) -> None:
    """transformers would draw weights that are missing at random, and leave out those that do not fit."""
    mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]}
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"], *mismatched})
    if wrong:
        flags = ", ".join(f"--{field}" for field in given) or "its config.json"
        raise ValueError(
            f"--model_name_or_path {name} cannot be used: its weights are not those of the model {flags} describes: "
            f"they differ in {', '.join(wrong[:5])}{' and others' if len(wrong) > 5 else ''}. Leave out flags that "
            "change the shape of the model, or train a new one without --model_name_or_path."
        )


def load_image_model(model_class: type[Model], arguments: Arguments, seed: int) -> tuple[Model, ImageData]:
    """An image model and its data, each made to fit the other.

    Args:
        model_class: with a config that has image_size, num_channels and, where it can be conditional, num_labels.
        arguments: the flags.
        seed: the order of examples derives from it.

    Raises:
        ValueError: data or config will not do, or a conditional model is asked for and the data has other classes.
    """
    model = load_model(model_class, arguments)
    if model is None:
        given = arguments.model
        data = load_images(arguments.data, seed, given.get("image_size"), given.get("num_channels"))
        classes: dict[str, Any] = {}
        if given.get("num_labels"):
            _check_classes(given["num_labels"], data)
            classes = {"id2label": dict(enumerate(data.label_names)), "label2id": _ids(data.label_names)}
        fresh = {name: value for name, value in given.items() if name not in ("image_size", "num_labels")}
        config_class = model_class.config_class
        assert config_class is not None
        config = build_config(
            config_class, fresh, image_size=list(data.image_size), num_channels=data.num_channels, **classes
        )
        return model_class(config), data
    data = load_images(arguments.data, seed, model.config.image_size, model.config.num_channels)
    # transformers gives every config two labels; the two models that can be conditional have none by default.
    can_be_conditional = not type(model.config)().num_labels
    if can_be_conditional and model.config.num_labels:
        _check_classes(model.config.num_labels, data)
        model.config.id2label = dict(enumerate(data.label_names))
        model.config.label2id = _ids(data.label_names)
    return model, data


def _check_classes(num_labels: int, data: ImageData) -> None:
    if num_labels != len(data.label_names):
        raise ValueError(
            f"The model is conditional on --num_labels {num_labels} classes, and {data.name} has "
            f"{len(data.label_names) or 'none that are named'}. Give the dataset's number, or 0 for a model without."
        )


def _ids(label_names: list[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(label_names)}
