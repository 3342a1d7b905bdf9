"""Pipelines of transformers for models of images.

    pipeline("unconditional-image-generation", model=repo, trust_remote_code=True)(16, seed=0)     PIL images
    pipeline("image-to-image", model=repo, trust_remote_code=True)("photo.png")                    its reconstruction
    pipeline("image-anomaly-detection", model=repo, trust_remote_code=True)("photo.png")           score, decision, map

transformers copies this file beside the model's, into a saved folder and to the Hub, and finds it there because
`custom_pipelines` in config.json names it. Where hfgen is imported, trust_remote_code is not needed.
"""

import inspect
import math
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ViTImageProcessorPil
from transformers.utils import is_vision_available, logging

from .image_inputs import fetch_image, overlay_maps, pixels_to_pil, to_pil_image


if is_vision_available():  # a model can be used without Pillow, and transformers looks for what its files import
    import PIL.Image


if TYPE_CHECKING:
    Pipeline: Any = object  # each pipeline's methods have arguments of their own
else:
    from transformers import Pipeline

OUTPUT_TYPES = ("pil", "pt", "np")
PROGRESS_AFTER = 2.0  # seconds
BATCH_SIZE = 64  # images that are drawn at once


class ImageGenerationPipeline(Pipeline):
    """Draws images with a VAE, a Ladder VAE or a GAN: the task unconditional-image-generation.

    >>> draw = pipeline("unconditional-image-generation", model=repo, trust_remote_code=True)
    >>> draw(16, seed=0)[0]
    <PIL.Image.Image image mode=L size=28x28>
    """

    _load_tokenizer = _load_processor = _load_image_processor = _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        _check_able(model, hasattr(model, "sample"), "draw images")
        super().__init__(model, *args, **kwargs)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        post = _pop_output_type(options)
        factors: dict[str, Any] = {name: options.pop(name, None) for name in ("temperature", "truncation")}
        forward = {name: value for name, value in factors.items() if value is not None}
        known = inspect.signature(self.model.sample).parameters
        wrong = next((name for name in forward if name not in known), None)
        if wrong is not None:
            (own,) = {"temperature", "truncation"} - {wrong}
            raise ValueError(f"{wrong} is not an argument of this model. Use {own}, which means the same to it.")
        _refuse_unknown(options, "labels, temperature or truncation, generator, seed, batch_size, output_type")
        return {}, forward, post

    def __call__(
        self,
        num_images: int | None = None,
        *,
        batch_size: int | None = None,
        labels: Any = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Any:
        """Draws images. The same seed, number and batch size draw the same images on every device.

        Args:
            num_images: how many; `batch_size` if only that is given, else 1.
            batch_size: images that are drawn at once. Default: 64.
            labels: classes of a conditional model, by number or name: one for all images, or one for each. Spread
                evenly over the classes if None.
            generator: source of the random numbers.
            seed: of a new generator, instead of one.
            options: `temperature` of a VAE or `truncation` of a GAN, a factor on the latents' standard deviation,
                below 1 for images that are more typical and less varied; `output_type`, "pil" (default), "pt" or
                "np".

        Returns:
            A list of PIL images, or one tensor or array (num_images, channels, height, width) in [0, 1].

        Raises:
            ValueError: an argument does not fit the model, or generator and seed are both given.
        """
        count = num_images if num_images is not None else 1 if batch_size is None else batch_size
        step = batch_size or self._batch_size or BATCH_SIZE
        for name, value in (("num_images", count), ("batch_size", step)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive number, got {value!r}.")
        if seed is not None:
            if generator is not None:
                raise ValueError("generator and seed must not both be given. Leave one of them out.")
            generator = torch.Generator().manual_seed(seed)
        _, forward, post = self._sanitize_parameters(**options)
        forward, post = {**self._forward_params, **forward}, {**self._postprocess_params, **post}
        classes = self._classes(labels, count)
        drawn = []
        for start in _progress(range(0, count, step), total=math.ceil(count / step)):
            stop = min(start + step, count)
            part = None if classes is None else classes[start:stop]
            drawn.append(self.forward({"n": stop - start, "labels": part}, generator=generator, **forward)["images"])
        return _as_output(torch.cat(drawn), **post)

    def _classes(self, labels: Any, count: int) -> list[Any] | None:
        """A class for each image; None if the model is unconditional."""
        if labels is None:
            known = self.model.config.num_labels
            return [index % known for index in range(count)] if known else None
        labels = labels.tolist() if hasattr(labels, "tolist") else labels
        classes = list(labels) if isinstance(labels, (list, tuple)) else [labels] * count
        if len(classes) != count:
            raise ValueError(f"labels must be one class, or one for each of {count} images, got {len(classes)}.")
        return classes

    def preprocess(self, input_: Any, **options: Any) -> Any:
        return input_

    def _forward(self, input_tensors: Any, **options: Any) -> Any:
        return {"images": self.model.sample(**input_tensors, **options)}

    def postprocess(self, model_outputs: Any, **options: Any) -> Any:
        return model_outputs


class ImagePipeline(Pipeline):
    """What the pipelines have in common that take images: what they take, and how they show progress.

    An image is a path, a URL, a PIL image, an array or tensor (height, width), (height, width, channels) or (channels,
    height, width), encoded bytes, or a row of a dataset, `{"image": ..., "label": ...}`. One image gives one result. A
    list, a batch (4 axes) or a tuple gives a list. A `datasets` dataset or one of its columns, a `KeyDataset` and a
    generator are read while one iterates over the results. Images are resized as the image processor says.
    """

    _load_image_processor = None  # without one, images are resized to the model's image_size
    _load_tokenizer = _load_processor = _load_feature_extractor = _load_video_processor = False
    image_processor: Any
    purpose = "take images"

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        _check_able(model, self.is_able(model), self.purpose)
        super().__init__(model, *args, **kwargs)
        self.is_conditional = hasattr(model, "log_likelihood") and bool(model.config.num_labels)
        if self.image_processor is None:
            height, width = self.model.config.image_size
            size = {"height": height, "width": width}
            self.image_processor = ViTImageProcessorPil(size=size, image_mean=0.0, image_std=1.0)

    @staticmethod
    def is_able(model: Any) -> bool:
        """Whether the pipeline can use a model."""
        return hasattr(model, "encode")

    def __call__(
        self, inputs: Any = None, *, labels: Any = None, batch_size: int | None = None, **options: Any
    ) -> Any:
        """Runs the model on images.

        Args:
            inputs: images, see the class.
            labels: classes for a model that is conditional, by number or name: one for all images, or for a list one
                for each. Rows of a dataset have their own.
            batch_size: images that go through the model at once. Default: 1.
            options: those of the pipeline, `timeout` (seconds to wait for a URL), `num_workers` (processes that read
                images).

        Raises:
            ValueError: an image cannot be read, or an argument does not fit the model.
        """
        if labels is not None and not self.is_conditional:
            raise ValueError(f"labels must be left out, got {labels!r}. This model knows no classes.")
        options["batch_size"] = 1 if self.model.takes_any_size else batch_size
        found = _to_inputs(inputs, labels)
        if not isinstance(found, list):
            return super().__call__(found, **options)
        if not found:
            return []
        results = super().__call__(_Images(found), **options)
        return list(_progress(results, total=len(found)))

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        pre = {name: options.pop(name) for name in ("timeout",) if name in options}
        forward, post = self.own_parameters(options)
        _refuse_unknown(options, ", ".join(["labels", "batch_size", "timeout", *self.own_names]))
        return pre, forward, post

    own_names: tuple[str, ...] = ()

    def own_parameters(self, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Takes what the pipeline knows out of the options: for the model, and for what comes after it."""
        return {}, {}

    def preprocess(self, input_: Any, timeout: float | None = None) -> dict[str, Any]:
        image, label = _split(input_)
        picture = self._open(image, timeout)
        # A model that takes any size keeps the image's own.
        options: dict[str, Any] = {"do_resize": False} if self.model.takes_any_size else {}
        pixel_values = self.image_processor(picture, return_tensors="pt", **options)["pixel_values"]
        found = {"pixel_values": pixel_values}
        if label is not None and self.is_conditional:  # other models ignore the classes of a dataset's rows
            found["labels"] = self.model.class_indices(label, 1)
        return found

    def _open(self, image: Any, timeout: float | None) -> Any:
        """The image in the model's colors; an error names its file."""
        try:
            source = fetch_image(image, timeout) if isinstance(image, str) else image
            return to_pil_image(source, self.model.config.num_channels)
        except ValueError as error:
            name = str(image)[:200] if isinstance(image, (str, os.PathLike)) else type(image).__name__
            raise ValueError(f"image {name}: {error}") from error


class ImageReconstructionPipeline(ImagePipeline):
    """Encodes images and decodes them again, with an Auto-Encoder, a VAE, a Ladder VAE or a codec: the task
    image-to-image. Images come back as the model sees them: in its size and colors.

    >>> reconstruct = pipeline("image-to-image", model=repo, trust_remote_code=True)
    >>> reconstruct("photo.png")
    <PIL.Image.Image image mode=L size=28x28>

    A call takes, besides what every pipeline of images does, `quality` of a codec in [0, 1] (default: 0.5), and
    `output_type`: "pil" (default), or "pt" or "np" for floats (channels, height, width) in [0, 1].
    """

    purpose = "reconstruct images"
    own_names = ("quality", "output_type")

    @staticmethod
    def is_able(model: Any) -> bool:
        return hasattr(model, "decode_symbols") or (hasattr(model, "encode") and hasattr(model, "decode"))

    def own_parameters(self, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        post = _pop_output_type(options)
        quality = options.pop("quality", None)
        if quality is None:
            return {}, post
        if not hasattr(self.model, "decode_symbols"):
            raise ValueError(f"quality must be left out, got {quality}. This model is no codec.")
        return {"quality": quality}, post

    def _forward(self, input_tensors: Any, quality: float = 0.5) -> Any:
        model, pixel_values = self.model, input_tensors["pixel_values"]
        if hasattr(model, "decode_symbols"):
            symbols = model.encode_symbols(pixel_values, quality)
            return {"images": model.decode_symbols(symbols, quality, tuple(pixel_values.shape[2:]))}
        if not hasattr(model, "log_likelihood"):
            return {"images": model.decode(model.encode(pixel_values))}
        labels = input_tensors.get("labels")
        latents = model.encode(pixel_values, labels, return_dict=True).latent_dist.mode()
        return {"images": model.decode(latents, labels, return_dict=True).sample}

    def postprocess(self, model_outputs: Any, output_type: str = "pil") -> Any:
        return _as_output(model_outputs["images"], output_type)[0]


class ImageAnomalyDetectionPipeline(ImagePipeline):
    """Finds images that are unlike those of the training, and where they are, with an Auto-Encoder: the task
    image-anomaly-detection.

    >>> detect = pipeline("image-anomaly-detection", model=repo, trust_remote_code=True)
    >>> detect("photo.png")
    {'score': 1.7, 'is_anomaly': False, 'map': tensor(...), 'heatmap': <PIL.Image.Image image mode=RGB size=28x28>}

    `score` is larger for stranger images; `is_anomaly` says whether it is above `threshold`, that of the model if a
    call gives no other, and is None if there is none; `map` (height, width) is larger where the image is stranger;
    `heatmap` is the image as the model sees it, painted red there.
    """

    purpose = "detect anomalies"
    own_names = ("threshold",)

    @staticmethod
    def is_able(model: Any) -> bool:
        return hasattr(model, "predict_anomaly")

    def own_parameters(self, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        threshold = options.pop("threshold", None)
        return {}, {} if threshold is None else {"threshold": float(threshold)}

    def _forward(self, input_tensors: Any) -> Any:
        pixel_values = input_tensors["pixel_values"]
        found = self.model.predict_anomaly(pixel_values)
        return {"scores": found["scores"], "maps": found["maps"], "pixel_values": pixel_values}

    def postprocess(self, model_outputs: Any, threshold: float | None = None) -> dict[str, Any]:
        config = self.model.config
        threshold = config.anomaly_threshold if threshold is None else threshold
        score, maps = float(model_outputs["scores"][0]), model_outputs["maps"].float()
        painted = overlay_maps(model_outputs["pixel_values"], maps, config.anomaly_map_threshold)
        return {
            "score": score,
            "is_anomaly": None if threshold is None else score > threshold,
            "map": maps[0],
            "heatmap": pixels_to_pil(painted)[0],
        }


class _Images(Dataset):
    """Images as a dataset of torch, which transformers reads one by one."""

    def __init__(self, images: Any):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index]


def _to_inputs(inputs: Any, labels: Any) -> Any:
    """One image as it is, several that are in memory as a list, and others as a dataset or generator; with labels."""
    if inputs is None:
        raise ValueError("inputs must be an image or several, got None. Pass a path, a URL, or a PIL image.")
    if isinstance(inputs, (np.ndarray, Tensor)) and inputs.ndim == 4:
        inputs = list(inputs)
    if isinstance(inputs, (list, tuple)):
        return _with_labels(list(inputs), labels)
    is_one = isinstance(inputs, (str, bytes, dict, os.PathLike, np.ndarray, Tensor, PIL.Image.Image))
    if not is_one and not isinstance(inputs, Iterable) and not hasattr(inputs, "__getitem__"):
        raise ValueError(f"inputs must be an image or several, got {type(inputs).__name__}. Pass a list.")
    if labels is not None and not is_one and hasattr(labels, "__len__") and not isinstance(labels, str):
        raise ValueError('labels must be one class, got several. Pass rows {"image": ..., "label": ...} instead.')
    if is_one:
        return inputs if labels is None else {"image": inputs, "label": labels}
    if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):  # a dataset, or a column of one
        return _Images(inputs) if labels is None else _Images(_Labeled(inputs, labels))
    return _iterate(inputs, labels)


def _with_labels(images: list[Any], labels: Any) -> list[Any]:
    if labels is None:
        return images
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    each = list(labels) if isinstance(labels, (list, tuple)) else [labels] * len(images)
    if len(each) != len(images):
        raise ValueError(f"labels must be one class, or one for each of {len(images)} images, got {len(each)}.")
    return [{"image": image, "label": label} for image, label in zip(images, each)]


class _Labeled:
    """Images of a dataset, all of one class."""

    def __init__(self, images: Any, label: Any):
        self.images, self.label = images, label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return {"image": self.images[index], "label": self.label}


def _iterate(images: Iterable[Any], label: Any) -> Iterator[Any]:
    for image in images:
        yield image if label is None else {"image": image, "label": label}


def _split(row: Any) -> tuple[Any, Any]:
    """An image and its class, or None."""
    if not isinstance(row, dict) or "bytes" in row or "path" in row:
        return row, None
    if "image" not in row:
        names = ", ".join(map(str, row))
        raise ValueError(
            f'A row must have its image under "image", got {names}. Pass a column, dataset["NAME"], or '
            'KeyDataset(dataset, "NAME").'
        )
    return row["image"], row.get("label")


def _as_output(images: Tensor, output_type: str = "pil") -> Any:
    images = images.float().cpu()
    return pixels_to_pil(images) if output_type == "pil" else images if output_type == "pt" else images.numpy()


def _pop_output_type(options: dict[str, Any]) -> dict[str, Any]:
    output_type = options.pop("output_type", None)
    if output_type not in (None, *OUTPUT_TYPES):
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    return {} if output_type is None else {"output_type": output_type}


def _progress(steps: Any, total: int) -> Any:
    """A bar, once it takes long. `transformers.utils.logging.disable_progress_bar()` turns it off."""
    return logging.tqdm(steps, total=total, delay=PROGRESS_AFTER, leave=False) if total > 1 else steps


def _check_able(model: Any, is_able: bool, purpose: str) -> None:
    if not is_able or not hasattr(model, "check_images"):  # which all of hfgen's models of images have
        name = type(model).__name__
        raise ValueError(f"model must be one of hfgen's that can {purpose}, got {name}. Choose another model or task.")


def _refuse_unknown(options: dict[str, Any], known: str) -> None:
    if options:
        raise ValueError(f"{next(iter(options))} is not an argument of this pipeline. It takes {known}.")


__all__ = ["ImageAnomalyDetectionPipeline", "ImageGenerationPipeline", "ImageReconstructionPipeline"]
