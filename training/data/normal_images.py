"""Datasets in which some images are normal and others are not: an anomaly detector learns from normal images only.

Part of the normal training images is held out for the threshold of the detector. Neither the weights nor the threshold
depend on an image that is not normal; such images of the evaluation split only measure the detector.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor

from hfgen.image_processing import to_pixel_values

from ..config.flags import DataArguments
from .feeds.batches import Batch
from .images import FoundImages, ImageData, decode_split, find_images
from .labels import Labels
from .sources.image_folder import MASK_COLUMN
from .sources.layout import NORMAL_FOLDERS
from .sources.splits import filtered, hold_out, limited


logger = logging.getLogger(__name__)
ALL = "all"
FEWEST_HELD_OUT = 20
MAX_STREAMED_HELD_OUT = 1000


def find_normal_images(
    wanted: list[str] | None,
    args: DataArguments,
    image_size: list[int] | None = None,
    num_channels: int | None = None,
    conditional: bool = False,
) -> FoundImages:
    """Finds a dataset of images, and which of them are normal.

    Args:
        wanted: The normal classes, by name or number, or ["all"] for every image. None: if all training images are of
            one class called good, normal or ok, that one; otherwise nothing is known to be normal. Of a stream, which
            would have to be read for that, too.
        args, image_size, num_channels, conditional: As in [`find_images`].

    Returns:
        [`FoundNormalImages`], whose training images are all normal; what [`find_images`] returns if none are known to
        be.

    Raises:
        ValueError: As [`find_images`], or there is no such class, or it has too few images.
    """
    found = find_images(args, image_size, num_channels, conditional)
    labels = found.decoder.labels
    if wanted is None:
        normal = _find_normal_class(found.train, labels)
        if not normal:
            return found
    elif wanted == [ALL] and (labels is None or ALL not in labels.names):
        normal, labels = [], None
    else:
        normal = _class_indices(wanted, labels, found.name)
    train, names = found.train, [ALL]
    if labels is not None:
        labels = replace(labels, needed=True)  # without its class, nobody knows whether an image is normal
        train, names = _of_classes(train, labels, normal), [labels.names[index] for index in normal]
    train, held_out = _hold_out(train, names, found)
    decoder = replace(found.decoder, labels=labels)
    return FoundNormalImages(
        args, train, found.evaluation, found.eval_split, decoder, found.name, held_out=held_out, normal_names=names
    )


def _hold_out(train: Any, names: list[str], found: FoundImages) -> tuple[Any, Any]:
    """Normal images to train on, and others for the threshold."""
    column, split = found.decoder.column, found.args.train_split
    if not hasattr(train, "select"):
        train, held_out, _ = hold_out(train, column, split, part=1)
        return train, limited(held_out, MAX_STREAMED_HELD_OUT)
    described = "normal images" if names == [ALL] else f"images of {' and '.join(names)}"
    if len(train) < 2 * FEWEST_HELD_OUT:
        raise ValueError(
            f"{found.name} ({split}) must have at least {2 * FEWEST_HELD_OUT} {described}, got {len(train)}: "
            f"{FEWEST_HELD_OUT} are held out for the threshold. Use more images, or another --normal_label."
        )
    train, held_out, _ = hold_out(train, column, split, fewest=FEWEST_HELD_OUT)
    logger.info("Training on %d %s, with %d held out for the threshold.", len(train), described, len(held_out))
    return train, held_out


@dataclass(kw_only=True)
class FoundNormalImages(FoundImages):
    """A dataset of images that was found, and of which the normal ones are known.

    Attributes:
        held_out: Encoded normal images that are not trained on.
        normal_names: The normal classes; ["all"] if there are no classes.
    """

    held_out: Any
    normal_names: list[str]

    def load(self, seed: int) -> NormalImageData:
        data = super().load(seed)
        decoder = replace(self.decoder, name=f"{self.name} (held out of {self.args.train_split})")
        held_out, _ = decode_split(self.held_out, decoder, self.args)
        is_normal = torch.ones(data.num_eval_examples, dtype=torch.bool)
        if data.eval_labels is not None:
            normal = [data.label_names.index(name) for name in self.normal_names]
            is_normal = torch.isin(data.eval_labels, torch.tensor(normal))
        return NormalImageData(
            **{field.name: getattr(data, field.name) for field in fields(data)},
            normal_names=self.normal_names,
            held_out=held_out,
            is_normal=is_normal,
            masks=_find_masks(self.evaluation, is_normal, decoder.size, f"{self.name} ({self.eval_split})"),
        )


@dataclass(kw_only=True)
class NormalImageData(ImageData):
    """A dataset of images whose training images are all normal.

    Attributes:
        normal_names: The normal classes; ["all"] if there are no classes.
        held_out: uint8 (images, channels, height, width), or what decodes them: normal images for the threshold.
        is_normal: bool (evaluation examples,).
        masks: Of the evaluation examples; None if there are none.
    """

    normal_names: list[str]
    held_out: Any
    is_normal: Tensor
    masks: Masks | None

    def eval_batch(self, rows: Tensor, device: torch.device) -> Batch:
        """Returns the evaluation examples with these indices, with `is_normal`, bool (rows,)."""
        return {**super().eval_batch(rows, device), "is_normal": self.is_normal[rows].to(device)}


class Masks:
    """Which pixels of the evaluation images are anomalous; decoded when they are asked for.

    Args:
        encoded: The mask of each image, or None.
        is_normal: bool (images,). A normal image without a mask has no anomalous pixel.
        size: (height, width) to resize to.
        name: What errors call the data.

    Attributes:
        are_known: bool (images,), whether an image is normal or has a mask.
    """

    def __init__(self, encoded: list[Any], is_normal: Tensor, size: tuple[int, int], name: str):
        self._encoded, self._size, self._name = encoded, size, name
        self.are_known = is_normal | torch.tensor([mask is not None for mask in encoded])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The masks of these images, bool (rows, height, width): true where one is lighter than half of its maximum.

        Raises:
            ValueError: A mask cannot be read.
        """
        masks = torch.zeros(len(rows), *self._size, dtype=torch.bool)
        for mask, row in zip(masks, rows.tolist()):
            if self._encoded[row] is None:
                continue
            try:
                levels = to_pixel_values([self._encoded[row]], 1, self._size, Resampling.NEAREST)[0, 0]
            except ValueError as error:
                path = self._encoded[row].get("path") or "its mask"
                reason = str(error).removeprefix("images, position 0: ")
                raise ValueError(f"{self._name}, example {row} ({path}): mask {reason}") from None
            mask.copy_(2 * levels.int() > levels.max())
        return masks


