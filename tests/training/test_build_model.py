"""From flags to a model: errors in words, fine-tuning that starts from the weights, classes that fit the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

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


SMALL: dict[str, Any] = {"image_size": [8, 8], "hidden_channels": [4, 8], "hidden_size": 16, "latent_dim": 4}
SMALL_GPT: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                             "max_position_embeddings": 8}  # fmt: skip
DIGITS = [str(digit) for digit in range(10)]


def told(config_class: type, *argv: str) -> Arguments:
    return parse(config_class, "Trains.", {}, None, ["--output_dir", "out", *argv])


def saved(model: Any, folder: Path) -> str:
    torch.manual_seed(0)
    model.save_pretrained(folder)
    return str(folder)


def small_vae(**fields: Any) -> VAEModel:
    return VAEModel(VAEConfig(**{**SMALL, **fields}))


# ---------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (
            VAEConfig,
            {"image_size": [30, 28], "latent_type": "round"},
            r"\[30, 28\] must be divisible by 4.*latent_type",
        ),
        (AutoencoderConfig, {"image_size": [9, 9]}, r"image_size \[9, 9\] must be divisible by 4"),
        (GANConfig, {"image_size": [10, 10]}, "must be divisible by 4, as each of the 2 stages in generator_channels"),
        (GPTConfig, {"mlp_type": "round", "hidden_size": -1}, "hidden_size: expected more than 0, got -1.*mlp_type"),
        (VAEConfig, {"latent_dim": "many"}, "'latent_dim' expected int, got str"),
        (VAEConfig, {"hidden_channels": [1.5]}, "'hidden_channels'"),
        (GPTConfig, {"use_bias": 3}, "'use_bias' expected bool, got int"),
        (GPTConfig, {"hidden_size": None}, "hidden_size"),
    ],
)
def test_config_that_cannot_be_is_a_value_error_of_one_paragraph(
    config_class: type, fields: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_config(config_class, fields)
    assert "\n" not in str(caught.value) and "Class validation error" not in str(caught.value)


def test_flags_win_over_what_follows_from_the_data() -> None:
    config = build_config(VAEConfig, {"latent_dim": 3}, latent_dim=5, image_size=[4, 8])
    assert (config.latent_dim, config.image_size) == (3, [4, 8])


# ---------------------------------------------------------------------------------------------------------- fresh


def test_fresh_model_fits_the_data() -> None:
    model, data = load_image_model(AutoencoderModel, told(AutoencoderConfig, "--max_eval_samples", "5"), seed=0)
    assert model.config.image_size == [8, 8] and model.config.num_channels == 1 and len(data.eval_pixels) == 5
    flags = ("--image_size", "12", "16", "--num_channels", "3", "--max_eval_samples", "5")
    model, data = load_image_model(VAEModel, told(VAEConfig, *flags), seed=0)
    assert model.config.image_size == [12, 16] and model.config.num_labels == 0
    assert data.eval_pixels.shape == (5, 3, 12, 16)
    model, _ = load_image_model(VAEModel, told(VAEConfig, "--image_size", "16", "--max_eval_samples", "5"), seed=0)
    assert model.config.image_size == [16, 16]


def test_image_size_of_the_data_that_the_stages_do_not_divide_is_refused() -> None:
    arguments = told(VAEConfig, "--hidden_channels", "4", "4", "4", "4", "--max_eval_samples", "5")
    with pytest.raises(
        ValueError, match=r"image_size \[8, 8\] must be divisible by 16.*resize the images or use fewer"
    ):
        load_image_model(VAEModel, arguments, seed=0)


@pytest.mark.parametrize(("model_class", "config_class"), [(VAEModel, VAEConfig), (GANModel, GANConfig)])
def test_conditional_model_knows_the_names_of_the_classes(model_class: Any, config_class: type) -> None:
    arguments = told(config_class, "--num_labels", "10", "--max_eval_samples", "5")
    model, _ = load_image_model(model_class, arguments, seed=0)
    assert model.config.id2label == dict(enumerate(DIGITS)) and model.config.label2id["7"] == 7
    assert arguments.model["num_labels"] == 10  # stays in what results.json and a recipe say of the run


@pytest.mark.parametrize("count", ["7", "-1"])
def test_class_count_that_the_data_has_not_is_refused(count: str) -> None:
    with pytest.raises(ValueError, match=rf"conditional on --num_labels {count} classes, and digits has 10. Give"):
        load_image_model(VAEModel, told(VAEConfig, "--num_labels", count, "--max_eval_samples", "5"), seed=0)


# --------------------------------------------------------------------------------------------------- fine-tuning


def test_fine_tuning_starts_from_the_weights_with_flags_changed(tmp_path: Path) -> None:
    model = small_vae()
    arguments = told(
        VAEConfig, "--model_name_or_path", saved(model, tmp_path), "--beta", "4", "--max_eval_samples", "5"
    )
    loaded, data = load_image_model(VAEModel, arguments, seed=0)
    assert loaded.config.beta == 4.0 and loaded.config.latent_dim == 4
    for (name, value), expected in zip(loaded.state_dict().items(), model.state_dict().values()):
        assert torch.equal(value, expected), name
    assert data.image_size == (8, 8)
    assert load_model(VAEModel, told(VAEConfig)) is None


def test_model_decides_size_and_channels_of_the_data(tmp_path: Path) -> None:
    path = saved(small_vae(image_size=[4, 12], num_channels=3), tmp_path)
    _, data = load_image_model(
        VAEModel, told(VAEConfig, "--model_name_or_path", path, "--max_eval_samples", "5"), seed=0
    )
    assert data.eval_pixels.shape == (5, 3, 4, 12)


def test_weights_published_in_half_precision_are_trained_in_full(tmp_path: Path) -> None:
    path = saved(small_vae().to(torch.bfloat16), tmp_path)
    loaded = load_model(VAEModel, told(VAEConfig, "--model_name_or_path", path))
    # Or a run that starts from it could not be repeated to the bit: products depend on it on some processors.
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.state_dict().values() if tensor.numel())
    assert loaded is not None and {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = saved(small_vae(), tmp_path)
    for model_class, config_class in ((AutoencoderModel, AutoencoderConfig), (GPTForCausalLM, GPTConfig)):
        with pytest.raises(
            ValueError, match=r"must hold a model of the type 'hfgen_(autoencoder|gpt)', got 'hfgen_vae'"
        ):
            load_model(model_class, told(config_class, "--model_name_or_path", path))


@pytest.mark.parametrize(
    ("flags", "weight"),
    [(["--latent_dim", "5"], "to_latents"), (["--hidden_channels", "4", "8", "8"], "stages"),
     (["--num_residual_blocks", "1"], "stages"), (["--num_labels", "3"], "encoder"),
     (["--image_size", "16"], "hidden")],
)  # fmt: skip
def test_flag_that_changes_the_shape_of_a_trained_model_is_refused(
    tmp_path: Path, flags: list[str], weight: str
) -> None:
    arguments = told(VAEConfig, "--model_name_or_path", saved(small_vae(), tmp_path), *flags)
    with pytest.raises(ValueError, match=rf"cannot be used: its weights are not.*{flags[0]} describes.*{weight}"):
        load_model(VAEModel, arguments)


@pytest.mark.parametrize("layers", ["1", "3"])
def test_layers_are_neither_drawn_at_random_nor_dropped_in_silence(tmp_path: Path, layers: str) -> None:
    path = saved(GPTForCausalLM(GPTConfig(**SMALL_GPT)), tmp_path)
    with pytest.raises(ValueError, match=r"--num_hidden_layers describes: they differ in model.layers.[12]"):
        load_model(GPTForCausalLM, told(GPTConfig, "--model_name_or_path", path, "--num_hidden_layers", layers))
    assert load_model(GPTForCausalLM, told(GPTConfig, "--model_name_or_path", path, "--hidden_dropout", "0.1"))


def test_tied_model_can_be_fine_tuned(tmp_path: Path) -> None:
    path = saved(GPTForCausalLM(GPTConfig(**SMALL_GPT, tie_word_embeddings=True)), tmp_path)
    loaded = load_model(GPTForCausalLM, told(GPTConfig, "--model_name_or_path", path))
    assert loaded is not None and loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_impossible_value_for_a_trained_model_is_refused(tmp_path: Path) -> None:
    path = saved(small_vae(), tmp_path)
    with pytest.raises(ValueError, match=r"--model_name_or_path .* cannot be used: .*beta must be .* got -1.0"):
        load_model(VAEModel, told(VAEConfig, "--model_name_or_path", path, "--beta", "-1"))


def test_folder_that_holds_no_model_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = saved(small_vae(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    for damage in (weights.read_bytes()[:1000], b"", b"\xff" * 100):
        weights.write_bytes(damage)
        with pytest.raises(ValueError, match=r"--model_name_or_path .*model cannot be used"):
            load_model(VAEModel, told(VAEConfig, "--model_name_or_path", path))
    weights.unlink()
    torch.save(small_vae().state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model cannot be used"):  # pickles are not read
        load_model(VAEModel, told(VAEConfig, "--model_name_or_path", path))
    (tmp_path / "model" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"model cannot be used"):
        load_model(VAEModel, told(VAEConfig, "--model_name_or_path", path))
    with pytest.raises(ValueError, match=r"absent cannot be used"):
        load_model(VAEModel, told(VAEConfig, "--model_name_or_path", str(tmp_path / "absent")))


def test_conditional_model_needs_as_many_classes_and_takes_their_names(tmp_path: Path) -> None:
    flags = ("--max_eval_samples", "5", "--model_name_or_path")
    path = saved(small_vae(num_labels=3), tmp_path / "three")
    with pytest.raises(ValueError, match=r"conditional on --num_labels 3 classes, and digits has 10"):
        load_image_model(VAEModel, told(VAEConfig, *flags, path), seed=0)
    path = saved(small_vae(num_labels=10), tmp_path / "ten")
    model, _ = load_image_model(VAEModel, told(VAEConfig, *flags, path), seed=0)
    assert list(model.config.id2label.values()) == DIGITS
    path = saved(AutoencoderModel(AutoencoderConfig(**SMALL)), tmp_path / "autoencoder")
    assert load_image_model(AutoencoderModel, told(AutoencoderConfig, *flags, path), seed=0)
    assert "id2label" not in json.loads((tmp_path / "autoencoder" / "config.json").read_text(encoding="utf-8"))


def test_conditional_model_of_data_without_classes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    columns = {"image": [Image.new("L", (8, 8), value) for value in range(20)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    arguments = told(VAEConfig, "--num_labels", "2", "--dataset_name", str(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"conditional on --num_labels 2 classes, and .* has none that are named"):
        load_image_model(VAEModel, arguments, seed=0)
