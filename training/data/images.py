"""Datasets of images, made ready to train on: found, checked, decoded."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hfgen.image_processing import exif_orientation, to_pixel_values, why_unreadable

from ..config.flags import DataArguments
from .feeds.batches import Batch, Feed, evenly_spread, fits_in_memory, image_batch
from .feeds.indexed import DatasetFeed, TensorFeed
from .feeds.streams import ShuffledExamples, State, StreamFeed
from .feeds.workers import default_num_workers
from .labels import Labels, find_labels
from .sources.image_folder import MASK_COLUMN
from .sources.splits import find_eval_split, find_split, first_example, hold_out, limited, load_splits


MAX_STREAMED_EVAL_IMAGES = 10_000


def load_images(
    args: DataArguments,
    seed: int,
    image_size: list[int] | None = None,
    num_channels: int | None = None,
    conditional: bool = False,
) -> ImageData:
    """Finds a dataset of images and makes it ready to train on: `find_images(...).load(seed)`."""
    return find_images(args, image_size, num_channels, conditional).load(seed)


def find_images(
    args: DataArguments,
    image_size: list[int] | None = None,
    num_channels: int | None = None,
    conditional: bool = False,
) -> FoundImages:
    """Finds a dataset of images, reading no more of them than the header of the first one.

    Args:
        args: The flags that name it.
        image_size: (height, width) or (side,) to resize to. None: all images must have the size of the first one.
        num_channels: 1 or 3 to convert to. None: all images must have the channels of the first one.
        conditional: Whether the model needs labels. If not, labels that cannot be used stop nothing.

    Raises:
        ValueError: The dataset, a split or a column is missing, or the first image cannot be used.
    """
    if image_size is not None and len(image_size) not in (1, 2):
        raise ValueError(f"--image_size must be HEIGHT WIDTH or one number for a square, got {image_size}.")
    name = args.dataset_name or "digits"
    splits = load_splits(name, args)

    # What to train and to evaluate on.
    train, eval_split = find_split(splits, args.train_split, "--train_split"), find_eval_split(splits, args)
    evaluation = None if eval_split is None else find_split(splits, eval_split, "--eval_split")
    train_name = f"{name} ({args.train_split})"
    column = _find_image_column(train, args.image_column, name)
    labels = find_labels(train, evaluation, args.label_column, conditional, name)
    train = _undecoded(train, column, train_name)
    if eval_split is None:
        train, evaluation, eval_split = hold_out(train, column, args.train_split)
    else:
        evaluation = _undecoded(evaluation, column, f"{name} ({eval_split})")
    evaluation = limited(evaluation, args.max_eval_samples or (MAX_STREAMED_EVAL_IMAGES if args.streaming else None))

    # What all images must have, or are made to have.
    example = first_example(train, train_name)
    try:
        first = _read_header(example[column])
    except ValueError as error:
        raise ValueError(f"{train_name}, example 0: {error}") from error
    size = first.size if image_size is None else (image_size[0], image_size[-1])
    channels = num_channels or first.num_channels
    decoder = ImageDecoder(column, labels, train_name, size, channels, image_size is not None, bool(num_channels))
    return FoundImages(args, train, evaluation, eval_split, decoder, name)


@dataclass
class FoundImages:
    """A dataset of images that was found, and none of which is decoded yet.

    Attributes:
        args: The flags that name it.
        train, evaluation: Their encoded images.
        eval_split: What the evaluation split is called.
        decoder: Of the training images.
        name: What results.json and the card call the data.
    """

    args: DataArguments
    train: Any
    evaluation: Any
    eval_split: str
    decoder: ImageDecoder
    name: str

    @property
    def label_names(self) -> list[str]:
        """The classes; empty if there are none."""
        return self.decoder.labels.names if self.decoder.labels else []

    def load(self, seed: int) -> ImageData:
        """Decodes what is held in memory.

        Args:
            seed: Determines the order of the examples.

        Raises:
            ValueError: An image or label cannot be used.
        """
        decoder, args = self.decoder, self.args
        pixels, labels = decode_split(self.evaluation, replace(decoder, name=f"{self.name} ({self.eval_split})"), args)
        feed, revision = _feed(self.train, decoder, seed, args), args.version
        return ImageData(
            feed, pixels, labels, decoder.size, decoder.num_channels, self.label_names, self.name, self.eval_split,
            revision,
        )  # fmt: skip


def _feed(train: Any, decoder: ImageDecoder, seed: int, args: DataArguments) -> Feed:
    if args.streaming:
        workers = args.dataloader_num_workers or 0  # never chosen by the machine: their number determines the order
        return StreamFeed(train, decoder.stream, seed, args.shuffle_buffer_size, workers, args.max_train_samples)
    train = limited(train, args.max_train_samples)
    if fits_in_memory(len(train) * decoder.bytes_per_image, args.in_memory):
        return TensorFeed(*_decode_all(train, decoder), seed)
    workers = default_num_workers() if args.dataloader_num_workers is None else args.dataloader_num_workers
    return DatasetFeed(train, decoder, seed, workers)


def decode_split(dataset: Any, decoder: ImageDecoder, args: DataArguments) -> tuple[Any, Tensor | None]:
    """Pixels and labels to evaluate on, decoded and checked once if they fit in memory.

    Raises:
        ValueError: An image or label cannot be used.
    """
    # --in_memory false is about the training images: a small evaluation split is held all the same.
    if args.streaming or fits_in_memory(len(dataset) * decoder.bytes_per_image, args.in_memory or None):
        return _decode_all(dataset, decoder)
    labels = None
    if decoder.labels:
        values = dataset.with_format(None)[decoder.labels.column][:]
        labels = decoder.labels.encode(values, range(len(dataset)), decoder.name)
    return DecodedPixels(dataset, decoder), labels


def _decode_all(dataset: Any, decoder: ImageDecoder) -> tuple[Tensor, Tensor | None]:
    """A whole split as one tensor, decoded in chunks so that only the uint8 pixels are held."""
    pixels, labels, done = [], [], 0
    for chunk in dataset.iter(batch_size=1000):
        batch = decoder(chunk, range(done, done + len(chunk[decoder.column])))
        pixels.append(batch["pixels"])
        labels += [batch["labels"]] if "labels" in batch else []
        done += len(batch["pixels"])
    if not done:
        raise ValueError(f"{decoder.name} has no examples. Check --train_split, --eval_split and the dataset.")
    return torch.cat(pixels), torch.cat(labels) if labels else None


class DecodedPixels:
    """The pixels of a split that does not fit in memory: rows are decoded when they are asked for."""

    def __init__(self, dataset: Any, decoder: ImageDecoder):
        self.dataset, self.decoder = dataset, decoder

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The rows with these indices, uint8 (rows, channels, height, width)."""
        positions = rows.tolist()
        return self.decoder(self.dataset[positions], positions)["pixels"]