def _find_masks(evaluation: Any, is_normal: Tensor, size: tuple[int, int], name: str) -> Masks | None:
    """The masks in the column of that name. Those of a stream, whose examples are read once only, are not used."""
    if not hasattr(evaluation, "select") or type(evaluation.features.get(MASK_COLUMN)).__name__ != "Image":
        return None
    encoded = evaluation.with_format(None)[MASK_COLUMN][:]
    return Masks(encoded, is_normal, size, name) if any(mask is not None for mask in encoded) else None


def _find_normal_class(train: Any, labels: Labels | None) -> list[int]:
    """The class of the training images if there is only one, and its name says that it is normal."""
    if labels is None or not hasattr(train, "unique"):
        return []
    classes = {labels.index_of.get(value) for value in train.unique(labels.column)}
    return [index for index in classes if len(classes) == 1 and index is not None
            and labels.names[index].lower() in NORMAL_FOLDERS]  # fmt: skip


def _class_indices(wanted: list[str], labels: Labels | None, name: str) -> list[int]:
    """Classes by name or else by number."""
    if labels is None:
        raise ValueError(
            f"--normal_label needs the classes of the images, and {name} has none that can be used. Name a column "
            f"with --label_column, or use --normal_label {ALL} if every image is normal."
        )
    numbers = {str(index): index for index in range(len(labels.names))}
    index_of = numbers | {label: index for index, label in enumerate(labels.names)}
    for label in wanted:
        if label not in index_of:
            classes = ", ".join(labels.names[:20]) + (", ..." if len(labels.names) > 20 else "")
            raise ValueError(
                f"--normal_label must be a class of {name}, by name or number, got {label!r}. The classes are "
                f"{classes}."
            )
    return sorted({index_of[label] for label in wanted})


def _of_classes(dataset: Any, labels: Labels, classes: list[int]) -> Any:
    """The examples of some classes."""
    keeps = _HasClass(labels, classes)
    if not hasattr(dataset, "select"):
        return filtered(dataset, keeps)
    is_kept = keeps({labels.column: dataset.with_format(None)[labels.column][:]})
    return dataset.select([row for row, kept in enumerate(is_kept) if kept])


class _HasClass:
    """Filter for the examples of some classes. A class rather than a closure so that workers can be sent a copy."""

    def __init__(self, labels: Labels, classes: list[int]):
        self.labels, self.classes = labels, set(classes)

    def __call__(self, examples: dict[str, list]) -> list[bool]:
        return [self.labels.index_of.get(value) in self.classes for value in examples[self.labels.column]]
