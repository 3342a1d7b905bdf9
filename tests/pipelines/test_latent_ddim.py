"""The pipeline against DDIM computed by hand, and what it asks of its VAE and its UNet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

from hfgen import VAEConfig, VAEModel
from hfgen.pipelines.latent_ddim import LatentDDIMPipeline


def tiny_vae(**fields: object) -> VAEModel:
    torch.manual_seed(0)
    sizes = {"image_size": [8, 16], "hidden_channels": [4, 6], "latent_dim": 3, "latent_type": "spatial"}
    model = VAEModel(VAEConfig(**{**sizes, "scaling_factor": 0.5, "shift_factor": 0.25, **fields})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def tiny_unet(classes: int | None = None, channels: int = 3) -> UNet2DModel:
    torch.manual_seed(1)
    return UNet2DModel(
        sample_size=(2, 4), in_channels=channels, out_channels=channels, block_out_channels=[32],
        down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], layers_per_block=1, norm_num_groups=8,
        num_class_embeds=classes,
    ).eval()  # fmt: skip


def tiny_pipeline(classes: int | None = None, **fields: object) -> LatentDDIMPipeline:
    pipeline = LatentDDIMPipeline(tiny_vae(**fields), tiny_unet(classes), DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipeline: LatentDDIMPipeline, count: int = 2, seed: int = 0, steps: int = 3, **how: object) -> Tensor:
    return pipeline(count, seeded(seed), steps, output_type="pt", **how).images


def test_a_unet_that_finds_no_noise_only_rescales_the_latents() -> None:
    """Each step of DDIM then multiplies by sqrt(alpha_next / alpha), and the last alpha is 1: together, they divide by
    the square root of the first alpha (Song et al. 2020, eq. 12 with an epsilon and a sigma of 0)."""
    pipeline = tiny_pipeline()
    for parameter in pipeline.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    noise = torch.randn(2, 3, 2, 4, generator=seeded())

    images = draw(pipeline, steps=5)

    first = pipeline.scheduler.timesteps[0]
    latents = noise / pipeline.scheduler.alphas_cumprod[first].sqrt()
    expected = pipeline.vae.decode(latents / 0.5 + 0.25).sample
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.01
    torch.testing.assert_close(images, expected)


def test_the_generator_determines_the_images_with_and_without_noise_in_the_steps() -> None:
    pipeline = tiny_pipeline()

    for eta in (0.0, 1.0):
        assert torch.equal(draw(pipeline, seed=3, eta=eta), draw(pipeline, seed=3, eta=eta))
        assert not torch.equal(draw(pipeline, seed=3, eta=eta), draw(pipeline, seed=4, eta=eta))
    assert not torch.equal(draw(pipeline, eta=0.0), draw(pipeline, eta=1.0))
    one_for_each = pipeline(2, [seeded(5), seeded(6)], 3, output_type="pt").images
    torch.testing.assert_close(one_for_each[1:], draw(pipeline, 1, seed=6))


@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_come_in_the_types_of_diffusers(num_channels: int) -> None:
    pipeline = tiny_pipeline(num_channels=num_channels)
    expected = draw(pipeline)

    arrays = pipeline(2, seeded(), 3, output_type="np").images
    pictures = pipeline(2, seeded(), 3).images
    (tuple_of_images,) = pipeline(2, seeded(), 3, output_type="pt", return_dict=False)

    assert torch.equal(tuple_of_images, expected)
    np.testing.assert_array_equal(arrays, expected.permute(0, 2, 3, 1).numpy())
    mode = "L" if num_channels == 1 else "RGB"
    assert [(picture.mode, picture.size) for picture in pictures] == [(mode, (16, 8))] * 2
    levels = np.stack([np.asarray(picture) for picture in pictures]).reshape(arrays.shape)
    np.testing.assert_array_equal(levels, (arrays * 255).round())


def test_classes_reach_the_unet_and_a_conditional_vae() -> None:
    for pipeline in (tiny_pipeline(3), tiny_pipeline(3, num_labels=3)):
        each, spread = draw(pipeline, 4, class_labels=[0, 1, 2, 0]), draw(pipeline, 4)
        assert torch.equal(each, spread)  # evenly over the classes by default
        same = draw(pipeline, 4, class_labels=1)
        torch.testing.assert_close(same[1], each[1])
        assert not torch.allclose(same[0], each[0])
    plain, conditional = tiny_vae(num_labels=3), tiny_unet(3)
    latents = torch.randn(2, 3, 2, 4, generator=seeded())
    assert not torch.equal(*(plain.decode(latents, labels=label).sample for label in (0, 1)))
    assert not torch.equal(*(conditional(latents, 5, torch.tensor([label] * 2)).sample for label in (0, 1)))


def test_classes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="class_labels must be None, got 1"):
        tiny_pipeline()(class_labels=1)
    for wrong in (3, -1, [0, 1, 2]):
        with pytest.raises(ValueError, match="one for each of 2 images, from 0 to 2, got"):
            tiny_pipeline(3)(2, class_labels=wrong)


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="vae must have spatial latents, got vectors of 3"):
        LatentDDIMPipeline(tiny_vae(latent_type="vector"), tiny_unet(), DDIMScheduler())
    with pytest.raises(ValueError, match="unet must have 3 input and output channels"):
        LatentDDIMPipeline(tiny_vae(), tiny_unet(channels=4), DDIMScheduler())


def test_a_repository_names_files_that_it_holds(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)

    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "LatentDDIMPipeline"] and index["vae"] == ["modeling_vae", "VAEModel"]
    assert index["unet"] == ["diffusers", "UNet2DModel"] and index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert (tmp_path / "vae" / "modeling_vae.py").is_file()
    assert "class LatentDDIMPipeline" in (tmp_path / "pipeline.py").read_text()