@dataclass
class ImageDecoder:
    """Rows of a dataset -> uint8 pixels and labels. A class rather than a closure so that workers can be sent a copy.

    Attributes:
        column: Where the images are.
        labels: Where the labels are, and what they mean; None for no labels.
        name: What errors call the data.
        size, num_channels: (height, width) and channels of every decoded image.
        resize, convert: Whether images of another size or mode are converted, or refused.
    """

    column: str
    labels: Labels | None
    name: str
    size: tuple[int, int]
    num_channels: int
    resize: bool
    convert: bool

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one decoded image."""
        return self.num_channels * self.size[0] * self.size[1]

    def __call__(self, rows: dict[str, list], positions: Sequence[object]) -> Batch:
        """Decodes some rows.

        Args:
            rows: Their values, by column.
            positions: Where each row is in the dataset, for errors.

        Returns:
            `pixels`, uint8 (rows, channels, height, width), and `labels`, int64 (rows,), if there are any.

        Raises:
            ValueError: An image or label cannot be used; the message gives its position.
        """
        images = [_fetched(image) for image in rows[self.column]]
        try:
            batch = {"pixels": self._pixels(images)}
        except ValueError:
            self._raise_for_one(images, positions)
            raise
        if self.labels:
            batch["labels"] = self.labels.encode(rows[self.labels.column], positions, self.name)
        return batch

    def stream(self, examples: ShuffledExamples, batch_size: int, state: State) -> Iterator[tuple[Batch, State]]:
        """Yields batches of endless examples, each with the state after it."""
        while True:
            chunk, origins = [], []
            for example in islice(examples, batch_size):
                chunk.append(example)
                origins.append(examples.origin)
            columns = [self.column] + ([self.labels.column] if self.labels else [])
            rows = {column: [row[column] for row in chunk] for column in columns}
            yield self(rows, origins), examples.position

    def _pixels(self, images: list) -> Tensor:
        if not self.convert:
            for image in images:
                channels = _read_header(image).num_channels
                if channels != self.num_channels:
                    raise ValueError(
                        f"image must be {_COLORS[self.num_channels]} like the first one, got one in "
                        f"{_COLORS[channels]}. Convert all with --num_channels 1 or --num_channels 3."
                    )
        pixels = to_pixel_values(images, self.num_channels, self.size if self.resize else None)
        if pixels.shape[2:] != self.size:
            height, width = pixels.shape[2:]
            raise ValueError(
                f"image must be {self.size[0]} x {self.size[1]} (height x width) like the first one, got {height} x "
                f"{width}. Resize all with --image_size HEIGHT WIDTH."
            )
        return pixels

    def _raise_for_one(self, images: list, positions: Sequence[object]) -> None:
        """Raises the error of the first image at fault, with its position in the dataset."""
        for image, position in zip(images, positions):
            try:
                self._pixels([image])
            except ValueError as error:
                text = str(error).removeprefix("images, position 0: ")
                path = f" ({image['path']})" if isinstance(image, dict) and image.get("path") else ""
                raise ValueError(f"{self.name}, example {position}{path}: {text}") from None


_COLORS = {1: "grayscale", 3: "color"}


@dataclass
class _Header:
    """(height, width) as the image is displayed, and 1 or 3 channels."""

    size: tuple[int, int]
    num_channels: int


def _read_header(image: Any) -> _Header:
    """Reads an image as far as its header. Raises ValueError if it cannot be read."""
    from PIL import Image, ImageMode

    image = _fetched(image)
    parts = image if isinstance(image, dict) else {}
    source = io.BytesIO(parts["bytes"]) if parts.get("bytes") is not None else parts.get("path")
    if source is None:
        kind = "nothing" if image is None else type(image).__name__
        raise ValueError(
            f"value must be an image, got {kind}. Remove the row, or name another one with --image_column."
        )
    try:
        with Image.open(source) as opened:
            # Only a JPEG says so without being decoded; other formats that are rotated need --image_size.
            rotated = opened.format == "JPEG" and exif_orientation(opened) > 4
            size = (opened.width, opened.height) if rotated else (opened.height, opened.width)
            return _Header(size, 1 if ImageMode.getmode(opened.mode).basemode == "L" else 3)
    except Exception as error:  # PIL's readers raise OSError, SyntaxError, struct.error and others.
        raise ValueError(f"image {why_unreadable(error)}") from None


def _fetched(image: Any) -> Any:
    """An image of a column cast to `Image(decode=False)`, with its bytes if its path is a URL."""
    if isinstance(image, dict) and image.get("bytes") is None and "://" in (image.get("path") or ""):
        import fsspec

        with fsspec.open(image["path"], "rb") as file:
            return {**image, "bytes": file.read()}
    return image


def _undecoded(dataset: Any, column: str, name: str) -> Any:
    """The dataset with encoded images: hfgen decodes them, and can name a corrupt one."""
    from datasets import Image

    features = dataset.features or {}
    if column not in features:
        raise ValueError(f"--image_column must be a column of {name} ({', '.join(features)}), got {column!r}.")
    others = [name for name, feature in features.items() if isinstance(feature, Image) and name != column]
    try:
        for image in (column, *others):
            dataset = dataset.cast_column(image, Image(decode=False))
        return dataset
    except (TypeError, ValueError, NotImplementedError):
        raise ValueError(
            f"--image_column must be a column of images, got {column!r} of {name}, which holds {features[column]}."
        ) from None


def _find_image_column(dataset: Any, wanted: str | None, name: str) -> str:
    if wanted is not None:
        return wanted
    features = dataset.features or {}
    images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if len(images) > 1:
        images = [column for column in images if column != MASK_COLUMN]
    if len(images) != 1:
        raise ValueError(
            f"{name} must have one column of images, got {len(images)} among {', '.join(features) or 'its columns'}. "
            "Name one with --image_column, or use another dataset."
        )
    return images[0]


@dataclass
class ImageData:
    """A dataset of images, ready to train on.

    Attributes:
        train: Endless training batches with `pixel_values` in [0, 1] and, if the dataset has them, `labels`. These are
            -1 where a stream that an unconditional model reads has a label that is no class.
        eval_pixels: uint8 (examples, channels, height, width). If they do not fit in memory, a [`DecodedPixels`].
        eval_labels: int64 (examples,), or None.
        image_size: (height, width).
        num_channels: 1 or 3.
        label_names: The classes; empty if there are none.
        name, eval_split, revision: What results.json and the card call the data.
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

    @property
    def num_eval_examples(self) -> int:
        return len(self.eval_pixels)

    def describe(self) -> dict[str, str | None]:
        """The data that was evaluated on, as results.json and the card name it."""
        return {"dataset": self.name, "dataset_revision": self.revision, "split": self.eval_split}

    def eval_batches(self, batch_size: int, device: torch.device, limit: int | None = None) -> Iterator[Batch]:
        """Yields every evaluation example once, or `limit` of them, evenly spread."""
        for rows in evenly_spread(self.num_eval_examples, limit).split(batch_size):
            yield self.eval_batch(rows, device)

    def eval_batch(self, rows: Tensor, device: torch.device) -> Batch:
        """Returns the evaluation examples with these indices."""
        labels = None if self.eval_labels is None else self.eval_labels[rows].to(device)
        return image_batch(self.eval_pixels[rows].to(device), labels)
