"""Builds the model of a run from its flags: a new one, or one with published weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hfgen.hub import fetch_model

from .config.flags import Arguments, DataArguments
from .config.parser import strict_error_text
from .data.feeds.batches import Feed
from .data.images import FoundImages, ImageData, find_images
from .data.normal_images import FoundNormalImages


TRAINING_BYTES = 16  # per weight: the weight, its gradient and two moments of the optimizer, in float32
MAX_TRAINING_BYTES = 16 * 10**9  # of a model whose size nobody asked for: images of about 500 x 500 pixels
MAX_PIXELS = 1024 * 1024  # of images whose size nobody asked for: the activations of a batch take memory, too
START_EXAMPLES = 1024  # training images whose statistics a new model starts at
# Config fields of a model that is trained to find anomalies, unless flags give them.
OF_DETECTORS = {"anomaly_dim": 400, "noise_std": 0.25, "erase_prob": 0.5}
Config = TypeVar("Config", bound=PreTrainedConfig)
Model = TypeVar("Model", bound=PreTrainedModel)


def build_config(config_class: type[Config], given: dict[str, Any], **derived: Any) -> Config:
    """Returns a config.

    Args:
        config_class: of the model.
        given: fields from flags; they take precedence.
        derived: fields that follow from the data.

    Raises:
        ValueError: lists everything that is wrong with the values.
    """
    try:
        return config_class(**{**derived, **given})
    except StrictDataclassError as error:
        raise ValueError(strict_error_text(error)) from error
    except TypeError as error:
        raise ValueError(f"{config_class.__name__}: {error}") from error


def load_model(model_class: type[Model], arguments: Arguments) -> Model | None:
    """Returns the model of --model_name_or_path with the config fields of the flags; None without that flag.

    Weights become float32, in whatever precision they were published.

    Raises:
        ValueError: the model cannot be loaded, has another architecture, or a flag changes its shape.
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
        # Copy into aligned memory: file-backed alignment varies, and changes the last bit of matrix products on some
        # CPUs. The run could then not be repeated.
        tensor.data = tensor.data.clone()
    return model


def _check_every_weight_was_loaded(report: dict[str, Any], name: str, given: dict[str, Any]) -> None:
    """Refuses what transformers accepts: random values for missing weights, and weights that are left out."""
    mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]}
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"], *mismatched})
    if wrong:
        flags = ", ".join(f"--{field}" for field in given) or "its config.json"
        raise ValueError(
            f"--model_name_or_path {name} cannot be used: its weights do not fit the model that {flags} describes. "
            f"They differ in {', '.join(wrong[:5])}{' and others' if len(wrong) > 5 else ''}. Leave out flags that "
            "change the shape of the model, or train a new one without --model_name_or_path."
        )


def load_image_model(
    model_class: type[Model],
    arguments: Arguments,
    seed: int,
    find: Callable[[DataArguments, list[int] | None, int | None, bool], FoundImages] = find_images,
) -> tuple[Model, ImageData]:
    """Returns an image model and its data. A new model fits the data, and starts at its first training images if it
    has a method `start_at`; images are made to fit a published one.

    Args:
        model_class: its config has image_size, num_channels and, if it can be conditional, num_labels.
        arguments: of the run.
        seed: of the order of the examples.
        find: finds the data, as [`find_images`] does.

    Raises:
        ValueError: data or config cannot be used, or a conditional model and the data differ in their classes.
    """
    given, model = arguments.model, load_model(model_class, arguments)
    if model is not None:
        config = model.config
        # transformers gives every config two labels; the architectures that can be conditional have none by default.
        num_labels = 0 if type(config)().num_labels else config.num_labels
        found = find(arguments.data, config.image_size, config.num_channels, bool(num_labels))
        for field, value in _classes(num_labels, found).items():
            setattr(config, field, value)
        return model, found.load(seed)
    image_size, num_labels = given.get("image_size"), given.get("num_labels", 0)
    found = find(arguments.data, image_size, given.get("num_channels"), bool(num_labels))
    derived = {"num_channels": found.decoder.num_channels, **_classes(num_labels, found)}
    if isinstance(found, FoundNormalImages):
        derived |= OF_DETECTORS
    config_class = model_class.config_class
    assert config_class is not None
    fresh = {name: value for name, value in given.items() if name not in ("image_size", "num_labels")}
    config = build_config(config_class, fresh, image_size=list(found.decoder.size), **derived)
    if image_size is None:
        _check_model_is_small(model_class, config)
    data, new_model = found.load(seed), model_class(config)
    start_at: Any = getattr(new_model, "start_at", None)
    if start_at is not None:
        start_at(_first_images(data.train))
    return new_model, data


def _first_images(feed: Feed) -> Iterator[Tensor]:
    """Batches of the first training images: the same in every process, and in a run that resumes."""
    examples = min(feed.num_examples or START_EXAMPLES, START_EXAMPLES)
    for batch in feed.first_batches(examples):
        yield batch["pixel_values"]


def _check_model_is_small(model_class: type[Model], config: PreTrainedConfig) -> None:
    """Refuses a model that only the size of the images makes huge, before anything is decoded.

    Whoever gives --image_size asked for the size of the model.
    """
    with torch.device("meta"):
        parameters = dict(model_class(config).named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    height, width = config.image_size
    if total * TRAINING_BYTES <= MAX_TRAINING_BYTES:
        if height * width <= MAX_PIXELS:
            return
        raise ValueError(
            f"--image_size must be given for images of {height} x {width} pixels (height x width): at their own size, "
            "the activations of a batch would need many GB of memory, and each step minutes. Resize the images, for "
            "example with --image_size 64."
        )
    name, largest = max(parameters.items(), key=lambda item: item[1].numel())
    raise ValueError(
        f"--image_size must be given for images of {height} x {width} pixels (height x width): at their own size the "
        f"model would have {total / 1e9:.1f} billion weights, {largest.numel() / 1e9:.1f} billion of them in {name}, "
        f"and its training would need {total * TRAINING_BYTES / 1e9:.0f} GB of memory for them alone. Resize the "
        "images, for example with --image_size 64."
    )


def _classes(num_labels: int | None, data: FoundImages) -> dict[str, Any]:
    """Returns the config fields that name the classes; empty for an unconditional model."""
    names = data.label_names
    if not num_labels:
        return {}
    if num_labels != len(names):
        found = f"{len(names)}, the number of classes in {data.name}" if names else f"0, as {data.name} has no classes"
        raise ValueError(
            f"--num_labels must be {found}, got {num_labels}. Use another dataset, name a column with --label_column, "
            "or use an unconditional model (0)."
        )
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
