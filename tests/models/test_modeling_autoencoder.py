"""The Auto-Encoder: what a transposed convolution does, worked out on paper, and what the model promises."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfgen.models.modeling_autoencoder import AutoencoderConfig, AutoencoderModel, distort, erase_rectangles


LATENT_TYPES = pytest.mark.parametrize("latent_type", ["vector", "spatial"])


def tiny_model(**fields: object) -> AutoencoderModel:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3}
    return AutoencoderModel(AutoencoderConfig(**{**sizes, **fields})).eval()


def random_images(model: AutoencoderModel, batch: int = 2, seed: int = 1) -> Tensor:
    shape = (batch, model.config.num_channels, *model.config.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class AlwaysBlack(nn.Module):
    """A decoder whose images are 0 everywhere (inside the network, one standard deviation below the mean)."""

    def forward(self, latents: Tensor) -> Tensor:
        return torch.full((len(latents), 1, 2, 2), -1.0)


def with_constant_decoder(**fields: object) -> AutoencoderModel:
    model = tiny_model(image_size=2, hidden_channels=[2], **fields)
    model.decoder = AlwaysBlack()
    return model


# ------------------------------------------------------------------------------------------- transposed convolution


def test_transposed_convolution_by_hand() -> None:
    """Every input number lays down the kernel, multiplied by itself, 2 to the right or below its neighbor's.

    1 2      1 2 3
    3 4  by  4 5 6  with stride 2. Worked out: the size is (2 - 1) 2 - 2 * 0 + 3 + 0 = 5, and where two or four
             7 8 9  copies of the kernel overlap, in row and column 2, they add up. In the centre:

    1 * 9 + 2 * 7 + 3 * 3 + 4 * 1 = 36
    """
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    kernel = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    on_paper = torch.tensor(
        [
            [1, 2, 3 + 2, 4, 6],
            [4, 5, 6 + 8, 10, 12],
            [7 + 3, 8 + 6, 9 + 14 + 9 + 4, 16 + 8, 18 + 12],
            [12, 15, 18 + 16, 20, 24],
            [21, 24, 27 + 28, 32, 36],
        ]
    ).float()

    layer = nn.ConvTranspose2d(1, 1, kernel_size=3, stride=2, bias=False)
    layer.weight.data[0, 0] = kernel
    laid_down = torch.zeros(5, 5)
    for row in range(2):
        for column in range(2):
            laid_down[2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += image[row, column] * kernel

    assert torch.equal(layer(image[None, None])[0, 0], on_paper)
    assert torch.equal(laid_down, on_paper)


@pytest.mark.parametrize("kernel, stride, padding, output_padding", [(3, 2, 0, 0), (4, 2, 1, 0), (3, 2, 1, 1)])
def test_size_formula_of_the_transposed_convolution(
    kernel: int, stride: int, padding: int, output_padding: int
) -> None:
    layer = nn.ConvTranspose2d(1, 1, kernel, stride, padding, output_padding)
    for n in (2, 5, 7):
        expected = (n - 1) * stride - 2 * padding + kernel + output_padding
        assert layer(torch.zeros(1, 1, n, n)).shape[-1] == expected


def test_transposed_convolution_is_the_transpose_of_the_convolution() -> None:
    """<conv(x), y> = <x, conv_transposed(y)> with the same weight: hence the name."""
    weight = torch.randn(6, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.randn(1, 6, 4, 4, dtype=torch.float64)

    forth = (F.conv2d(x, weight, stride=2, padding=1) * y).sum()
    back = (x * F.conv_transpose2d(y, weight, stride=2, padding=1)).sum()

    torch.testing.assert_close(forth, back)


def test_each_transposed_convolution_of_the_decoder_doubles_what_pooling_halved() -> None:
    model = tiny_model(image_size=[16, 24], downsampling_type="max_pool")
    heights: dict[str, list[int]] = {"encoder": [], "decoder": []}
    model.encoder.pool.register_forward_hook(lambda layer, args, out: heights["encoder"].append(args[0].shape[2]))
    for conv in model.decoder.convs:
        conv.register_forward_hook(lambda layer, args, out: heights["decoder"].append(out.shape[2]))

    model(random_images(model))

    assert heights == {"encoder": [16, 8], "decoder": [8, 16]}


@pytest.mark.parametrize("num_residual_blocks", [0, 2])
def test_strided_convolutions_halve_what_transposed_ones_double(num_residual_blocks: int) -> None:
    model = tiny_model(image_size=[16, 24], num_residual_blocks=num_residual_blocks)
    heights: dict[str, list[int]] = {"encoder": [], "decoder": []}
    for part, seen in heights.items():
        for conv in getattr(model, part).convs:
            conv.register_forward_hook(lambda layer, args, out, seen=seen: seen.append((args[0].shape, out.shape)))

    model(random_images(model))

    halved = [(tuple(before[2:]), tuple(after[2:])) for before, after in heights["encoder"]]
    assert halved == [((16, 24), (8, 12)), ((8, 12), (4, 6))]
    assert [(tuple(after[2:]), tuple(before[2:])) for before, after in heights["decoder"]] == halved[::-1]


def test_residual_blocks_start_as_the_identity_and_are_on_the_way() -> None:
    deep = tiny_model(num_residual_blocks=2)
    plain = tiny_model(num_residual_blocks=0)
    plain.load_state_dict({name: value for name, value in deep.state_dict().items() if ".blocks." not in name})
    images = random_images(deep)

    assert torch.equal(deep(images).reconstruction, plain(images).reconstruction)
    for part in (deep.encoder, deep.decoder):
        nn.init.constant_(part.blocks[0][1].conv2.bias, 0.1)
        assert not torch.equal(deep(images).reconstruction, plain(images).reconstruction)
        nn.init.zeros_(part.blocks[0][1].conv2.bias)


# ------------------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    "fields, latents",
    [
        ({"image_size": 28}, (3,)),
        ({"image_size": 28, "latent_type": "spatial"}, (3, 7, 7)),
        ({"image_size": [8, 20], "num_channels": 3}, (3,)),
        ({"image_size": [8, 20], "num_channels": 3, "latent_type": "spatial"}, (3, 2, 5)),
        ({"image_size": 16, "hidden_channels": [4, 4, 4, 4], "latent_type": "spatial"}, (3, 1, 1)),
    ],
)
def test_images_of_any_divisible_size_are_encoded_and_decoded(
    fields: dict[str, object], latents: tuple[int, ...]
) -> None:
    model = tiny_model(**fields)
    images = random_images(model)

    output = model(images)

    assert output.latents.shape == (2, *latents) == (2, *model.config.latent_shape)
    assert output.reconstruction.shape == images.shape
    assert output.reconstruction.min() >= 0 and output.reconstruction.max() <= 1


@LATENT_TYPES
def test_no_image_or_one_is_a_batch(latent_type: str) -> None:
    model = tiny_model(latent_type=latent_type)
    images = random_images(model, batch=3)

    one = model(images[1:2])

    torch.testing.assert_close(one.reconstruction, model(images).reconstruction[1:2])
    assert model.anomaly_score(images[:0]).shape == (0,)


# ------------------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize(
    "measure, on_paper", [("mse", (0 + 0.25**2 + 0.5**2 + 1) / 4), ("l1", (0 + 0.25 + 0.5 + 1) / 4)]
)
def test_reconstruction_loss_by_hand(measure: str, on_paper: float) -> None:
    model = with_constant_decoder(reconstruction_loss=measure)
    images = torch.tensor([[0.0, 0.25], [0.5, 1.0]]).view(1, 1, 2, 2)

    output = model(images)

    assert torch.equal(output.reconstruction, torch.zeros(1, 1, 2, 2))
    assert output.loss.item() == pytest.approx(on_paper)


def test_sparsity_adds_the_mean_absolute_latent() -> None:
    plain, sparse = tiny_model(), tiny_model(sparsity_weight=0.25)
    images = random_images(plain)

    output = sparse(images)

    assert output.loss.item() == pytest.approx(plain(images).loss.item() + 0.25 * output.latents.abs().mean().item())


def test_labels_are_ignored() -> None:
    model = tiny_model()
    images = random_images(model)

    assert torch.equal(model(pixel_values=images, labels=torch.tensor([1, 7])).loss, model(images).loss)


def test_noise_is_added_to_the_input_while_training_and_the_clean_image_is_the_target() -> None:
    model = tiny_model(noise_std=0.5).train()
    images = random_images(model)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))

    output = model(images, noise=noise)

    torch.testing.assert_close(output.latents, model.encode(images + 0.5 * noise))
    torch.testing.assert_close(output.loss, (output.reconstruction - images).square().mean())
    assert torch.equal(model(images, noise=noise).loss, output.loss)
    assert not torch.equal(model(images).loss, model(images).loss)  # drawn again each time if it is not given


def test_noise_is_left_out_in_evaluation_and_when_its_std_is_zero() -> None:
    noise = torch.full((2, 1, 8, 8), 100.0)
    evaluated, noiseless = tiny_model(noise_std=0.5), tiny_model().train()
    images = random_images(evaluated)

    assert torch.equal(evaluated(images, noise=noise).latents, evaluated.encode(images))
    assert torch.equal(noiseless(images, noise=noise).latents, noiseless.encode(images))


def test_erased_rectangles_by_hand() -> None:
    """Of images of 8 x 16: sides of a quarter to half, a place from the upper left to the lower right corner."""
    erasing = torch.tensor([[0.2, 0, 0, 0, 0], [0.2, 1, 1, 1, 1], [0.2, 0, 1, 0.5, 0], [0.7, 1, 1, 1, 1]])
    expected = torch.ones(4, 3, 8, 16)
    expected[0, :, :2, :4] = 0
    expected[1, :, 4:, 8:] = 0
    expected[2, :, 3:5, :8] = 0  # the last one has no rectangle, as 0.7 is not below 0.5

    assert torch.equal(erase_rectangles(torch.ones(4, 3, 8, 16), erasing, 0.5), expected)


def test_moves_by_hand() -> None:
    """Nothing, a pixel to the left, two pixels down, and a mirror image. Beyond its edges, an image repeats its
    border."""
    images = random_images(tiny_model(), batch=1).expand(4, -1, -1, -1)
    moves = torch.zeros(4, 2, 3)
    moves[1, 0, 2], moves[2, 1, 2], moves[3, 0, 0] = 1 / 4, -2 / 4, -2  # in units of 4 pixels, half the side
    left, down = torch.arange(8).add(1).clamp(max=7), torch.arange(8).sub(2).clamp(min=0)
    expected = torch.stack([images[0], images[0][:, :, left], images[0][:, down], images[0].flip(2)])

    torch.testing.assert_close(distort(images, moves, 1.0), expected)
    torch.testing.assert_close(distort(images, 4 * moves, 0.25), expected)


@pytest.mark.parametrize("kind", ["moved", "hidden"])
def test_the_input_is_changed_while_training_and_the_image_as_it_was_is_the_target(kind: str) -> None:
    images = random_images(tiny_model())
    noise, erasing = torch.ones_like(images), torch.full((2, 5), 0.5)
    moves = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    if kind == "moved":
        model, numbers = tiny_model(affine_std=0.2, noise_std=0.5), {"moves": moves}
        changed = distort(images, moves, 0.2)
    else:
        model, numbers = tiny_model(erase_prob=1.0, noise_std=0.5), {"erasing": erasing}
        changed = erase_rectangles(images, erasing, 1.0)
    assert not torch.equal(changed, images)

    output = model.train()(images, noise=noise, **numbers)

    torch.testing.assert_close(output.latents, model.encode(changed + 0.5 * noise))
    torch.testing.assert_close(output.loss, (output.reconstruction - images).square().mean())
    assert not torch.equal(model(images, noise=noise).loss, output.loss)  # drawn again if it is not given
    assert torch.equal(model.eval()(images, **numbers).latents, model.encode(images))


def test_a_pixel_drawn_too_bright_gets_a_gradient_while_training() -> None:
    """Clamped images would have none, and a pixel once outside of [0, 1] would stay there."""
    model = tiny_model().train()
    nn.init.constant_(model.decoder.convs[-1].bias, 10.0)

    model(random_images(model)).loss.backward()

    assert model.decoder.convs[-1].bias.grad > 0


# ---------------------------------------------------------------------------------------------------- what it is for


@LATENT_TYPES
def test_reconstruction_is_the_decoded_encoding(latent_type: str) -> None:
    model = tiny_model(latent_type=latent_type)
    images = random_images(model)

    output = model(images)

    assert torch.equal(model.decode(model.encode(images)), output.reconstruction)
    assert torch.equal(model.encode(images), output.latents)


def test_anomaly_score_is_the_squared_error_of_each_image() -> None:
    model = tiny_model()
    images = random_images(model, batch=3)
    drawn = model(images).reconstruction

    by_hand = torch.stack([(image - copy).square().mean() for image, copy in zip(images, drawn)])

    torch.testing.assert_close(model.anomaly_score(images), by_hand)
    torch.testing.assert_close(model.train().anomaly_score(images), by_hand)  # in training mode too


def stripes(batch: int) -> Tensor:
    """Vertical stripes, each image shifted by one more pixel."""
    columns = torch.arange(8) + torch.arange(batch)[:, None]
    return (columns % 4 < 2).float().view(batch, 1, 1, 8).expand(-1, -1, 8, -1)


def fit(model: AutoencoderModel, images: Tensor, steps: int, learning_rate: float = 5e-3) -> float:
    optimizer = torch.optim.Adam(model.train().parameters(), lr=learning_rate)
    for _ in range(steps):
        loss = model(images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()(images).loss.item()


def test_unfamiliar_images_get_higher_anomaly_scores() -> None:
    model = tiny_model(hidden_channels=[8, 8])
    fit(model, stripes(4), steps=300)
    noise = random_images(model, batch=8)

    assert model.anomaly_score(stripes(4)).max() < model.anomaly_score(noise).min()


@LATENT_TYPES
def test_four_images_are_memorized(latent_type: str) -> None:
    model = tiny_model(latent_type=latent_type, hidden_channels=[16, 16], hidden_size=64, latent_dim=8)
    images = random_images(model, batch=4)

    assert fit(model, images, steps=300) < 0.1 * images.var()


@LATENT_TYPES
def test_every_parameter_learns(latent_type: str) -> None:
    model = tiny_model(latent_type=latent_type).train()
    for layer in model.modules():  # at 0, a block's last layer hides the one before it
        if hasattr(layer, "conv2"):
            nn.init.normal_(layer.conv2.weight)

    model(random_images(model, batch=8)).loss.backward()

    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# ------------------------------------------------------------------------------------------------------------- start


def disk(batch: int, channels: int = 1) -> Tensor:
    """A bright disk on a dark ground, in each image a little brighter."""
    rows = torch.arange(8) - 3.5
    image = ((rows[:, None] ** 2 + rows**2) < 9).float()
    brightness = torch.linspace(0.4, 0.8, batch).view(-1, 1, 1, 1)
    return (brightness * image).expand(-1, channels, -1, -1)


def test_an_untrained_model_draws_the_mean_image() -> None:
    """The last layer's gain of 0.1 leaves an error of a tenth of the spread."""
    model = tiny_model(hidden_channels=[16, 16], hidden_size=64)
    images = disk(50)
    mean = images.mean(0)
    spread = (images - mean).square().mean().sqrt()

    model.start_at(images.split(20))

    torch.testing.assert_close(model.pixel_mean, mean)
    torch.testing.assert_close(model.pixel_std, spread)
    assert (model(images).reconstruction - mean).square().mean().sqrt() < 0.3 * spread
    standardized = (images - model.pixel_mean) / model.pixel_std
    assert standardized.mean().abs() < 1e-5 and standardized.square().mean().item() == pytest.approx(1, rel=1e-4)


