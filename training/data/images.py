"""Datasets of images, made ready to train on: found, checked, decoded."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hfgen.image_processing import to_pixel_values

from ..config.flags import DataArguments
from .batches import Batch, Feed, fits_in_memory, image_batch
from .feeds import DatasetFeed, TensorFeed
from .sources import find_eval_split, find_split, first_example, hold_out, limited, load_splits
from .streams import ShuffledExamples, State, StreamFeed
from .workers import spare_workers


MAX_STREAMED_EVAL_IMAGES = 10_000


def load_images(
    args: DataArguments,
    seed: int,
    image_size: list[int] | None = None,
    num_channels: int | None = None,
) -> ImageData:
    """Finds a dataset of images and makes it ready to train on.

    Args:
        args: the flags that name it.
        seed: the order of examples derives from it.
        image_size: (height, width) or (side,) to resize to; all images must have one size when None.
        num_channels: 1 or 3 to convert to; that of the first image when None, and then of all images.

    Raises:
        ValueError: the dataset, split or column is not there, or its images are not of one kind; the message says what
            to do.
    """
    if image_size is not None and len(image_size) not in (1, 2):
        raise ValueError(f"--image_size must be HEIGHT WIDTH or one number for a square, got {image_size}.")
    name = args.dataset_name or "digits"
    splits = load_splits(name, args)
    train = find_split(splits, args.train_split, "--train_split")
    column = _image_column(train, args.image_column, name)
    label_column, label_names = _label_column(train, args.label_column, name)
    eval_name = find_eval_split(splits, args)
    train = _undecoded(train, column, f"{name} ({args.train_split})")
    if eval_name is None:
        train, evaluation, eval_name = hold_out(train, column, args.train_split)
    else:
        evaluation = _undecoded(splits[eval_name], column, f"{name} ({eval_name})")

    train_name = f"{name} ({args.train_split})"
    try:
        first = _header(first_example(train, train_name)[column])
    except _Unreadable as error:
        raise ValueError(f"{train_name}, example 0: {error}") from error
    decode = ImageDecoder(
        column, label_column, len(label_names), train_name,
        size=first.size if image_size is None else (image_size[0], image_size[-1]), resize=image_size is not None,
        num_channels=num_channels or first.num_channels, convert=num_channels is not None,
    )  # fmt: skip
    eval_limit = args.max_eval_samples or (MAX_STREAMED_EVAL_IMAGES if args.streaming else None)
    eval_pixels, eval_labels = _evaluation(
        limited(evaluation, eval_limit), replace(decode, name=f"{name} ({eval_name})"), args
    )
    return ImageData(
        _feed(train, decode, seed, args), eval_pixels, eval_labels, decode.size, decode.num_channels, label_names,
        name, eval_name, args.dataset_revision,
    )  # fmt: skip


def _feed(train: Any, decode: ImageDecoder, seed: int, args: DataArguments) -> Feed:
    if args.streaming:
        workers = args.dataloader_num_workers or 0  # their number decides the order: never chosen by the machine
        return StreamFeed(train, decode.stream, seed, args.shuffle_buffer_size, workers, args.max_train_samples)
    train = limited(train, args.max_train_samples)
    if fits_in_memory(len(train) * decode.num_bytes, args.in_memory):
        return TensorFeed(*_decode_all(train, decode), seed)
    workers = spare_workers() if args.dataloader_num_workers is None else args.dataloader_num_workers
    return DatasetFeed(train, decode, seed, workers)


def _evaluation(dataset: Any, decode: ImageDecoder, args: DataArguments) -> tuple[Any, Tensor | None]:
    """Pixels and labels to measure on: held, so that they are decoded and checked once, unless they are too many."""
    # Not in memory by request is about the training images: an evaluation split that is small is held all the same.
    if args.streaming or fits_in_memory(len(dataset) * decode.num_bytes, args.in_memory or None):
        return _decode_all(dataset, decode)
    labels = None
    if decode.label_column:
        labels = decode.labels(dataset.with_format(None)[decode.label_column][:], range(len(dataset)))
    return DecodedPixels(dataset, decode), labels


class DecodedPixels:
    """The pixels of a split that does not fit in memory: a slice of it is decoded when it is asked for."""

    def __init__(self, dataset: Any, decode: ImageDecoder):
        self.dataset, self.decode = dataset, decode

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: slice) -> Tensor:
        """uint8 (rows, channels, height, width)."""
        return self.decode(self.dataset[rows], range(*rows.indices(len(self))))["pixels"]


@dataclass
class ImageDecoder:
    """Rows of a dataset -> uint8 pixels and labels. A class, not a closure, so that workers can be sent a copy.

    Attributes:
        column, label_column: where images and labels are; no labels when None.
        num_classes: labels must be below it.
        name: what errors call the data.
        size, num_channels: what all images get.
        resize, convert: whether images of another size or mode are made to fit, or refused.
    """

    column: str
    label_column: str | None
    num_classes: int
    name: str
    size: tuple[int, int]
    num_channels: int
    resize: bool
    convert: bool

    @property
    def num_bytes(self) -> int:
        """Of a decoded image."""
        return self.num_channels * self.size[0] * self.size[1]

    def __call__(self, rows: dict[str, list], positions: Sequence[object]) -> Batch:
        """The batch of some rows, by column.

        Raises:
            ValueError: an image or label will not do; it is named by its position.
        """
        images = [_encoded(image) for image in rows[self.column]]
        try:
            batch = {"pixels": self._pixels(images)}
        except ValueError:
            self._explain(images, positions)
            raise
        if self.label_column:
            batch["labels"] = self.labels(rows[self.label_column], positions)
        return batch

    def stream(self, examples: ShuffledExamples, batch_size: int, state: State) -> Iterator[tuple[Batch, State]]:
        """Batches of endless examples, each with the state after it."""
        while True:
            chunk, origins = [], []
            for example in islice(examples, batch_size):
                chunk.append(example)
                origins.append(examples.origin)
            rows = {key: [row[key] for row in chunk] for key in (self.column, self.label_column) if key}
            yield self(rows, origins), examples.position

    def _pixels(self, images: list) -> Tensor:
        if not self.convert:
            for image in images:
                found = _header(image).num_channels
                if found != self.num_channels:
                    raise ValueError(
                        f"expected {_kind(self.num_channels)} as the first one, found {_kind(found)}. Give "
                        "--num_channels 1 or --num_channels 3 to convert all."
                    )
        pixels = to_pixel_values(images, self.num_channels, self.size if self.resize else None)
        if pixels.shape[2:] != self.size:
            height, width = pixels.shape[2:]
            raise ValueError(
                f"expected {self.size[0]} x {self.size[1]} (height x width) as the first one, found {height} x "
                f"{width}. Give --image_size HEIGHT WIDTH to resize all."
            )
        return pixels

    def _explain(self, images: list, positions: Sequence[object]) -> None:
        """Looks for the image at fault, whose position in the dataset the user needs."""
        for image, position in zip(images, positions):
            try:
                self._pixels([image])
            except ValueError as error:
                text = str(error).removeprefix("images, position 0: ")
                path = f" ({image['path']})" if isinstance(image, dict) and image.get("path") else ""
                raise ValueError(f"{self.name}, example {position}{path}: {text}") from None

    def labels(self, labels: list, positions: Sequence[object]) -> Tensor:
        """Checked labels, (rows,)."""
        for label, position in zip(labels, positions):
            if label is None or not 0 <= label < self.num_classes:
                raise ValueError(
                    f"{self.name}, example {position}: expected a label from 0 to {self.num_classes - 1}, found "
                    f"{label}. Use another split, or name another column with --label_column."
                )
        return torch.tensor(labels, dtype=torch.long)


@dataclass
class _Header:
    """What an image file says of itself: (height, width) as it is shown, and 1 or 3 channels."""

    size: tuple[int, int]
    num_channels: int


class _Unreadable(ValueError):
    """There is no image, or it cannot be read; the message says what to do."""


def _header(image: Any) -> _Header:
    """Reads an image as far as its header; raises _Unreadable."""
    from PIL import ExifTags, Image, ImageMode

    image = _encoded(image)
    parts = image if isinstance(image, dict) else {}
    source = io.BytesIO(parts["bytes"]) if parts.get("bytes") is not None else parts.get("path")
    if source is None:
        found = "nothing" if image is None else type(image).__name__
        raise _Unreadable(
            f"expected an image, found {found}. Remove the row, or name another column with --image_column."
        )
    try:
        with Image.open(source) as opened:
            # Only a JPEG tells without being decoded; other kinds that are turned need --image_size.
            turned = opened.format == "JPEG" and opened.getexif().get(ExifTags.Base.Orientation, 1) > 4
            size = (opened.width, opened.height) if turned else (opened.height, opened.width)
            return _Header(size, 1 if ImageMode.getmode(opened.mode).basemode == "L" else 3)
    except Exception as error:  # PIL's readers raise OSError, SyntaxError, struct.error and others.
        reason = re.sub(r"\s*<_io[^>]*>", "", str(error))
        raise _Unreadable(
            f"expected a readable image, found corrupt or unknown data ({type(error).__name__}: {reason}). Repair the "
            "file or remove it from the dataset."
        ) from None


def _encoded(image: Any) -> Any:
    """An image of a column cast to `Image(decode=False)`, with the bytes where its path is none of this machine's."""
    if isinstance(image, dict) and image.get("bytes") is None and "://" in (image.get("path") or ""):
        import fsspec

        with fsspec.open(image["path"], "rb") as file:
            return {**image, "bytes": file.read()}
    return image


