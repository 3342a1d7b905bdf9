from __future__ import annotations

import base64
import io
import subprocess
import sys

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
import transformers
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from packaging.version import Version
from transformers import AutoImageProcessor
from transformers.image_utils import ChannelDimension, load_image
from transformers.utils import is_torchvision_available

from hfgen.image_processing import (
    HfgenImageProcessor,
    build_image_processor,
    image_grid,
    overlay_maps,
    to_pil,
    to_pixel_values,
)


needs_auto_class = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18") and not is_torchvision_available(),
    reason="before 5.18 transformers has no AutoImageProcessor without torchvision",
)


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def gray_image(height: int = 6, width: int = 5, seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(random_pixels(height, width, seed=seed))


def rgb_image(height: int = 6, width: int = 5, seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(random_pixels(height, width, 3, seed=seed))


def png(image: PIL.Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png", **options)
    return buffer.getvalue()


def one_pixel(mode: str, value) -> PIL.Image.Image:
    return PIL.Image.new(mode, (2, 3), value)


def palette_image(transparency: int | None = None) -> PIL.Image.Image:
    image = one_pixel("P", 1)
    image.putpalette([9, 9, 9, 255, 0, 0])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


# 76 is the luma of pure red: (255 · 19595 + 32768) >> 16.
MODES = {
    "1": (one_pixel("1", 1), 255, (255, 255, 255)),
    "L": (one_pixel("L", 7), 7, (7, 7, 7)),
    "LA opaque": (one_pixel("LA", (7, 255)), 7, (7, 7, 7)),
    "LA transparent": (one_pixel("LA", (7, 0)), 255, (255, 255, 255)),
    "P": (palette_image(), 76, (255, 0, 0)),
    "P transparent": (palette_image(transparency=1), 255, (255, 255, 255)),
    "RGB": (one_pixel("RGB", (255, 0, 0)), 76, (255, 0, 0)),
    "RGBA": (one_pixel("RGBA", (255, 0, 0, 255)), 76, (255, 0, 0)),
    "RGBA transparent": (one_pixel("RGBA", (255, 0, 0, 0)), 255, (255, 255, 255)),
    "CMYK": (one_pixel("CMYK", (0, 255, 255, 0)), 76, (255, 0, 0)),
    "I;16": (one_pixel("I;16", 257 * 7), 7, (7, 7, 7)),
    "I;16 white": (one_pixel("I;16", 65535), 255, (255, 255, 255)),
    "I;16B": (one_pixel("I;16B", 257 * 7), 7, (7, 7, 7)),
    "I": (one_pixel("I", 7), 7, (7, 7, 7)),
    "F": (one_pixel("F", 0.2), 51, (51, 51, 51)),
}


@pytest.mark.parametrize("name", MODES)
def test_pil_image_of_any_mode(name: str) -> None:
    image, gray, rgb = MODES[name]
    assert to_pixel_values([image], 1).flatten().tolist() == [gray] * 6
    assert to_pixel_values([image], 3).shape == (1, 3, 3, 2)
    assert to_pixel_values([image], 3)[0, :, 2, 1].tolist() == list(rgb)
    processor = HfgenImageProcessor(do_convert_rgb=False, do_resize=False)
    assert processor(image, return_tensors="pt").pixel_values[0, 0, 0, 0].item() == pytest.approx(gray / 255)


ARRAYS = {
    "bool": (np.array([[False, True]]), [0, 255]),
    "uint8": (np.array([[0, 255]], np.uint8), [0, 255]),
    "uint16": (np.array([[257 * 3, 65535]], np.uint16), [3, 255]),
    "int64": (np.array([[0, 255]]), [0, 255]),
    "float32": (np.array([[0.0, 1.0]], np.float32), [0, 255]),
    "float64 rounds": (np.array([[0.9999 / 255, 254.4 / 255]]), [1, 254]),
    "float just outside": (np.array([[-1e-6, 1 + 1e-6]], np.float32), [0, 255]),
    "tensor": (torch.tensor([[0, 255]], dtype=torch.uint8), [0, 255]),
    "bfloat16 tensor with gradient": (torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16, requires_grad=True), [0, 255]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_array_of_any_dtype(name: str) -> None:
    array, expected = ARRAYS[name]
    assert to_pixel_values(array, 1).flatten().tolist() == expected


def test_arrays_of_any_layout_are_the_same_image() -> None:
    rgb = random_pixels(6, 5, 3)
    expected = torch.from_numpy(rgb).permute(2, 0, 1)[None]
    opaque = np.concatenate([rgb, np.full((6, 5, 1), 255, np.uint8)], axis=-1)
    for layout in (rgb, rgb.transpose(2, 0, 1), expected, opaque, [rgb], iter([rgb]), rgb[None], expected[0]):
        torch.testing.assert_close(to_pixel_values(layout, 3), expected, rtol=0, atol=0)
    gray = random_pixels(6, 5)
    expected = torch.from_numpy(gray)[None, None]
    for layout in (gray, gray[None], gray[..., None], [gray, gray][:1], expected):
        torch.testing.assert_close(to_pixel_values(layout, 1), expected, rtol=0, atol=0)


def test_color_to_gray_is_pils_luma_and_gray_to_color_and_back_is_exact() -> None:
    image = rgb_image(64, 64)
    luma = torch.from_numpy(np.array(image.convert("L")))
    for color in (image, np.asarray(image)):
        torch.testing.assert_close(to_pixel_values(color, 1)[0, 0], luma, rtol=0, atol=0)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(to_pixel_values(to_pixel_values(ramp, 3), 1)[0, 0], ramp)


def test_encoded_images_and_datasets_columns(tmp_path) -> None:
    images = [gray_image(seed=seed) for seed in range(3)]
    expected = torch.stack([torch.from_numpy(np.array(image))[None] for image in images])
    images[0].save(tmp_path / "0.png")
    for mixed in (
        [png(image) for image in images],
        [tmp_path / "0.png", {"bytes": png(images[1]), "path": None}, images[2]],
        [{"bytes": None, "path": str(tmp_path / "0.png")}, np.asarray(images[1]), png(images[2])],
    ):
        torch.testing.assert_close(to_pixel_values(mixed, 1), expected, rtol=0, atol=0)
    column = Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
    raw = column.cast_column("image", ImageFeature(decode=False))
    for dataset in (column, raw):
        torch.testing.assert_close(to_pixel_values(dataset["image"], 1), expected, rtol=0, atol=0)


def test_camera_orientation_is_applied() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise to view
    image = rgb_image(4, 7)
    turned = torch.from_numpy(np.rot90(np.asarray(image), -1).copy()).permute(2, 0, 1)[None]
    torch.testing.assert_close(to_pixel_values(png(image, exif=exif), 3), turned, rtol=0, atol=0)


@pytest.mark.parametrize("orientation", range(1, 10))
def test_exif_orientation_is_that_of_pillow(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    encoded = png(rgb_image(), exif=exif)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded)))
    assert torch.equal(to_pixel_values(encoded, 3), to_pixel_values(expected, 3))


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("exif", [b"not EXIF", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\0\x05"])
def test_malformed_exif_is_ignored(form: str, exif: bytes) -> None:
    buffer = io.BytesIO()
    rgb_image().save(buffer, form, exif=exif, **({"lossless": True} if form == "webp" else {}))
    expected = PIL.Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")

    assert torch.equal(to_pixel_values(buffer.getvalue(), 3), to_pixel_values(expected, 3))


def test_a_picture_too_large_for_pillow_is_told_from_a_corrupt_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 14)
    encoded = png(gray_image(6, 5))

    with pytest.raises(ValueError, match=r"position 0: must not be too large .*30 pixels.*MAX_IMAGE_PIXELS = None"):
        to_pixel_values(encoded, 1)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert torch.equal(to_pixel_values(encoded, 1), to_pixel_values(gray_image(6, 5), 1))


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_16_bit_images_that_use_the_low_bits_give_a_warning(bits: int) -> None:
    array = np.array([[0, 2**bits - 1]], np.uint16)
    encoded = png(PIL.Image.fromarray(array))

    for image in (array, encoded):
        with pytest.warns(UserWarning, match=rf"only the lowest {bits} bits .* array / {2**bits - 1}"):
            to_pixel_values(image, 1)
    assert to_pixel_values(array / (2**bits - 1), 1).flatten().tolist() == [0, 255]


def test_16_bit_images_that_use_the_high_bits_or_are_black_give_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    for white in (0, 4096, 65535):
        to_pixel_values(np.array([[0, white]], np.uint16), 1)
    assert not recwarn.list


@pytest.mark.parametrize("maxval", [1, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True], ids=["binary", "plain"])
def test_pgm_is_read_by_its_maxval(maxval: int, plain: bool) -> None:
    values = [0, maxval // 2, maxval]
    if plain:
        encoded = f"P2 3 1 {maxval}\n{' '.join(map(str, values))}\n".encode()
    else:
        size = 1 if maxval < 256 else 2
        encoded = f"P5 3 1 {maxval}\n".encode() + b"".join(value.to_bytes(size, "big") for value in values)

    expected = [value / maxval * 255 for value in values]

    assert to_pixel_values(encoded, 1).flatten().tolist() == pytest.approx(expected, abs=0.51)
    assert to_pixel_values(PIL.Image.open(io.BytesIO(encoded)), 1).flatten().tolist() == pytest.approx(
        expected, abs=0.51
    )


def test_resizing_unites_mixed_sizes_and_is_pils() -> None:
    images = [rgb_image(6, 5), gray_image(12, 9), random_pixels(8, 4, 3)]
    pixel_values = to_pixel_values(images, 3, size=(8, 4))
    assert pixel_values.shape == (3, 3, 8, 4)
    reference = np.array(images[0].resize((4, 8), PIL.Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(pixel_values[0], reference)
    assert np.array_equal(pixel_values[2], images[2].transpose(2, 0, 1))
    nearest = to_pixel_values(images[0], 3, size=(12, 10), resample=PIL.Image.Resampling.NEAREST)
    assert np.array_equal(nearest[0, :, ::2, ::2], np.asarray(images[0]).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one image, got none"),
        ([gray_image(6, 5), gray_image(5, 6)], "got 5x6 .* at position 1 after 6x5"),
        ([gray_image(), png(gray_image())[:60]], r"position 1: must be readable.*corrupt"),
        ([b"not an image"], "position 0: must be readable, got corrupt or unknown data"),
        (["/nowhere.png"], "FileNotFoundError"),
        ([None], "position 0: .* got an empty image"),
        ([{"bytes": None, "path": None}], "got an empty image"),
        ([{"label": 3}], "got dict"),
        (3, "got int"),
        (np.zeros((3, 3, 3, 3, 3)), "shape"),
        (np.zeros((60, 28, 28)), r"1, 3 or 4 channels .* \(60, 28, 28\).*array\[:, None\]"),
        (np.zeros((0, 5)), "must have pixels"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, 2.0]]), r"floats in \[0, 1\], got values from 0 to 2"),
        (np.array([[0, 256]]), "integers in 0..255, got values from 0 to 256"),
        (np.array([["a"]]), "dtype"),
        (PIL.Image.new("I", (2, 2), 70000), "integers in 0..255"),
        (PIL.Image.new("LAB", (2, 2)), "got LAB"),
    ],
)
def test_bad_images_are_refused_with_the_reason(images, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_pixel_values(images, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_pixel_values(gray_image(), 2), "num_channels must be 1 .* or 3"),
        (lambda: to_pixel_values(gray_image(), 1, size=8), r"size must be \(height, width\)"),
        (lambda: build_image_processor(4, (8, 8)), "num_channels"),
        (lambda: build_image_processor(1, (8, 0)), "image_size"),
        (lambda: to_pil(torch.zeros(1, 2, 4, 4)), r"1 or 3 channels.*\(1, 2, 4, 4\)"),
        (lambda: to_pil(torch.zeros(0, 1, 4, 4)), "at least one image"),
        (lambda: to_pil(torch.full((1, 1, 4, 4), torch.nan)), "NaN"),
        (lambda: to_pil(torch.zeros(1, 1, 4, 4, dtype=torch.int64)), "int64"),
        (lambda: image_grid(torch.zeros(1, 1, 4, 4), columns=0), "columns must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_with_the_reason(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# -- the processor saved with a model


@needs_auto_class
def test_file_loads_without_hfgen_and_gives_the_same_pixels(tmp_path) -> None:
    gray, rgb = gray_image(40, 30), rgb_image(40, 30)
    for name, num_channels in (("gray", 1), ("rgb", 3)):
        processor = build_image_processor(num_channels, (16, 24))
        processor.save_pretrained(tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["preprocessor_config.json"]
    gray.save(tmp_path / "gray.png")
    rgb.save(tmp_path / "rgb.png")
    script = """
import sys
sys.modules["hfgen"] = None
import numpy as np, PIL.Image
from transformers import AutoImageProcessor
for name in ("gray", "rgb"):
    processor = AutoImageProcessor.from_pretrained(name)
    np.save(name, processor(PIL.Image.open(name + ".png"), return_tensors="pt").pixel_values.numpy())
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name, image, num_channels in (("gray", gray, 1), ("rgb", rgb, 3)):
        stock = np.load(tmp_path / f"{name}.npy")
        assert stock.shape == (1, num_channels, 16, 24) and stock.dtype == np.float32
        processor = HfgenImageProcessor.from_pretrained(tmp_path / name)
        assert processor.num_channels == num_channels
        np.testing.assert_array_equal(processor(image, return_tensors="np").pixel_values, stock)
        training = to_pixel_values(image, num_channels, size=(16, 24)) / 255
        np.testing.assert_allclose(training, stock, rtol=1e-6)


@needs_auto_class
def test_stock_rgb_processor_agrees_on_every_mode_it_takes(tmp_path) -> None:
    build_image_processor(3, (4, 4)).save_pretrained(tmp_path)
    stock, own = AutoImageProcessor.from_pretrained(tmp_path), HfgenImageProcessor.from_pretrained(tmp_path)
    # Not those that the stock class saturates at 255, nor transparency, which older releases of it drop.
    takes = [name for name in MODES if name not in ("I", "F") and "I;16" not in name and "transparent" not in name]
    assert len(takes) == 7
    for name in takes:
        expected = stock(MODES[name][0], return_tensors="np").pixel_values
        np.testing.assert_array_equal(own(MODES[name][0], return_tensors="np").pixel_values, expected, err_msg=name)


def test_gray_model_in_a_pipeline_gets_gray(tmp_path) -> None:
    image = gray_image(8, 8)
    image.save(tmp_path / "gray.png")
    processor = build_image_processor(1, (8, 8))
    expected = processor(image, return_tensors="pt").pixel_values
    assert expected.shape == (1, 1, 8, 8)
    as_rgb = load_image(str(tmp_path / "gray.png"))
    assert as_rgb.mode == "RGB"
    encoded = base64.b64encode((tmp_path / "gray.png").read_bytes()).decode()
    for source in (as_rgb, str(tmp_path / "gray.png"), encoded, expected, [[as_rgb]], np.asarray(image)):
        torch.testing.assert_close(processor(source, return_tensors="pt").pixel_values, expected)


@needs_auto_class
def test_processor_resaved_stays_the_same_file(tmp_path) -> None:
    build_image_processor(1, (8, 12), PIL.Image.Resampling.LANCZOS).save_pretrained(tmp_path / "0")
    HfgenImageProcessor.from_pretrained(tmp_path / "0").save_pretrained(tmp_path / "1")
    AutoImageProcessor.from_pretrained(tmp_path / "0").save_pretrained(tmp_path / "2")
    texts = {(tmp_path / name / "preprocessor_config.json").read_text() for name in "012"}
    assert len(texts) == 1
    assert '"image_processor_type": "ViTImageProcessor"' in texts.pop()


def test_arguments_of_one_call_override_the_file() -> None:
    processor = build_image_processor(1, (8, 8))
    call = processor([rgb_image()], do_convert_rgb=True, size={"height": 4, "width": 6}, return_tensors="pt")
    assert call.pixel_values.shape == (1, 3, 4, 6)
    ambiguous = random_pixels(3, 8, 3)
    for name in ("channels_last", ChannelDimension.LAST):
        last = processor(ambiguous, do_resize=False, input_data_format=name, return_tensors="pt").pixel_values
        assert last.shape == (1, 1, 3, 8)
    assert processor(ambiguous, do_resize=False, return_tensors="pt").pixel_values.shape == (1, 1, 8, 3)


# -- tensors to pictures


@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB")])
def test_to_pil_undoes_to_pixel_values(num_channels: int, mode: str) -> None:
    pixels = torch.from_numpy(random_pixels(4, num_channels, 16, 20))
    for pixel_values in (pixels, pixels / 255, (pixels / 255).double(), (pixels / 255).requires_grad_()):
        images = to_pil(pixel_values)
        assert {(image.mode, image.size) for image in images} == {(mode, (20, 16))}
        torch.testing.assert_close(to_pixel_values(images, num_channels), pixels, rtol=0, atol=0)


def test_to_pil_clamps_and_rounds() -> None:
    row = torch.tensor([-torch.inf, -0.5, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.5, torch.inf])
    (image,) = to_pil(row.reshape(1, 1, 7))
    assert np.asarray(image).tolist() == [[0, 0, 0, 1, 255, 255, 255]]


def test_grid_puts_every_pixel_in_its_place() -> None:
    pixels = torch.arange(3 * 2 * 3, dtype=torch.uint8).reshape(3, 1, 2, 3)
    grid = np.asarray(image_grid(pixels, columns=2, padding=1, scale=1))
    assert grid.tolist() == [
        [255, 255, 255, 255, 255, 255, 255, 255, 255],
        [255, 0, 1, 2, 255, 6, 7, 8, 255],
        [255, 3, 4, 5, 255, 9, 10, 11, 255],
        [255, 255, 255, 255, 255, 255, 255, 255, 255],
        [255, 12, 13, 14, 255, 255, 255, 255, 255],
        [255, 15, 16, 17, 255, 255, 255, 255, 255],
        [255, 255, 255, 255, 255, 255, 255, 255, 255],
    ]
    doubled = np.asarray(image_grid(pixels, columns=2, padding=1, scale=2))
    assert doubled[1:5, 1:7].tolist() == np.kron(pixels[0, 0].numpy(), np.ones((2, 2), np.uint8)).tolist()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((64, 1, 28, 28), (8 * (28 * 3 + 2) + 2,) * 2),
        ((1, 3, 8, 4), (2 + 127 * 4 + 2, 2 + 127 * 8 + 2)),
        ((5, 3, 300, 400), (3 * 402 + 2, 2 * 302 + 2)),
    ],
)
def test_grid_of_small_images_is_at_least_512_wide(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    grid = image_grid(torch.zeros(shape))
    assert grid.size == size and grid.width >= 512
    assert grid.mode == ("L" if shape[1] == 1 else "RGB")


def test_overlay_paints_red_from_half_of_the_threshold_to_one_and_a_half_times_it() -> None:
    maps = torch.tensor([[[0.0, 0.5], [1.0, 9.0]]])
    painted = overlay_maps(torch.ones(1, 1, 2, 2), maps, threshold=1.0)
    expected = torch.tensor([[1.0, 1.0], [0.6, 0.2]])  # what is left of white
    torch.testing.assert_close(painted, torch.stack([torch.ones(2, 2), expected, expected])[None])


def test_overlay_without_a_threshold_shows_each_images_strangest_place() -> None:
    maps = torch.tensor([[[0.0, 3.0]], [[0.0, 0.03]], [[0.0, 0.0]]])
    painted = overlay_maps(torch.zeros(3, 3, 1, 2), maps)
    assert painted[:, 0, 0].tolist() == [[0, pytest.approx(0.8)], [0, pytest.approx(0.8)], [0, 0]]
    assert not painted[:, 1:].any()


def test_overlay_resizes_maps_to_images() -> None:
    maps = torch.zeros(1, 2, 2)
    maps[0, :, 0] = 1
    painted = overlay_maps(torch.zeros(1, 3, 8, 12), maps, threshold=0.5)
    assert painted.shape == (1, 3, 8, 12) and painted[0, 0, :, 0].min() > 0.7 and painted[0, 0, :, -1].max() == 0
    with pytest.raises(ValueError, match=r"maps must have the shape \(batch, height, width\), one for each image"):
        overlay_maps(torch.zeros(2, 3, 8, 12), maps)