def test_spatial_latents_know_a_mean_color_and_no_mean_image() -> None:
    model = tiny_model(latent_type="spatial", num_channels=3)
    images = disk(50, channels=3) * torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)

    model.start_at([images])

    torch.testing.assert_close(model.pixel_mean, images.mean((0, 2, 3)).view(3, 1, 1))
    expected = (images - model.pixel_mean).square().mean().sqrt()
    torch.testing.assert_close(model.pixel_std, expected)


def test_the_start_does_not_depend_on_how_images_are_divided() -> None:
    whole, parts = tiny_model(), tiny_model()
    images = random_images(whole, batch=30)

    whole.start_at([images])
    parts.start_at(images.flip(0).split(7))

    assert torch.equal(whole.pixel_mean, parts.pixel_mean) and torch.equal(whole.pixel_std, parts.pixel_std)


def test_images_that_are_all_alike_are_drawn_exactly_from_the_start() -> None:
    model = tiny_model()
    images = torch.full((5, 1, 8, 8), 0.25)

    model.start_at([images])

    assert (model(images).reconstruction - images).abs().max() < 1 / 255


def test_a_start_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="batches must have at least one image, got none"):
        tiny_model().start_at([])
    with pytest.raises(ValueError, match=r"\(batch, 1, 8, 8\), got"):
        tiny_model().start_at([torch.zeros(2, 1, 4, 4)])