def _kind(num_channels: int) -> str:
    return "a grey image" if num_channels == 1 else "a colour image"


def _decode_all(dataset: Any, decode: ImageDecoder) -> tuple[Tensor, Tensor | None]:
    """A whole split as one tensor, decoded in chunks so that only the uint8 pixels are held."""
    pixels, labels, done = [], [], 0
    for chunk in dataset.iter(batch_size=1000):
        batch = decode(chunk, range(done, done + len(chunk[decode.column])))
        pixels.append(batch["pixels"])
        labels += [batch["labels"]] if "labels" in batch else []
        done += len(batch["pixels"])
    if not done:
        raise ValueError(f"{decode.name} has no examples. Check --train_split, --eval_split and the dataset.")
    return torch.cat(pixels), torch.cat(labels) if labels else None


def _undecoded(dataset: Any, column: str, name: str) -> Any:
    """The dataset with image files as bytes: hfgen decodes them, and can then name a corrupt one."""
    from datasets import Image

    features = dataset.features or {}
    if column not in features:
        raise ValueError(f"{name} has no column {column!r}; it has {', '.join(features)}. Check --image_column.")
    try:
        return dataset.cast_column(column, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError):
        raise ValueError(
            f"The column {column!r} of {name} holds no images, but {features[column]}. Check --image_column."
        ) from None


