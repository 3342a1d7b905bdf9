"""From flags to a model: fresh, or with the weights of one that was published."""

from __future__ import annotations

from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from training.arguments import Arguments
from training.data import ImageData, load_images


Model = TypeVar("Model", bound=PreTrainedModel)


def build_config(config_class: type[PreTrainedConfig], given: dict[str, Any], **derived: Any) -> PreTrainedConfig:
    """A config from flags and from what follows from the data; flags win.

    Raises:
        ValueError: everything that is wrong with the values.
    """
    try:
        return config_class(**{**derived, **given})
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def load_model(model_class: type[Model], arguments: Arguments) -> Model | None:
    """The model that --model_name_or_path names, with the config fields that were given changed; None without the flag.

    Raises:
        ValueError: it cannot be loaded, or is of another architecture.
    """
    name = arguments.run.model_name_or_path
    if name is None:
        return None
    config_class = model_class.config_class
    assert config_class is not None
    try:
        config = config_class.from_pretrained(name)
        found = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
        if found != config_class.model_type:
            raise ValueError(
                f"it holds a model of the type {found!r}, and this script trains {config_class.model_type!r}"
            )
        for field, value in arguments.model.items():
            setattr(config, field, value)
        config.validate()
        return model_class.from_pretrained(name, config=config)
    except (OSError, ValueError, RuntimeError, StrictDataclassError) as error:
        raise ValueError(f"--model_name_or_path {name} cannot be used: {error}") from error


def load_image_model(model_class: type[Model], arguments: Arguments, seed: int, **defaults: Any) -> tuple[Model, ImageData]:
    """An image model and its data, each made to fit the other.

    Args:
        model_class: with a config that has image_size, num_channels and, where it can be conditional, num_labels.
        arguments: the flags.
        seed: the order of examples derives from it.
        defaults: config fields of the script's own choice.

    Raises:
        ValueError: data or config will not do, or a conditional model is asked for and the data has other classes.
    """
    model = load_model(model_class, arguments)
    given = arguments.model
    if model is None:
        data = load_images(arguments.data, seed, given.get("image_size"), given.get("num_channels"))
        num_labels = given.pop("num_labels", 0)
        classes = {"id2label": dict(enumerate(data.label_names)),
                   "label2id": {name: i for i, name in enumerate(data.label_names)}} if num_labels else {}  # fmt: skip
        derived = {**defaults, "image_size": list(data.image_size), "num_channels": data.num_channels, **classes}
        config_class = model_class.config_class
        assert config_class is not None
        if num_labels not in (0, len(data.label_names)):
            raise ValueError(
                f"--num_labels {num_labels} asks for a model that is conditional on as many classes, and {data.name} has "
                f"{len(data.label_names) or 'none that are named'}."
            )
        fresh = {name: value for name, value in given.items() if name != "image_size"}
        model = model_class(build_config(config_class, fresh, **derived))
    else:
        data = load_images(arguments.data, seed, model.config.image_size, model.config.num_channels)
        num_labels = 0 if model.config.id2label is None else len(model.config.id2label)
        if model.config.model_type != "hfgen_autoencoder" and num_labels not in (0, len(data.label_names)):
            raise ValueError(
                f"The model is conditional on {num_labels} classes, and {data.name} has {len(data.label_names)}."
            )
    return model, data