def test_the_start_is_saved(tmp_path: Path) -> None:
    model = tiny_model()
    model.start_at([disk(10)])
    model.save_pretrained(tmp_path)

    loaded = AutoencoderModel.from_pretrained(tmp_path)

    assert torch.equal(loaded.pixel_mean, model.pixel_mean) and torch.equal(loaded.pixel_std, model.pixel_std)


def test_the_first_steps_are_spent_on_the_images_and_not_on_their_mean() -> None:
    """Ten steps from a start at the data beat three times as many from mid-gray."""
    images = disk(64)
    errors = {}
    for steps, starts in ((10, True), (30, False)):
        model = tiny_model(hidden_channels=[8, 8])
        if starts:
            model.start_at([images])
        errors[starts] = fit(model, images, steps)

    assert errors[True] < errors[False]


# ------------------------------------------------------------------------------------------------------------ errors


def test_latents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents must have the shape \(batch, 3\), got \(2, 4\)"):
        tiny_model().decode(torch.zeros(2, 4))


def test_all_problems_of_a_config_are_reported_at_once() -> None:
    with pytest.raises(StrictDataclassError) as error:
        AutoencoderConfig(
            image_size=[30, 28],
            num_channels=0,
            hidden_size=0,
            latent_dim=-1,
            latent_type="round",
            downsampling_type="average",
            num_residual_blocks=-1,
            reconstruction_loss="huber",
            noise_std=-0.5,
            erase_prob=1.5,
            affine_std=-1,
            sparsity_weight=math.inf,
            hidden_act="relo",
        )

    assert isinstance(error.value.__cause__, ValueError)
    for problem in (
        "image_size [30, 28] must be divisible by 4",
        "num_channels must be at least 1, got 0",
        "hidden_size must be at least 1, got 0",
        "latent_dim must be at least 1, got -1",
        "latent_type must be one of vector, spatial, got 'round'",
        "downsampling_type must be one of strided, max_pool, got 'average'",
        "num_residual_blocks must be at least 0, got -1",
        "reconstruction_loss must be one of mse, l1, got 'huber'",
        "noise_std must be a finite number of at least 0, got -0.5",
        "erase_prob must be from 0 to 1, got 1.5",
        "affine_std must be a finite number of at least 0, got -1",
        "sparsity_weight must be a finite number of at least 0, got inf",
        "hidden_act must be the name of an activation in transformers, got 'relo'",
    ):
        assert problem in str(error.value)