def _image_column(dataset: Any, wanted: str | None, name: str) -> str:
    if wanted is not None:
        return wanted
    features = dataset.features or {}
    images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if len(images) != 1:
        raise ValueError(
            f"{name} has {len(images) or 'no'} columns of images among {', '.join(features) or 'its columns'}. Name "
            "one with --image_column, or use another dataset."
        )
    return images[0]


def _label_column(dataset: Any, wanted: str | None, name: str) -> tuple[str | None, list[str]]:
    """The column with class labels and the names of the classes; (None, []) if there is none and none is wanted."""
    features = dataset.features or {}
    if wanted is not None and wanted not in features:
        raise ValueError(f"{name} has no column {wanted!r}; it has {', '.join(features)}. Check --label_column.")
    for column in [wanted] if wanted else ["label", "labels", "fine_label"]:
        names = getattr(features.get(column), "names", None)
        if names:
            return column, list(names)
    if wanted:
        raise ValueError(
            f"The column {wanted!r} of {name} is not a ClassLabel, whose classes are named, but {features[wanted]}. "
            "Cast it first, with class_encode_column."
        )
    return None, []


@dataclass
class ImageData:
    """A dataset of images, ready to train on.

    Attributes:
        train: endless training batches with `pixel_values` and, where the dataset has them, `labels`.
        eval_pixels: uint8 (examples, channels, height, width), each measured once. Where they need too much memory,
            an object of that length that decodes a slice when it is asked for one.
        eval_labels: (examples,) or None.
        image_size: (height, width).
        num_channels: 1 or 3.
        label_names: the classes, empty where there are none.
        name, eval_split, revision: what results.json and the card call the data.
    """

    train: Feed
    eval_pixels: Any
    eval_labels: Tensor | None
    image_size: tuple[int, int]
    num_channels: int
    label_names: list[str]
    name: str
    eval_split: str
    revision: str | None = None

    def describe(self) -> dict[str, Any]:
        return {"dataset": self.name, "dataset_revision": self.revision, "split": self.eval_split}

    def eval_batches(self, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """Every evaluation example once."""
        for start in range(0, len(self.eval_pixels), batch_size):
            rows = slice(start, start + batch_size)
            labels = None if self.eval_labels is None else self.eval_labels[rows].to(device)
            yield image_batch(self.eval_pixels[rows].to(device), labels)
