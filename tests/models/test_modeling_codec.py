"""The codec: rates worked out on paper, images of any size, and what its symbols and tables promise."""

from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from hfgen.models.modeling_codec import LARGEST_SYMBOL, CodecConfig, CodecModel
from hfgen.models.symbol_prior import MixturePrior
from hfgen.models.symbol_tables import PRECISION


def tiny_model(**fields: object) -> CodecModel:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "num_channels": 1, "hidden_channels": [4, 6], "num_residual_blocks": 1, "latent_dim": 3}
    return CodecModel(CodecConfig(**{**sizes, "num_levels": 3, "max_symbol": 3, **fields})).eval()


def random_images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------------------------- rates


def prior_with(means: list[float], log_scales: list[float], logits: list[float]) -> MixturePrior:
    """The prior of one channel, the same at every quality."""
    prior = MixturePrior(1)
    around_spread = torch.tensor(log_scales) - torch.tensor([-1.0, 0.0, 1.0])
    for table, values in ((prior.means, means), (prior.log_scales, around_spread), (prior.logits, logits)):
        table.weight.data[:] = torch.as_tensor(values) / table.speed
    return prior


@torch.no_grad()
def test_bits_are_the_logarithm_of_the_mass_around_a_symbol() -> None:
    prior = prior_with([0.5, -1.0, 4.0], [0.0, 1.0, -0.5], [0.0, 0.7, -0.3])
    symbols = torch.arange(-3.0, 4.0).double()

    bits = prior.bits(symbols.view(1, 1, 1, -1), torch.zeros(1, 1), torch.tensor([0.3]))

    weights = torch.tensor([0.0, 0.7, -0.3]).double().softmax(0)
    mass = sum(
        weight * (torch.sigmoid((symbols + 0.5 - mean) / scale) - torch.sigmoid((symbols - 0.5 - mean) / scale))
        for weight, mean, scale in zip(weights, (0.5, -1.0, 4.0), torch.tensor([0.0, 1.0, -0.5]).double().exp())
    )
    torch.testing.assert_close(bits.flatten().double(), -mass.log2(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_probabilities_of_all_symbols_sum_to_1_at_every_quality_and_gain() -> None:
    torch.manual_seed(0)
    prior = MixturePrior(2)
    for parameter in prior.parameters():
        parameter.normal_(std=0.1)
    symbols = torch.arange(-3000.0, 3001.0).expand(4, 2, 1, -1)

    bits = prior.bits(symbols, torch.randn(4, 2), torch.tensor([0.0, 0.2, 0.75, 1.0]))

    torch.testing.assert_close((2.0 ** -bits.double()).sum(-1), torch.ones(4, 2, 1).double(), rtol=1e-3, atol=0)


def test_symbols_far_from_the_prior_have_finite_bits_and_gradients() -> None:
    prior = prior_with([0.0] * 3, [-4.0] * 3, [0.0] * 3)
    symbols = torch.tensor([[[[-1e4, 0.0, 1e4]]]], requires_grad=True)

    bits = prior.bits(symbols, torch.zeros(1, 1), torch.zeros(1))
    bits.sum().backward()

    assert bits.isfinite().all() and symbols.grad is not None
    assert float(symbols.grad[0, 0, 0, 0]) < -1 and float(symbols.grad[0, 0, 0, 2]) > 1


@torch.no_grad()
def test_loss_is_rate_plus_weighted_error() -> None:
    model = tiny_model(min_distortion_weight=10, max_distortion_weight=1000)
    images = random_images(3, 1, 8, 12)

    output = model(images, quality=torch.tensor([0.0, 0.5, 1.0]))

    weights = torch.tensor([10.0, 100.0, 1000.0])
    errors = (output.reconstruction - images).square().flatten(1).mean(1)
    torch.testing.assert_close(output.mse, errors)
    torch.testing.assert_close(output.loss, (output.rate + weights * errors).mean())
    assert (output.rate > 0).all()


def test_in_training_the_rate_is_that_of_noise_and_the_error_that_of_rounding() -> None:
    model = tiny_model().train()
    images, middle = random_images(2, 1, 8, 8), torch.full((2, 3, 2, 2), 0.5)

    first, second = (model(images, quality=0.5, noise=noise) for noise in (middle, 0 * middle))

    assert torch.equal(first.reconstruction, second.reconstruction)
    assert not torch.equal(first.rate, second.rate)
    first.mse.sum().backward()  # through the rounding
    assert float(model.encoder.convs[0].weight.grad.abs().sum()) > 0
    expected = tiny_model()(images, quality=0.5).latents
    torch.testing.assert_close(first.latents, expected)


# ------------------------------------------------------------------------------------------------- images and symbols


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 8), (13, 6)])
def test_images_of_any_size_come_back_in_their_size(num_channels: int, size: tuple[int, int]) -> None:
    model = tiny_model(num_channels=num_channels)
    images = random_images(2, num_channels, *size)

    symbols = model.encode_symbols(images, quality=1.0)
    decoded = model.decode_symbols(symbols, quality=1.0, size=size)

    assert symbols.dtype == torch.int32 and symbols.shape == (2, 3, -(-size[0] // 4), -(-size[1] // 4))
    assert decoded.shape == images.shape
    with torch.no_grad():
        torch.testing.assert_close(decoded, model(images, quality=1.0).reconstruction)


def test_images_are_continued_by_their_last_pixels() -> None:
    model = tiny_model()
    images = random_images(1, 1, 5, 7)
    continued = torch.cat([images, images[:, :, :, -1:]], dim=3)
    continued = torch.cat([continued, *[continued[:, :, -1:]] * 3], dim=2)

    assert torch.equal(model.encode_symbols(images), model.encode_symbols(continued))


def test_a_gray_model_takes_color() -> None:
    model, gray = tiny_model(), random_images(2, 1, 6, 6)

    assert torch.equal(model.encode_symbols(gray.expand(-1, 3, -1, -1)), model.encode_symbols(gray))


def test_symbols_are_limited() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.encoder.to_latents.bias.fill_(1e9)

    assert int(model.encode_symbols(random_images(1, 1, 4, 4)).max()) == LARGEST_SYMBOL


def test_a_quality_is_rounded_to_one_with_tables() -> None:
    model = tiny_model()

    assert [model.quality_level(quality) for quality in (0, 0.2, 0.3, 0.7, 0.8, 1)] == [0, 0, 1, 1, 2, 2]
    images = random_images(1, 1, 8, 8)
    assert torch.equal(model.encode_symbols(images, 0.3), model.encode_symbols(images, 0.5))


@torch.no_grad()
def test_a_new_model_has_finer_steps_at_a_higher_quality() -> None:
    """A uniform step has an error in proportion to its square: from a weight to one a hundred times as large, it is
    ten times as small."""
    model = tiny_model(min_distortion_weight=10, max_distortion_weight=1000)

    low, high = (model.log_gains(torch.tensor([quality])).exp() for quality in (0.0, 1.0))

    torch.testing.assert_close(high / low, torch.full((1, 3), 10.0))
    assert torch.equal(model.log_steps.weight, -model.log_gains.weight)


# ------------------------------------------------------------------------------------------------------------- tables


def test_code_lengths_are_those_of_the_tables() -> None:
    model = tiny_model()
    model.freeze_tables([random_images(4, 1, 16, 16)])
    symbols = torch.zeros(1, 3, 1, 1, dtype=torch.int32)
    symbols[0, 1] = -2
    tables = model.tables[2, :, 0].double() / 2**PRECISION

    found = model.code_lengths(symbols, quality=1.0)

    expected = -(tables[0, 3].log2() + tables[1, 1].log2() + tables[2, 3].log2())
    torch.testing.assert_close(found, expected[None])
    # Beyond 3: the last entry; the numbers from 0 on are ±4, ±5, ... in Exp-Golomb code of one bit more per doubling.
    symbols[0, 1] = 6
    expected = -(tables[0, 3].log2() + tables[1, 7].log2() + tables[2, 3].log2()) + 4
    torch.testing.assert_close(model.code_lengths(symbols, quality=1.0), expected[None])


def test_tables_make_images_like_the_counted_ones_short() -> None:
    model = tiny_model()
    images = random_images(16, 1, 16, 16) ** 4
    with pytest.raises(ValueError, match="Finish its training"):
        model.code_lengths(model.encode_symbols(images))

    model.freeze_tables(images.split(8))

    flat = PRECISION - 0 * model.tables[1, 0, 0].double() - (PRECISION - 3)  # 8 entries of equal frequency
    symbols = model.encode_symbols(images)
    assert model.has_tables
    assert float(model.code_lengths(symbols).sum()) < float(flat[0]) * symbols.numel()


def test_tables_travel_with_the_weights(tmp_path: Path) -> None:
    model = tiny_model()
    model.freeze_tables([random_images(4, 1, 16, 16)])
    model.save_pretrained(tmp_path)

    loaded = CodecModel.from_pretrained(tmp_path)

    assert loaded.tables.dtype == torch.int32 and torch.equal(loaded.tables, model.tables)
    assert torch.equal(CodecModel.from_pretrained(tmp_path, dtype=torch.bfloat16).tables, model.tables)


# ------------------------------------------------------------------------------------------------------------- errors


def test_all_problems_of_a_config_are_listed() -> None:
    with pytest.raises(StrictDataclassError) as error:
        CodecConfig(hidden_channels=[], latent_dim=0, num_levels=1, max_symbol=0, min_distortion_weight=5000)

    for name in ("hidden_channels", "latent_dim", "num_levels", "max_symbol", "min_distortion_weight"):
        assert f"{name} must be" in str(error.value)


@pytest.mark.parametrize("images", [torch.zeros(1, 8, 8), torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 0, 8)])
def test_images_that_do_not_fit_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(batch, 1, height, width\)"):
        tiny_model().encode_symbols(images)


def test_symbols_sizes_and_qualities_that_do_not_fit_are_refused() -> None:
    model, symbols = tiny_model(), torch.zeros(1, 3, 2, 2, dtype=torch.int32)

    with pytest.raises(ValueError, match=r"symbols must be integers of shape \(batch, 3, h, w\)"):
        model.decode_symbols(symbols.float())
    for size in ((4, 8), (9, 8)):
        with pytest.raises(ValueError, match=r"size must be at most \(8, 8\)"):
            model.decode_symbols(symbols, size=size)
    for quality in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="quality must be from 0 to 1"):
            model.decode_symbols(symbols, quality)
