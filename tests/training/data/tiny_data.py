"""Small datasets of every form, and what is asked of a feed again and again."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor

from training.config.flags import DataArguments
from training.data.feeds.batches import Batch, Feed, GlobalBatch
from training.data.feeds.indexed import TokenFeed
from training.data.images import ImageData, load_images
from training.data.text import TextData, load_text


CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


def images_of(
    name: str | Path,
    image_size: list[int] | None = None,
    num_channels: int | None = None,
    conditional: bool = False,
    **args: Any,
) -> ImageData:
    return load_images(DataArguments(dataset_name=str(name), **args), 0, image_size, num_channels, conditional)


def text_of(name: str | Path, context: int = 8, tokenizer: Any = None, **args: Any) -> TextData:
    return load_text(DataArguments(dataset_name=str(name), **args), 0, context, tokenizer)


def decoded(data: TextData) -> tuple[str, str]:
    """The training and the evaluation text."""
    assert isinstance(data.train, TokenFeed)
    train, evaluation = (data.tokenizer.decode(tokens[:].tolist()) for tokens in (data.train.tokens, data.eval_tokens))
    return train, evaluation


def take(feed: Feed, count: int, global_batch: GlobalBatch, first_step: int = 0) -> list[Batch]:
    return list(islice(feed.batches(first_step, global_batch, CPU), count))


def assert_same(ones: list[Batch], others: list[Batch]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def picture(value: int, mode: str = "L", size: tuple[int, int] = (8, 4)) -> Image.Image:
    """A single color; by default 8 wide and 4 high."""
    return Image.new("L", size, value).convert(mode)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def write_parquet(folder: Path, images: list[Any], split: str = "train", labels: list[Any] | None = None) -> Path:
    """A dataset folder in the Hub's layout. Images are PIL, bytes or None."""
    cells = [{"bytes": encoded(image) if isinstance(image, Image.Image) else image, "path": None} for image in images]
    columns: dict[str, list] = {"image": [cell if cell["bytes"] is not None else None for cell in cells]}
    features: dict[str, Any] = {"image": datasets.Image()}
    if labels is not None:
        columns["label"], features["label"] = labels, datasets.ClassLabel(names=["cat", "dog"])
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_texts(folder: Path, texts: list[Any], split: str = "train", column: str = "text") -> Path:
    datasets.Dataset.from_dict({column: texts}).to_parquet(folder / f"{split}.parquet")
    return folder


def values(pixels: Tensor) -> list[int]:
    """The color of each single-colored image."""
    return (pixels[:, 0, 0, 0] * (255 if pixels.is_floating_point() else 1)).round().int().tolist()
