"""Images of any kind are decoded, and one that cannot be is named by its position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.training.data.tiny_data import (
    CPU,
    assert_same,
    encoded,
    images_of,
    picture,
    take,
    values,
    write_parquet,
)
from training.data.feeds.batches import GlobalBatch
from training.data.feeds.indexed import TensorFeed
from training.data.images import DecodedPixels, ImageDecoder


def test_grayscale_of_any_depth_and_color_of_any_kind(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 8), 257 * 30, np.uint16))
    data = images_of(write_parquet(tmp_path / "gray", [picture(10), deep, picture(255, "1")] * 4), max_eval_samples=2)
    (batch,) = take(data.train, 1, GlobalBatch(30))
    assert data.num_channels == 1 and set(values(batch["pixel_values"])) == {10, 30, 255}
    transparent = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    palette = Image.new("P", (8, 4))
    palette.putpalette([7, 8, 9])
    colors = [picture(10, "RGB"), transparent, palette]
    data = images_of(write_parquet(tmp_path / "color", colors * 4), max_eval_samples=2)
    (batch,) = take(data.train, 1, GlobalBatch(30))
    assert data.num_channels == 3 and set(values(batch["pixel_values"])) == {10, 255, 7}


def test_flags_convert_size_and_mode(tmp_path: Path) -> None:
    mixed = [picture(50), picture(60, "RGB", (20, 10)), picture(70, "RGBA", (3, 5))] * 4
    folder = write_parquet(tmp_path, mixed)
    for image_size, size in (([6], (6, 6)), ([4, 12], (4, 12))):
        for num_channels in (1, 3):
            data = images_of(folder, image_size, num_channels)
            assert (data.image_size, data.num_channels) == (size, num_channels)
            (batch,) = take(data.train, 1, GlobalBatch(30))
            assert batch["pixel_values"].shape == (30, num_channels, *size)
            assert set(values(batch["pixel_values"])) == {50, 60, 70}
    assert images_of(write_parquet(tmp_path / "b", [picture(1, "RGB")] * 4), None, 1).num_channels == 1


def test_image_of_a_remote_path_is_fetched(tmp_path: Path) -> None:
    """A streamed Hub dataset of image files has URLs that PIL cannot open."""
    picture(42).save(tmp_path / "a.png")
    decoder = ImageDecoder("image", None, "remote", (4, 8), 1, resize=False, convert=False)
    batch = decoder({"image": [{"bytes": None, "path": f"file://{tmp_path / 'a.png'}"}]}, [0])
    assert values(batch["pixels"]) == [42]


def test_large_split_is_held_as_uint8(tmp_path: Path) -> None:
    data = images_of(write_parquet(tmp_path, [picture(i % 256) for i in range(1500)]))
    assert data.eval_pixels.dtype == torch.uint8 and isinstance(data.train, TensorFeed)
    assert data.train.pixels.dtype == torch.uint8 and data.train.pixels.shape == (1350, 1, 4, 8)


def test_evaluation_split_that_is_large_is_decoded_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path, [picture(i) for i in range(30)], labels=[i % 2 for i in range(30)])
    write_parquet(tmp_path, [picture(100 + i) for i in range(7)], "test", labels=[0, 1, 1, 0, 1, 0, 0])
    held = images_of(tmp_path)
    monkeypatch.setattr("training.data.feeds.batches.IN_MEMORY_BYTES", 7 * 4 * 8)
    large = images_of(tmp_path)
    assert isinstance(held.eval_pixels, Tensor) and isinstance(large.eval_pixels, DecodedPixels)
    decoded: list[int] = []
    decode = ImageDecoder.__call__

    def counted(self: ImageDecoder, rows: dict[str, list], positions: range) -> dict[str, Tensor]:
        decoded.append(len(positions))
        return decode(self, rows, positions)

    monkeypatch.setattr(ImageDecoder, "__call__", counted)
    assert_same(list(large.eval_batches(3, CPU)), list(held.eval_batches(3, CPU)))
    assert decoded == [3, 3, 1]
    assert held.eval_labels is not None and large.eval_labels is not None
    assert large.eval_labels.tolist() == held.eval_labels.tolist()
    assert isinstance(images_of(tmp_path, in_memory=True).eval_pixels, Tensor)


# ----------------------------------------------------------------------------------------------------------- faults

WAYS_TO_READ: list[dict[str, Any]] = [
    {},
    {"in_memory": False},
    {"in_memory": False, "dataloader_num_workers": 1},
    {"streaming": True, "shuffle_buffer_size": 1},
]


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (picture(1, size=(9, 4)), "must be 4 x 8 .height x width. like the first one, got 4 x 9.*--image_size"),
        (picture(1, "RGB"), "must be grayscale like the first one, got one in color.*--num_channels"),
        (b"not an image", ".*readable.* corrupt or unknown data .*Repair the file or remove it"),
        (encoded(picture(1))[:-30], ".*readable.* corrupt or unknown data"),
        (None, "must be an image, got nothing. Remove the row"),
    ],
    ids=["size", "mode", "garbage", "truncated", "null"],
)
def test_image_at_fault_is_named_by_its_position(tmp_path: Path, odd: Any, message: str) -> None:
    write_parquet(tmp_path, [*[picture(i) for i in range(13)], odd, *[picture(i) for i in range(5)]])
    write_parquet(tmp_path, [picture(1)], "test")
    for way in WAYS_TO_READ:
        position = "13 of shard 0" if "streaming" in way else "13"
        with pytest.raises(ValueError, match=rf"\(train\), example {position}: (image |value )?{message}") as caught:
            take(images_of(tmp_path, **way).train, 10, GlobalBatch(4))
        assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_corrupt_first_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(train\), example 0: image must be readable"):
        images_of(write_parquet(tmp_path, [b"", picture(1), picture(2)]))


def test_image_too_large_for_pillow_is_told_from_a_corrupt_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"\(train\), example 0: image must not be too large .*32 pixels"):
        images_of(write_parquet(tmp_path, [picture(1), picture(2)]))


def test_faults_name_the_flag(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, [picture(i) for i in range(5)], labels=[0] * 5)
    for flag, value, message in [
        ("train_split", "learn", r"must be a split of the dataset \(train\), got 'learn'"),
        ("eval_split", "exam", r"must be a split of the dataset \(train\), got 'exam'"),
        ("image_column", "picture", r"must be a column of .* \(image, label\), got 'picture'"),
        ("image_column", "label", "must be a column of images, got 'label'"),
        ("label_column", "class", r"must be a column of .* \(image, label\), got 'class'"),
        ("label_column", "image", "must be a column of integers, strings, booleans or a ClassLabel, got 'image'"),
    ]:
        with pytest.raises(ValueError, match=f"^--{flag} {message}"):
            images_of(folder, **{flag: value})
    with pytest.raises(ValueError, match="--image_size must be HEIGHT WIDTH or one number"):
        images_of(folder, [1, 2, 3])
    with pytest.raises(ValueError, match=r"num_channels.* 1 .* or 3 "):
        images_of(folder, None, 2)
    with pytest.raises(ValueError, match="must have one column of images, got 0 among text"):
        images_of("python-docs")