@pytest.mark.parametrize("fields", [{"hidden_channels": []}, {"hidden_channels": [8, 0]}, {"image_size": [28]}])
def test_lists_of_sizes_are_checked(fields: dict[str, object]) -> None:
    with pytest.raises(StrictDataclassError, match=next(iter(fields))):
        AutoencoderConfig(**fields)


# --------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@LATENT_TYPES
def test_works_in_any_precision_on_images_of_any(latent_type: str, dtype: torch.dtype) -> None:
    model = tiny_model(latent_type=latent_type, sparsity_weight=0.1)
    images = random_images(model)
    expected, score = model(images), model.anomaly_score(images)

    for pixels in (images, images.to(dtype)):
        output = model.to(dtype)(pixels)
        output.loss.backward()

        assert output.latents.dtype == dtype
        assert output.loss.dtype == output.reconstruction.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(output.loss.float(), expected.loss, rtol=0.02, atol=0)
        torch.testing.assert_close(model.anomaly_score(pixels).float(), score, rtol=0.05, atol=0)


def test_trains_under_autocast() -> None:
    model = tiny_model(sparsity_weight=0.1).train()
    images = random_images(model)

    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    output.loss.backward()

    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, model(images).loss, rtol=0.02, atol=0)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------- saving and loading


def forget(folder: Path, *names: str) -> dict[str, Tensor]:
    """Takes weights out of a saved model and returns the remaining ones."""
    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name not in names}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return kept


