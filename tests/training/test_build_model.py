"""The model of a run: errors in words, fine-tuning that starts from the weights, classes that fit the data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hfgen import (
    AutoencoderConfig,
    AutoencoderModel,
    GANConfig,
    GANModel,
    GPTConfig,
    GPTForCausalLM,
    VAEConfig,
    VAEModel,
)
from training.build_model import build_config, load_image_model, load_model
from training.config.flags import Arguments
from training.config.parser import parse
from training.config.scripts import Script
from training.data.feeds.batches import GlobalBatch


SMALL: dict[str, Any] = {"image_size": [8, 8], "hidden_channels": [4, 8], "hidden_size": 16, "latent_dim": 4}
SMALL_GPT: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                             "max_position_embeddings": 8}  # fmt: skip
DIGITS = [str(digit) for digit in range(10)]


def arguments_of(model_class: Any, *argv: str) -> Arguments:
    family = model_class.config_class.__name__.removesuffix("Config").lower()
    return parse(Script(family, "Trains."), ["--output_dir", "out", *argv], model_class.config_class)


def published(model_class: Any, path: str, *argv: str) -> Any:
    """What a run would start from."""
    return load_model(model_class, arguments_of(model_class, "--model_name_or_path", path, *argv))


def with_data(model_class: Any, *argv: str) -> Any:
    """The model and five images to evaluate on."""
    return load_image_model(model_class, arguments_of(model_class, "--max_eval_samples", "5", *argv), seed=0)


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def small_vae(**fields: Any) -> VAEModel:
    torch.manual_seed(0)
    return VAEModel(VAEConfig(**{**SMALL, **fields}))


# Configs


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (
            VAEConfig,
            {"image_size": [30, 28], "latent_type": "round"},
            r"\[30, 28\] must be divisible by 4.*latent_type",
        ),
        (AutoencoderConfig, {"image_size": [9, 9]}, r"image_size \[9, 9\] must be divisible by 4"),
        (
            GANConfig,
            {"image_size": [10, 10], "generator_channels": [8, 4]},
            "must be divisible by 4, as each of the 2 stages in generator_channels",
        ),
        (GPTConfig, {"mlp_type": "round", "hidden_size": -1}, "hidden_size.*-1.*mlp_type"),
        (VAEConfig, {"latent_dim": "many"}, "'latent_dim' expected int, got str"),
        (VAEConfig, {"hidden_channels": [1.5]}, "'hidden_channels'"),
        (GPTConfig, {"use_bias": 3}, "'use_bias' expected bool, got int"),
        (GPTConfig, {"hidden_size": None}, "hidden_size"),
    ],
)
def test_impossible_config_is_a_value_error_of_one_paragraph(config_class: type, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_config(config_class, fields)
    assert "\n" not in str(caught.value) and "Class validation error" not in str(caught.value)


def test_flags_take_precedence_over_the_data() -> None:
    config = build_config(VAEConfig, {"latent_dim": 3}, latent_dim=5, image_size=[4, 8])
    assert (config.latent_dim, config.image_size) == (3, [4, 8])


# New models


def test_new_model_fits_the_data() -> None:
    model, data = with_data(AutoencoderModel)
    assert model.config.image_size == [8, 8] and model.config.num_channels == 1 and len(data.eval_pixels) == 5
    model, data = with_data(VAEModel, "--image_size", "12", "16", "--num_channels", "3")
    assert model.config.image_size == [12, 16] and model.config.num_labels == 0
    assert data.eval_pixels.shape == (5, 3, 12, 16)
    assert with_data(VAEModel, "--image_size", "16")[0].config.image_size == [16, 16]


def test_image_size_of_the_data_that_the_stages_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size \[8, 8\] must be divisible by 16.*resize the images or use few"):
        with_data(VAEModel, "--hidden_channels", "4", "4", "4", "4")


@pytest.mark.parametrize("model_class", [VAEModel, GANModel])
def test_conditional_model_knows_the_names_of_the_classes(model_class: Any) -> None:
    arguments = arguments_of(model_class, "--num_labels", "10", "--max_eval_samples", "5")
    config = load_image_model(model_class, arguments, seed=0)[0].config
    assert config.id2label == dict(enumerate(DIGITS)) and config.label2id["7"] == 7
    assert arguments.model["num_labels"] == 10  # stays in what results.json and a recipe say about the run


@pytest.mark.parametrize("model_class", [VAEModel, GANModel])
def test_classes_of_folders_are_named_in_the_order_of_numbers(tmp_path: Path, model_class: Any) -> None:
    for number in (2, 9, 10):
        for copy in range(6):
            path = tmp_path / str(number) / f"{copy}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (8, 8), number).save(path)
    flags = ["--dataset_name", str(tmp_path)]
    with pytest.raises(ValueError, match=r"--num_labels must be 3, the number of classes in .*, got 10\."):
        with_data(model_class, *flags, "--num_labels", "10")
    config = with_data(model_class, *flags, "--num_labels", "3")[0].config
    assert config.id2label == {0: "2", 1: "9", 2: "10"} and config.label2id == {"2": 0, "9": 1, "10": 2}


@pytest.mark.parametrize("count", ["7", "-1"])
def test_wrong_number_of_classes_is_refused(count: str) -> None:
    with pytest.raises(
        ValueError, match=f"--num_labels must be 10, the number of classes in digits, got {count}. Use"
    ):
        with_data(VAEModel, "--num_labels", count)


def test_conditional_model_of_data_without_classes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    columns = {"image": [Image.new("L", (8, 8), value) for value in range(20)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(ValueError, match=r"--num_labels must be 0, as .* has no classes, got 2\. Use"):
        with_data(VAEModel, "--num_labels", "2", "--dataset_name", str(tmp_path / "data"))


def photographs(folder: Path, size: tuple[int, int] = (4032, 3024)) -> list[str]:
    """Flags that name a folder of images of a size (width, height)."""
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number}.png")
    return ["--dataset_name", str(folder)]


def assert_weights_are_counted(message: str) -> None:
    billions, gigabytes = (float(n) for n in re.findall(r"([\d.]+) (?:billion weights|GB)", message))
    assert billions > 5 and gigabytes == pytest.approx(16 * billions, rel=0.02)


@pytest.mark.parametrize("model_class", [AutoencoderModel, VAEModel, GANModel])
def test_photographs_need_an_image_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_class: Any) -> None:
    flags = photographs(tmp_path / "photographs")
    # With the stages of small images, whose weights are what does not fit.
    stages = [] if model_class is GANModel else ["--hidden_channels", "32", "64"]
    with monkeypatch.context() as patched:
        patched.setattr("training.data.images.to_pixel_values", lambda *_: pytest.fail("decoded an image"))
        with pytest.raises(ValueError, match=r"--image_size must be given.* 3024 x 4032 .*--image_size 64") as caught:
            with_data(model_class, *flags, *stages)
    # A GAN gains stages as images grow, so it has few weights even here. Its activations are what does not fit.
    assert model_class is not GANModel or "the activations of a batch" in str(caught.value)
    if model_class is not GANModel:
        assert_weights_are_counted(str(caught.value))
    model, data = with_data(model_class, *flags, "--image_size", "8")
    assert model.config.image_size == [8, 8] and data.image_size == (8, 8)


def test_size_that_was_asked_for_or_makes_no_huge_model_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--hidden_channels", "2", "4", "--hidden_size", "16", "--latent_dim", "2"]
    flags += photographs(tmp_path / "pictures", (48, 64))
    assert with_data(VAEModel, *flags)[0].config.image_size == [64, 48]
    monkeypatch.setattr("training.build_model.MAX_TRAINING_BYTES", 1000)
    with pytest.raises(ValueError, match="--image_size must be given"):
        with_data(VAEModel, *flags)
    assert with_data(VAEModel, *flags, "--image_size", "64", "48")[0].config.image_size == [64, 48]


# The start


def test_new_model_starts_at_the_mean_of_the_first_training_images() -> None:
    model, data = with_data(AutoencoderModel)
    first = torch.cat([batch["pixel_values"] for batch in data.train.first_batches(1024)]).double()
    assert len(first) == 1024
    torch.testing.assert_close(model.pixel_mean, first.mean(0).float())
    assert model.pixel_std.item() == pytest.approx((first - first.mean(0)).square().mean().sqrt().item())
    # As good as that of all of them: a sample's mean is off by the spread over the root of their number.
    whole = data.train.pixels.double().mean(0) / 255
    assert (whole - first.mean(0)).abs().max() < 5 * 0.5 / 1024**0.5


def test_new_model_starts_at_few_images_too() -> None:
    model, data = with_data(AutoencoderModel, "--max_train_samples", "3")
    torch.testing.assert_close(model.pixel_mean, data.train.pixels.double().mean(0).float() / 255)


def test_streamed_images_make_the_same_start_in_every_process_and_are_read_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ["--streaming", "--shuffle_buffer_size", "100", "--dataloader_num_workers", "2"]
    one, other = (with_data(AutoencoderModel, *flags)[0] for _ in range(2))
    assert torch.equal(one.pixel_mean, other.pixel_mean) and 0 < one.pixel_mean.mean() < 0.5
    _, data = with_data(AutoencoderModel, *flags)
    with_start = next(data.train.batches(0, GlobalBatch(8), torch.device("cpu")))["pixel_values"]
    monkeypatch.delattr(AutoencoderModel, "start_at")
    _, data = with_data(AutoencoderModel, *flags)
    without = next(data.train.batches(0, GlobalBatch(8), torch.device("cpu")))["pixel_values"]
    assert torch.equal(with_start, without)


def test_gaussian_of_a_new_vae_starts_at_the_data() -> None:
    model, data = with_data(VAEModel, "--likelihood", "gaussian")
    pixels = data.train.pixels.float() / 255
    assert model.log_scale.exp().item() == pytest.approx(pixels.std().item(), rel=0.05)
    assert model.decoder.stages[-1][-1].bias.item() == pytest.approx(pixels.mean().item(), rel=0.05)


def test_published_model_keeps_its_start(tmp_path: Path) -> None:
    path = saved(AutoencoderModel(AutoencoderConfig(**SMALL)), tmp_path)
    model, _ = with_data(AutoencoderModel, "--model_name_or_path", path)
    assert torch.equal(model.pixel_mean, torch.full((1, 8, 8), 0.5)) and model.pixel_std == 0.5


@pytest.mark.parametrize("is_old", [True, False])
def test_only_a_model_from_before_the_start_may_lack_it(tmp_path: Path, is_old: bool) -> None:
    old: dict[str, Any] = {"downsampling_type": "max_pool", "num_residual_blocks": 0} if is_old else {}
    path = saved(AutoencoderModel(AutoencoderConfig(**SMALL, **old)), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pixel_")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if not is_old:
        with pytest.raises(ValueError, match="the weights lack pixel_mean, pixel_std"):
            with_data(AutoencoderModel, "--model_name_or_path", path)
        return
    model, _ = with_data(AutoencoderModel, "--model_name_or_path", path)
    assert torch.equal(model.pixel_mean, torch.full((1, 8, 8), 0.5)) and model.pixel_std == 0.5


# Fine-tuning


def test_fine_tuning_starts_from_the_weights_with_changed_flags(tmp_path: Path) -> None:
    model = small_vae()
    loaded, data = with_data(VAEModel, "--model_name_or_path", saved(model, tmp_path), "--beta", "4")
    assert loaded.config.beta == 4.0 and loaded.config.latent_dim == 4
    for (name, value), expected in zip(loaded.state_dict().items(), model.state_dict().values()):
        assert torch.equal(value, expected), name
    assert data.image_size == (8, 8)
    assert load_model(VAEModel, arguments_of(VAEModel)) is None


def test_published_model_decides_size_and_channels_of_the_data(tmp_path: Path) -> None:
    path = saved(small_vae(image_size=[4, 12], num_channels=3), tmp_path)
    assert with_data(VAEModel, "--model_name_or_path", path)[1].eval_pixels.shape == (5, 3, 4, 12)


def test_weights_published_in_half_precision_are_trained_in_full(tmp_path: Path) -> None:
    loaded = published(VAEModel, saved(small_vae().to(torch.bfloat16), tmp_path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    # Otherwise a run could not be repeated to the bit: products depend on the alignment on some CPUs.
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.state_dict().values() if tensor.numel())


def test_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = saved(small_vae(), tmp_path)
    for model_class in (AutoencoderModel, GPTForCausalLM):
        with pytest.raises(ValueError, match=rf"must be '{model_class.config_class.model_type}', got 'hfgen_vae'"):
            published(model_class, path)


@pytest.mark.parametrize(
    ("flags", "weight"),
    [(["--latent_dim", "5"], "to_latents"), (["--hidden_channels", "4", "8", "8"], "stages"),
     (["--num_residual_blocks", "1"], "stages"), (["--num_labels", "3"], "encoder"),
     (["--image_size", "16"], "hidden")],
)  # fmt: skip
def test_flag_that_changes_the_shape_of_a_published_model_is_refused(
    tmp_path: Path, flags: list[str], weight: str
) -> None:
    with pytest.raises(ValueError, match=rf"cannot be used: its weights do not fit.*{flags[0]} describes.*{weight}"):
        published(VAEModel, saved(small_vae(), tmp_path), *flags)


@pytest.mark.parametrize("layers", ["1", "3"])
def test_layers_are_neither_drawn_at_random_nor_silently_dropped(tmp_path: Path, layers: str) -> None:
    path = saved(GPTForCausalLM(GPTConfig(**SMALL_GPT)), tmp_path)
    with pytest.raises(ValueError, match=r"--num_hidden_layers describes. They differ in model.layers.[12]"):
        published(GPTForCausalLM, path, "--num_hidden_layers", layers)
    assert published(GPTForCausalLM, path, "--hidden_dropout", "0.1")


def test_tied_model_can_be_fine_tuned(tmp_path: Path) -> None:
    loaded = published(
        GPTForCausalLM, saved(GPTForCausalLM(GPTConfig(**SMALL_GPT, tie_word_embeddings=True)), tmp_path)
    )
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_impossible_value_for_a_published_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--model_name_or_path .* cannot be used: .*beta must be .* got -1.0"):
        published(VAEModel, saved(small_vae(), tmp_path), "--beta", "-1")


def test_folder_without_a_model_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    def is_refused(path: str) -> bool:
        with pytest.raises(ValueError, match=rf"--model_name_or_path .*{Path(path).name} cannot be used"):
            published(VAEModel, path)
        return True

    path = saved(small_vae(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    for damage in (weights.read_bytes()[:1000], b"", b"\xff" * 100):
        weights.write_bytes(damage)
        assert is_refused(path)
    weights.unlink()
    torch.save(small_vae().state_dict(), tmp_path / "model" / "pytorch_model.bin")
    assert is_refused(path)  # pickles are not read
    (tmp_path / "model" / "config.json").write_text("{", encoding="utf-8")
    assert is_refused(path) and is_refused(str(tmp_path / "absent"))


def test_published_conditional_model_needs_as_many_classes_and_takes_their_names(tmp_path: Path) -> None:
    path = saved(small_vae(num_labels=3), tmp_path / "three")
    with pytest.raises(ValueError, match=r"--num_labels must be 10, the number of classes in digits, got 3"):
        with_data(VAEModel, "--model_name_or_path", path)
    path = saved(small_vae(num_labels=10), tmp_path / "ten")
    assert list(with_data(VAEModel, "--model_name_or_path", path)[0].config.id2label.values()) == DIGITS
    path = saved(AutoencoderModel(AutoencoderConfig(**SMALL)), tmp_path / "autoencoder")
    assert with_data(AutoencoderModel, "--model_name_or_path", path)
    assert "id2label" not in json.loads((tmp_path / "autoencoder" / "config.json").read_text(encoding="utf-8"))
