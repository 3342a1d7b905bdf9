"""The anomaly detector: its distance is Mahalanobis's, its features are edges, its maps point at what is strange."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from sklearn.covariance import ShrunkCovariance
from sklearn.decomposition import PCA
from torch import Tensor

from hfgen.models.anomaly import GaussianDistance, Moments, edge_maps, oriented_gradients, pool
from hfgen.models.modeling_autoencoder import AutoencoderConfig, AutoencoderModel

from ..test_auto_classes import BLOCK_HFGEN, run_without_hfgen


def tiny_model(**fields: Any) -> AutoencoderModel:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3, "anomaly_dim": 1000}
    return AutoencoderModel(AutoencoderConfig(**{**sizes, **fields})).eval()


def bars(batch: int, seed: int = 0, channels: int = 1, size: tuple[int, int] = (16, 16)) -> Tensor:
    """A vertical bar in the middle of each image, of varying brightness, in a little noise."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    images = 0.05 * torch.rand(batch, channels, height, width, generator=generator)
    images[..., width // 2 - 2 : width // 2 + 2] += 0.5 + 0.4 * torch.rand(batch, 1, 1, 1, generator=generator)
    return images


def random_features(rows: int, dimensions: int, seed: int = 0) -> Tensor:
    """Correlated, with directions of very different variance."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator) * torch.logspace(0, -2, dimensions)
    return 3 + torch.randn(rows, dimensions, generator=generator) @ mixing.T


def fitted(features: Tensor, rank: int) -> GaussianDistance:
    distance = GaussianDistance(features.shape[1], rank)
    distance.fit(features.double().mean(dim=0), features.double().T.cov())
    return distance


def typical(values: Tensor | np.ndarray) -> float:
    """The mean of d² over the images of a fit, up to the bias of the covariance: the sum of e / (e + s)."""
    return float((values / (values + values.mean())).sum())


# ---------------------------------------------------------------------------------------------------------- distance


def test_distance_is_mahalanobis_with_a_shrunk_covariance() -> None:
    features, others = random_features(50, 12), random_features(20, 12, seed=1)
    # (Σ + s I) / 2 is the covariance shrunk by half towards s I, where s is its mean eigenvalue.
    reference = ShrunkCovariance(shrinkage=0.5).fit(features.double().numpy())
    unbiased = 49 / 50  # scikit-learn divides by the number of images

    found = fitted(features, 12)(others).square().sum(dim=1)

    values = torch.linalg.eigvalsh(features.double().T.cov())
    expected = torch.from_numpy(reference.mahalanobis(others.double().numpy())) / 2 * unbiased / typical(values)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_distance_with_few_directions_is_that_of_probabilistic_pca() -> None:
    features, others = random_features(60, 10), random_features(5, 10, seed=1).double()
    pca = PCA(n_components=4).fit(features.double().numpy())
    values = np.concatenate([pca.explained_variance_, np.full(6, pca.noise_variance_)])
    basis = np.linalg.svd((features.double() - features.double().mean(0)).numpy())[2]
    centered = others.numpy() - pca.mean_
    expected = ((centered @ basis.T) ** 2 / (values + values.mean())).sum(axis=1) / typical(values)

    found = fitted(features, 4)(others.float()).square().sum(dim=1)

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_a_typical_image_has_the_distance_one() -> None:
    features = random_features(40, 9)

    for rank in (2, 9):
        found = fitted(features, rank)(features).square().sum(dim=1).mean()

        assert found.item() == pytest.approx(39 / 40, rel=1e-4)  # as the covariance is the unbiased one


def test_whitening_keeps_each_feature_where_it_was() -> None:
    """Of features that are independent, only the one that is strange has a share in the distance."""
    features = torch.cat([torch.eye(6), -torch.eye(6)]) * torch.arange(1.0, 7)
    distance = fitted(features, 3)
    strange = distance.mean + torch.tensor([0, 0, 0, 0, 10.0, 0])

    shares = distance(strange[None])[0].square()

    assert shares[4] > 0 and shares.sum().item() == pytest.approx(shares[4].item(), rel=1e-4)


@pytest.mark.parametrize("sizes", [[50], [1, 49], [10, 0, 39, 1]])
def test_moments_do_not_depend_on_batches_nor_on_a_large_mean(sizes: list[int]) -> None:
    features, moments = random_features(50, 6) + 1000, Moments()

    for batch in features.split(sizes):
        moments.add(batch)

    assert moments.count == 50
    torch.testing.assert_close(moments.mean, features.double().mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.covariance(), features.double().T.cov(), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- features


def test_gradient_of_a_ramp_counts_by_its_projection() -> None:
    """A picture that brightens by 0.1 a pixel to the right, and by 0.2 downwards."""
    rows, columns = torch.arange(8.0)[:, None], torch.arange(8.0)
    ramp = (0.1 * columns + 0.2 * rows).view(1, 1, 8, 8)
    angles = [2 * math.pi * k / 8 for k in range(8)]
    expected = torch.tensor([max(0.0, 0.1 * math.cos(angle) + 0.2 * math.sin(angle)) for angle in angles])

    found = oriented_gradients(ramp)

    torch.testing.assert_close(found[0, :, 1:-1, 1:-1], expected[:, None, None].expand(8, 6, 6))


def test_in_color_the_steepest_channel_counts() -> None:
    gray = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    color = torch.cat([0.5 * gray, gray, 1 - 0.1 * gray], dim=1)

    assert torch.equal(oriented_gradients(color), oriented_gradients(gray))


def test_pooling_keeps_a_constant_inside_and_halves_sides_upwards() -> None:
    found = pool(torch.ones(1, 3, 9, 12), halvings=2)

    assert found.shape == (1, 3, 3, 3)
    assert found[0, 0, 1, 1] == 1  # at the rim, the blur reaches beyond the image, where there are no edges


def test_edges_of_a_flat_image_are_none() -> None:
    assert not edge_maps(torch.full((1, 3, 8, 8), 0.7), halvings=1).any()


# -------------------------------------------------------------------------------------------------- of an Auto-Encoder


@pytest.mark.parametrize(
    "fields",
    [{}, {"num_channels": 3, "image_size": [16, 24]}, {"latent_type": "spatial"}, {"anomaly_dim": 5}],
    ids=["gray", "color", "spatial", "few directions"],
)
def test_maps_point_at_a_planted_blot(fields: dict[str, Any]) -> None:
    model = tiny_model(**fields)
    channels, size = model.config.num_channels, tuple(model.config.image_size)
    model.fit_anomaly(bars(64, channels=channels, size=size).split(16))
    normal = bars(8, seed=1, channels=channels, size=size)
    strange = normal.clone()
    strange[..., 1:5, 1:5] = 1

    before, after = model.predict_anomaly(normal), model.predict_anomaly(strange)

    assert after.scores.min() > before.scores.max()
    assert after.maps.shape == (8, *size)
    for peak in after.maps.flatten(1).argmax(dim=1).tolist():
        assert peak // size[1] < 8 and peak % size[1] < 8


def test_the_score_is_the_mean_of_its_map() -> None:
    """Far from the rim, where interpolation repeats the outermost cells."""
    model = tiny_model(image_size=32)
    model.fit_anomaly([bars(64, size=(32, 32))])
    images = bars(3, seed=1, size=(32, 32))
    images[:, :, 14:18] = 1

    found = model.predict_anomaly(images)

    torch.testing.assert_close(found.maps.mean(dim=(1, 2)), found.scores, rtol=0.1, atol=0)


def test_normal_images_score_about_one() -> None:
    model = tiny_model()
    model.fit_anomaly(bars(256).split(64))

    assert model.anomaly_score(bars(256)).mean().item() == pytest.approx(255 / 256, rel=1e-3)


@pytest.mark.parametrize("anomaly_dim", [0, 1000], ids=["no detector", "not fitted"])
def test_without_a_fitted_detector_scores_and_maps_are_the_reconstruction_error(anomaly_dim: int) -> None:
    model = tiny_model(anomaly_dim=anomaly_dim, num_channels=3)
    images = bars(3, channels=3)
    errors = (model(images).reconstruction - images).square()

    found = model.predict_anomaly(images)

    torch.testing.assert_close(found.maps, errors.mean(dim=1))
    torch.testing.assert_close(found.scores, errors.mean(dim=(1, 2, 3)))
    assert found.is_anomaly is None


def test_without_a_detector_there_is_nothing_to_fit() -> None:
    model = tiny_model(anomaly_dim=0)
    images = bars(4)
    before = model.anomaly_score(images)

    model.fit_anomaly([images])

    assert torch.equal(model.anomaly_score(images), before)
    assert model.anomaly_detector is None


def test_anomalies_are_above_the_threshold() -> None:
    model = tiny_model()
    model.fit_anomaly([bars(32)])
    images = bars(5, seed=1)
    scores = model.anomaly_score(images)
    model.config.anomaly_threshold = scores.sort().values[2].item()

    found = model.predict_anomaly(images)

    assert torch.equal(found.scores, scores)
    assert found.is_anomaly.dtype == torch.bool and found.is_anomaly.sum() == 2


def test_fitted_twice_is_identical_and_the_last_fit_counts() -> None:
    model, again = tiny_model(), tiny_model()
    images, others = bars(32), bars(32, seed=1).transpose(2, 3)

    model.fit_anomaly(images.split(8))
    again.fit_anomaly(others.split(8))
    again.fit_anomaly(images.split(8))

    assert all(torch.equal(mine, again.state_dict()[name]) for name, mine in model.state_dict().items())


def test_training_mode_does_not_change_scores_and_no_gradient_is_kept() -> None:
    model = tiny_model(noise_std=0.5)
    model.fit_anomaly([bars(32)])
    images = bars(4, seed=1)
    expected = model.anomaly_score(images)

    found = model.train().anomaly_score(images)

    assert torch.equal(found, expected) and not found.requires_grad


def test_no_image_has_no_score() -> None:
    model = tiny_model()
    model.fit_anomaly([bars(8)])

    found = model.predict_anomaly(bars(8)[:0])

    assert found.scores.shape == (0,) and found.maps.shape == (0, 16, 16)


def test_color_is_judged_as_gray_by_a_gray_model() -> None:
    model = tiny_model()
    images = bars(16)

    model.fit_anomaly([images.expand(-1, 3, -1, -1)])

    assert torch.equal(model.anomaly_score(images.expand(-1, 3, -1, -1)), model.anomaly_score(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_scores_in_another_precision(dtype: torch.dtype) -> None:
    model = tiny_model()
    model.fit_anomaly([bars(64)])
    images = bars(8, seed=1)
    expected = model.anomaly_score(images)

    found = model.to(dtype).anomaly_score(images.to(dtype))

    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0)


def test_autocast_does_not_reach_the_detector() -> None:
    model = tiny_model()
    model.fit_anomaly([bars(64)])
    images = bars(8, seed=1)
    copies = model.decode(model.encode(images))
    expected = model.anomaly_detector(images, copies)

    with torch.autocast("cpu", torch.bfloat16):
        found = model.anomaly_detector(images, copies)

    assert all(map(torch.equal, found, expected))


# -------------------------------------------------------------------------------------------------- saving and loading


WITHOUT_HFGEN = f"""{BLOCK_HFGEN}
import torch
from safetensors.torch import load_file
from transformers import AutoModel

folder = json.loads(sys.argv[1])
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
found = model.predict_anomaly(load_file(Path(folder) / "images.safetensors")["images"])
print("REPORT" + json.dumps([found.scores.tolist(), found.is_anomaly.tolist(), found.maps.tolist()]))
"""


def test_a_saved_detector_judges_the_same_without_hfgen(tmp_path: Path) -> None:
    model = tiny_model()
    model.fit_anomaly([bars(32)])
    images = torch.cat([bars(2, seed=1), bars(2, seed=2).transpose(2, 3)]).contiguous()
    model.config.anomaly_threshold = model.anomaly_score(images).sort().values[1:3].mean().item()
    expected = model.predict_anomaly(images)
    assert expected.is_anomaly.sum() == 2
    model.save_pretrained(tmp_path / "model")
    save_file({"images": images}, tmp_path / "model" / "images.safetensors")

    found = run_without_hfgen(tmp_path / "home", WITHOUT_HFGEN, str(tmp_path / "model"))

    assert found == [expected.scores.tolist(), expected.is_anomaly.tolist(), expected.maps.tolist()]


def test_a_detector_that_is_missing_from_the_file_counts_as_not_fitted(tmp_path: Path) -> None:
    tiny_model(anomaly_dim=0).save_pretrained(tmp_path)
    images = bars(4)

    loaded = AutoencoderModel.from_pretrained(tmp_path, anomaly_dim=50)

    torch.testing.assert_close(loaded.anomaly_score(images), tiny_model(anomaly_dim=0).anomaly_score(images))
    loaded.fit_anomaly([bars(32)])
    assert loaded.anomaly_detector.is_fitted


def test_a_detector_takes_little_space() -> None:
    model = AutoencoderModel(AutoencoderConfig(anomaly_dim=784))

    assert sum(buffer.nbytes for buffer in model.anomaly_detector.buffers()) < 2_000_000


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "batches, message",
    [
        ([], "batches must hold at least two images, got 0"),
        ([bars(1)], "batches must hold at least two images, got 1"),
        ([torch.full((4, 1, 16, 16), 0.5)], "batches must hold images that differ"),
        ([torch.full((4, 1, 16, 16), math.nan)], "batches must have finite features, got NaN or infinity"),
        ([bars(4, size=(8, 8))], r"pixel_values must be floats in \[0, 1\] of shape \(batch, 1, 16, 16\)"),
    ],
    ids=["none", "one", "all the same", "not finite", "another size"],
)
def test_images_that_say_nothing_are_refused_and_the_fit_before_stays(batches: list[Tensor], message: str) -> None:
    model = tiny_model()
    model.fit_anomaly([bars(16)])
    before = model.anomaly_score(bars(4))

    with pytest.raises(ValueError, match=message):
        model.fit_anomaly(batches)

    assert torch.equal(model.anomaly_score(bars(4)), before)


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(StrictDataclassError) as error:
        AutoencoderConfig(anomaly_dim=-1, anomaly_threshold=math.nan)

    assert "anomaly_dim must be at least 0, got -1" in str(error.value)
    assert "anomaly_threshold must be a finite number or None, got nan" in str(error.value)