@LATENT_TYPES
def test_a_saved_model_gives_the_same_outputs(tmp_path: Path, latent_type: str) -> None:
    model = tiny_model(latent_type=latent_type, image_size=[8, 12], num_channels=3)
    images = random_images(model)
    model.save_pretrained(tmp_path)

    loaded = AutoencoderModel.from_pretrained(tmp_path)

    assert not loaded.training
    assert torch.equal(loaded(images).reconstruction, model(images).reconstruction)
    assert torch.equal(loaded(images).latents, model(images).latents)
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}


def test_weights_that_are_missing_are_initialized_and_the_others_kept(tmp_path: Path) -> None:
    tiny_model(hidden_channels=[32, 64]).save_pretrained(tmp_path)
    kept = forget(tmp_path, "encoder.convs.1.weight", "decoder.convs.0.weight", "decoder.convs.0.bias", "pixel_mean")

    torch.manual_seed(1)
    loaded = AutoencoderModel.from_pretrained(tmp_path)

    assert loaded.encoder.convs[1].weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 4 * 4)), rel=0.05)
    assert loaded.decoder.convs[0].weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 4 * 4 / 4)), rel=0.05)
    assert not loaded.decoder.convs[0].bias.any()
    assert torch.equal(loaded.pixel_mean, torch.full((1, 8, 8), 0.5))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in kept.items())


