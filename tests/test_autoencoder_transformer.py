"""The Auto-Encoder among the estimators of scikit-learn."""

from __future__ import annotations

import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from hfgen import AutoencoderConfig, AutoencoderModel, AutoencoderTransformer, VAEConfig, VAEModel


TINY: dict[str, Any] = {
    "latent_dim": 3, "epochs": 2, "random_state": 0, "device": "cpu",
    "config": {"hidden_channels": [4], "hidden_size": 8},
}  # fmt: skip


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def test_it_is_an_estimator() -> None:
    """Rows of any length and range are images of one pixel's height, or squares."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(AutoencoderTransformer(**TINY), on_skip=None, on_fail=None)

    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert failed == {} and len(results) > 40


def test_reconstructions_of_digits_are_better_than_those_of_pca() -> None:
    digits = load_digits().images
    train, test = digits[:1500], digits[1500:]
    pca = PCA(8, random_state=0).fit(train.reshape(1500, -1))
    flat = test.reshape(len(test), -1)
    error_of_pca = np.square(pca.inverse_transform(pca.transform(flat)) - flat).mean()

    transformer = AutoencoderTransformer(8, epochs=20, random_state=0).fit(train)

    assert -transformer.score(test) < error_of_pca
    difference = transformer.inverse_transform(transformer.transform(test)) - test
    assert transformer.score(test) == pytest.approx(-np.square(difference).mean(), rel=1e-5)
    assert transformer.loss_curve_[-1] < 0.5 * transformer.loss_curve_[0] and len(transformer.loss_curve_) == 20


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (5, 7, 1), (4, 6, 3)])
def test_images_come_back_in_their_layout(shape: tuple[int, ...]) -> None:
    whole = images(12, *shape)
    flat = whole.reshape(12, -1)
    transformer = AutoencoderTransformer(**TINY).fit(whole)

    latents = transformer.transform(whole)
    back = transformer.inverse_transform(latents)
    of_flat = AutoencoderTransformer(**TINY, image_shape=shape).fit(flat)

    assert latents.shape == (12, 3) and latents.dtype == back.dtype == np.float32
    assert back.shape == whole.shape and of_flat.inverse_transform(latents).shape == flat.shape
    assert np.array_equal(of_flat.transform(flat), latents) and np.array_equal(of_flat.transform(whole), latents)
    assert np.array_equal(of_flat.inverse_transform(latents), back.reshape(12, -1))
    assert transformer.image_shape_ == shape and transformer.n_features_in_ == flat.shape[1]


def test_rows_that_are_no_square_are_taken_as_one_row_of_pixels() -> None:
    with pytest.warns(UserWarning, match="The 10 features of X are taken as an image one pixel high"):
        transformer = AutoencoderTransformer(**TINY).fit(images(12, 10))
    assert transformer.image_shape_ == (1, 10) and transformer.inverse_transform(images(2, 3)).shape == (2, 10)
    assert AutoencoderTransformer(**TINY).fit(images(12, 9)).image_shape_ == (3, 3)


@pytest.mark.parametrize(
    "scale, dtype, given, expected",
    [
        (255, np.uint8, None, (0, 255)),
        (1, np.float64, None, (0, 1)),
        (16, np.float64, None, (2, 14)),
        (16, np.float64, (0, 16), (0, 16)),
    ],
)
def test_range_of_the_values(scale: float, dtype: Any, given: Any, expected: tuple[float, float]) -> None:
    gray = np.linspace(1 / 8, 7 / 8, 64)
    values = (np.broadcast_to(gray[:, None, None], (64, 8, 8)) * scale).astype(dtype)
    transformer = AutoencoderTransformer(**TINY, value_range=given).fit(values)

    back = transformer.inverse_transform(transformer.transform(values))

    assert transformer.value_range_ == expected
    assert expected[0] <= back.min() and back.max() <= expected[1]
    # Black and white for the network are both ends of the range.
    low, high = (np.full((1, 8, 8), end).astype(dtype) for end in expected)
    with torch.no_grad():
        ends = transformer.model_.encode(torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 8, 8)).numpy()
    np.testing.assert_allclose(
        np.concatenate([transformer.transform(low), transformer.transform(high)]), ends, rtol=1e-4
    )


def test_later_values_are_clipped_to_the_range() -> None:
    transformer = AutoencoderTransformer(**TINY).fit(images(12, 8, 8))
    beyond = np.where(images(2, 8, 8) > 0.5, 7.0, -7.0)

    assert np.array_equal(transformer.transform(beyond), transformer.transform(beyond.clip(0, 1)))


def test_a_seed_determines_the_result() -> None:
    values = images(40, 8, 8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = AutoencoderTransformer(**TINY).fit(values)
    assert torch.equal(torch.get_rng_state(), state)  # and leaves the caller's random numbers alone
    torch.manual_seed(2)

    assert np.array_equal(AutoencoderTransformer(**TINY).fit(values).transform(values), first.transform(values))
    other = AutoencoderTransformer(**{**TINY, "random_state": 1}).fit(values)
    assert not np.allclose(other.transform(values), first.transform(values))


@pytest.mark.parametrize("field", ["noise_std", "erase_prob", "affine_std"])
def test_what_changes_the_input_follows_from_the_seed(field: str) -> None:
    values, config = images(40, 8, 8), {**TINY["config"], field: 0.3}
    first, again = (AutoencoderTransformer(**{**TINY, "config": config}).fit(values) for _ in range(2))

    assert getattr(first.model_.config, field) == 0.3 and first.loss_curve_ == again.loss_curve_
    assert first.loss_curve_ != AutoencoderTransformer(**TINY).fit(values).loss_curve_


def test_a_pipeline_and_a_search() -> None:
    digits = load_digits()
    values, labels = digits.data[:300], digits.target[:300]
    pipeline = make_pipeline(AutoencoderTransformer(**TINY), StandardScaler(), KNeighborsClassifier(3))
    search = GridSearchCV(pipeline, {"autoencodertransformer__latent_dim": [1, 8]}, cv=2, error_score="raise")

    search.fit(values, labels)

    assert search.best_params_ == {"autoencodertransformer__latent_dim": 8} and search.best_score_ > 0.4
    without_labels = GridSearchCV(AutoencoderTransformer(**TINY), {"epochs": [1, 15]}, cv=2, error_score="raise")
    assert without_labels.fit(values).best_params_ == {"epochs": 15}


def test_copies_of_a_fitted_one() -> None:
    values = images(12, 8, 8)
    transformer = AutoencoderTransformer(**TINY).fit(values)
    again = pickle.loads(pickle.dumps(transformer))  # what joblib does between processes

    assert np.array_equal(again.transform(values), transformer.transform(values))
    assert clone(transformer).get_params() == transformer.get_params() and not hasattr(clone(transformer), "model_")


def test_names_of_features() -> None:
    frame = pandas.DataFrame(images(12, 9), columns=list("abcdefghi"))
    transformer = AutoencoderTransformer(**TINY).set_output(transform="pandas").fit(frame)

    names = [f"autoencodertransformer{number}" for number in range(3)]
    assert list(transformer.get_feature_names_out()) == list(transformer.transform(frame).columns) == names
    with pytest.raises(ValueError, match="feature names should match"):
        transformer.transform(frame.rename(columns={"a": "z"}))


def test_spatial_latents_are_flattened() -> None:
    config = {"hidden_channels": [4], "latent_type": "spatial"}
    transformer = AutoencoderTransformer(**{**TINY, "config": config}).fit(images(12, 8, 8))
    latents = transformer.transform(images(12, 8, 8))

    assert latents.shape == (12, 3 * 4 * 4) and transformer.inverse_transform(latents).shape == (12, 8, 8)
    assert len(transformer.get_feature_names_out()) == 48


@pytest.mark.parametrize("kind", ["model", "folder"])
def test_a_trained_model_is_used_as_it_is(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = AutoencoderModel(AutoencoderConfig(image_size=8, hidden_channels=[4], hidden_size=8, latent_dim=5)).eval()
    model.save_pretrained(tmp_path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pixels = (images(6, 8, 8) * 255).astype(np.uint8)
    transformer = AutoencoderTransformer(model=tmp_path if kind == "folder" else model, device="cpu").fit(pixels)

    with torch.no_grad():
        latents = model.encode(torch.from_numpy(pixels / np.float32(255))[:, None])
        back = model.decode(latents)[:, 0] * 255

    np.testing.assert_allclose(transformer.transform(pixels), latents, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(transformer.inverse_transform(latents.numpy()), back, rtol=1e-4, atol=1e-3)
    assert transformer.loss_curve_ == [] and all(
        torch.equal(before[name], weight) for name, weight in model.state_dict().items()
    )
    with pytest.raises(ValueError, match=r"X must hold images of 8 x 8 pixels with 1 channels, .* got 9 x 8 with 3"):
        clone(transformer).fit(images(6, 9, 8, 3))


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    VAEModel(VAEConfig(image_size=8, hidden_channels=[4], hidden_size=8)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be 'hfgen_autoencoder', got 'hfgen_vae'"):
        AutoencoderTransformer(model=str(tmp_path)).fit(images(6, 8, 8))


def test_the_model_is_saved_as_any_other(tmp_path: Path) -> None:
    values = images(12, 8, 8)
    transformer = AutoencoderTransformer(**TINY).fit(values)
    transformer.model_.save_pretrained(tmp_path)

    again = AutoencoderTransformer(model=tmp_path, device="cpu").fit(values)

    np.testing.assert_allclose(again.transform(values), transformer.transform(values), rtol=1e-4, atol=1e-6)


def test_a_time_limit_ends_the_training() -> None:
    started = time.perf_counter()
    transformer = AutoencoderTransformer(**{**TINY, "epochs": 10**6}, max_seconds=0.3).fit(images(200, 8, 8))

    assert 1 <= len(transformer.loss_curve_) < 10**5 and time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "parameters, values, message",
    [
        ({"epochs": 0, "batch_size": 1.5}, images(6, 8, 8), "epochs must be a whole number of at least 1, got 0; "),
        ({"learning_rate": -1.0}, images(6, 8, 8), "learning_rate must be a positive number, got -1.0"),
        ({"value_range": (1, 0)}, images(6, 8, 8), r"value_range must be \(black, white\) with black below white"),
        ({"value_range": (0, 1)}, 2 * images(6, 8, 8), r"value_range must hold all values of X, got \(0, 1\)"),
        ({"image_shape": (8, 9)}, images(6, 64), "image_shape must be .* of 64 numbers in all"),
        ({"image_shape": (8, 9)}, images(6, 8, 8), r"X must hold images of shape \(8, 9\), got \(8, 8\)"),
        ({"config": {"hidden_chanels": [4], "latent_dim": 3}}, images(6, 8, 8), "got hidden_chanels, latent_dim"),
        ({"config": {"hidden_act": "step"}}, images(6, 8, 8), "config cannot be used: AutoencoderConfig: hidden_act"),
        ({}, images(2, 8, 8, 8, 8), r"X must hold images of shape \(height, width\) or"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(parameters: dict[str, Any], values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderTransformer(**{**TINY, **parameters}).fit(values)


def test_latents_and_images_of_another_shape_are_refused() -> None:
    transformer = AutoencoderTransformer(**TINY).fit(images(12, 8, 8))
    with pytest.raises(ValueError, match="X must have 3 latents in each row, got 4"):
        transformer.inverse_transform(images(2, 4))
    with pytest.raises(ValueError, match=r"X must hold images of shape \(8, 8\), got \(4, 16\)"):
        transformer.transform(images(2, 4, 16))
