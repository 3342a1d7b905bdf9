"""A latent diffusion model of digits, from the training of the VAE to images in an interpreter without hfgen."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from hfgen import VAEConfig, VAEModel
from tests.runs import shared_run
from tests.test_auto_classes import BLOCK_HFGEN, run_without_hfgen
from training.tools.latent_diffusion import build_unet, main


VAE = shlex.split("--latent_type spatial --latent_dim 2 --beta 0.01 --max_train_steps 100 --max_train_samples 1000")
SAMPLE_WITHOUT_HFGEN = f"""{BLOCK_HFGEN}
import torch
from diffusers import DiffusionPipeline

repo, save_to = json.loads(sys.argv[1])
pipeline = DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
draw = lambda seed: pipeline(2, torch.Generator().manual_seed(seed), 4, output_type="pt").images
assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
pipeline.save_pretrained(save_to)
report = {{"images": draw(0).tolist(), "vae": type(pipeline.vae).__module__, "pipeline": type(pipeline).__module__}}
print("REPORT" + json.dumps(report))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for a few seconds."""
    folder = tmp_path_factory.mktemp("latent diffusion") / "ddim-digits"
    main(["--vae", str(shared_run("vae", *VAE).folder), "--output_dir", str(folder), "--seconds", "600",
          "--max_steps", "60", "--width", "32", "--batch_size", "64", "--conditional"])  # fmt: skip
    return folder


@pytest.mark.slow
def test_without_hfgen_a_repository_draws_the_same_images_and_saves_itself_again(
    repository: Path, tmp_path: Path
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(repository, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(2, torch.Generator().manual_seed(0), 4, output_type="pt").images

    again = tmp_path / "again"
    first = run_without_hfgen(tmp_path / "first", SAMPLE_WITHOUT_HFGEN, (str(repository), str(again)))
    second = run_without_hfgen(tmp_path / "second", SAMPLE_WITHOUT_HFGEN, (str(again), str(tmp_path / "third")))

    assert first["vae"].startswith("diffusers_modules.") and first["pipeline"].startswith("diffusers_modules.")
    assert first == second
    torch.testing.assert_close(torch.tensor(first["images"]), expected)
    for name in ("model_index.json", "pipeline.py", "vae/modeling_vae.py", "vae/config.json"):
        assert (again / name).read_text() == (repository / name).read_text(), name


def test_the_unet_has_learned_and_the_card_says_how(repository: Path) -> None:
    results = json.loads((repository / "results.json").read_text())
    _, metadata, card = (repository / "README.md").read_text().split("---\n", 2)

    assert results["steps"] == 60 and results["dataset"] == "digits"
    assert results["loss"] < 0.9  # latents are standardized, so predicting zero costs 1
    weights = load_file(repository / "unet" / "diffusion_pytorch_model.safetensors")
    assert results["unet_parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert f"squared error of the last tenth of the steps was {results['loss']:.3f}" in card
    assert yaml.safe_load(metadata)["library_name"] == "diffusers" and "10 classes" in card
    with Image.open(repository / "samples.png") as samples:
        assert min(samples.size) > 100


def test_the_vae_is_published_as_it_was_trained(repository: Path) -> None:
    trained, published = shared_run("vae", *VAE).folder, repository / "vae"

    weights, weights_again = (load_file(folder / "model.safetensors") for folder in (trained, published))
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    config = json.loads((published / "config.json").read_text())
    assert config["scaling_factor"] == VAEModel.from_pretrained(trained).config.scaling_factor != 1


@pytest.mark.parametrize(("image_size", "levels"), [(28, 1), (32, 2), (64, 3), ([32, 40], 2), ([28, 32], 1), (128, 3)])
def test_a_unet_fits_latents_of_any_size(image_size: int | list[int], levels: int) -> None:
    config = VAEConfig(image_size=image_size, hidden_channels=[4, 4], latent_dim=2, latent_type="spatial")
    unet: UNet2DModel = build_unet(config, 32, None)
    latents = torch.randn(1, *config.latent_shape)

    assert len(unet.config.block_out_channels) == levels
    assert unet(latents, 0).sample.shape == latents.shape


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--width", "20"], "--width must be a multiple of 32, got 20"),
        (["--seconds", "0"], "--seconds must be a finite number above 0, got 0.0"),
        (["--output_dir", str(Path(__file__).parent)], "--output_dir must be empty or hold a pipeline"),
        ([], "--vae must have spatial latents, got vector ones"),
    ],
)
def test_what_cannot_be_used_is_one_paragraph(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--vae", str(shared_run("vae").folder), "--output_dir", str(tmp_path / "out"), *flags])

    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