def test_a_fresh_model_keeps_the_size_of_activations() -> None:
    """With the rectifier, which the gain is made for."""
    sizes = {"image_size": 32, "hidden_channels": [64, 64, 64], "hidden_size": 512, "latent_dim": 256}
    model = tiny_model(**sizes, hidden_act="relu")
    stds = {}
    layers = {"encoder.convs.2": model.encoder.convs[2], "decoder.convs.1": model.decoder.convs[1]}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, args, out, name=name: stds.update({name: out.std().item()}))

    model(random_images(model, batch=16))

    assert all(0.4 < std < 2.5 for std in stds.values()), stds


OLD = {
    "image_size": [8, 8], "num_channels": 1, "hidden_channels": [2, 3], "hidden_size": 5, "latent_dim": 2,
    "latent_type": "vector", "reconstruction_loss": "mse", "noise_std": 0.0, "sparsity_weight": 0.0,
    "hidden_act": "gelu", "model_type": "hfgen_autoencoder", "architectures": ["AutoencoderModel"],
}  # fmt: skip


def test_a_checkpoint_from_before_residual_blocks_is_the_network_that_it_was(tmp_path: Path) -> None:
    """Convolutions of 3 x 3 with max pooling, pixels in [-1, 1] inside, and no word of either in its config.json."""
    torch.manual_seed(0)
    conv1, conv2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
    linears = [nn.Linear(12, 5), nn.Linear(5, 2), nn.Linear(2, 5), nn.Linear(5, 12)]
    up1, up2 = nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1), nn.ConvTranspose2d(2, 1, 4, stride=2, padding=1)
    names = ["encoder.convs.0", "encoder.convs.1", "encoder.hidden", "encoder.to_latents", "decoder.from_latents",
             "decoder.hidden", "decoder.convs.0", "decoder.convs.1"]  # fmt: skip
    weights = {}
    for name, layer in zip(names, [conv1, conv2, *linears, up1, up2], strict=True):
        weights |= {f"{name}.{kind}": value.detach() for kind, value in layer.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    images = torch.rand(3, 1, 8, 8)
    x = 2 * images - 1
    for conv in (conv1, conv2):
        x = F.max_pool2d(F.gelu(conv(x)), 2)
    latents = linears[1](F.gelu(linears[0](x.flatten(1))))
    x = linears[3](F.gelu(linears[2](latents))).unflatten(1, (3, 2, 2))
    drawn = (up2(F.gelu(up1(F.gelu(x)))) + 1) / 2

    model, report = AutoencoderModel.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(report.values()), report
    output = model(images)
    torch.testing.assert_close(output.latents, latents)
    torch.testing.assert_close(output.reconstruction, drawn.clamp(0, 1))
    model.save_pretrained(tmp_path / "again")
    again = AutoencoderModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again(images).reconstruction, output.reconstruction)
    assert again.config.downsampling_type == "max_pool" and again.config.num_residual_blocks == 0


def test_another_size_can_be_asked_for_when_loading(tmp_path: Path) -> None:
    """Spatial latents have no weight that knows the size of the image."""
    tiny_model(latent_type="spatial").save_pretrained(tmp_path)

    loaded: PreTrainedModel = AutoencoderModel.from_pretrained(tmp_path, image_size=12)

    assert loaded.config.image_size == [12, 12]
    assert loaded(torch.rand(1, 1, 12, 12)).latents.shape == (1, 3, 3, 3)


def test_config_json_holds_every_field_that_is_not_a_default(tmp_path: Path) -> None:
    tiny_model(noise_std=0.5).save_pretrained(tmp_path)

    config = json.loads((tmp_path / "config.json").read_text())

    assert config["model_type"] == "hfgen_autoencoder"
    assert config["image_size"] == [8, 8] and config["hidden_channels"] == [4, 6] and config["noise_std"] == 0.5
