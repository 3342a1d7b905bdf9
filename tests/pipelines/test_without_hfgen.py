"""Published repositories of every family where hfgen cannot be imported: what the Hub's snippets, its cards and the
issue promise, with the real clients against the test Hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel

from hfgen.cards import write_card
from hfgen.hub import select_files
from hfgen.image_processing import to_pixel_values
from hfgen.model_folder import LoadError, check_folder
from hfgen.pipelines.repository_files import NAMES

from ..hub.fixture import running_hub
from ..runs import FAMILIES, ROOT, copy_run
from .hub_snippets import snippets


DRAWS = ("vae", "ladder_vae", "gan")
RECONSTRUCTS = ("autoencoder", "vae", "ladder_vae", "codec")
PUSH = """
import sys
from hfgen.cli import main
for folder in sys.argv[1:]:
    assert main(["push", folder, "alice/" + folder]) == 0
"""
# Runs the Hub's snippets as they stand, and then the pipelines.
USE = """
import json, sys
sys.modules["hfgen"] = None
arguments = json.loads(sys.argv[1])
answers = {}
for family, codes in arguments["snippets"].items():
    for code in codes:
        names = {}
        exec(code, names)
        if "pipe" in names:
            given = "The " if family == "gpt" else arguments["image"]
            answers[f"{family} snippet"] = names["pipe"](given)
            assert type(names["pipe"].model).__module__.startswith("transformers_modules.")
        else:
            assert type(names["model"]).__module__.startswith("transformers_modules.")
            name = "tokenizer" if family == "gpt" else "processor"
            assert hasattr(names[name], "decode" if family == "gpt" else "size"), names
import numpy as np
import torch
from transformers import pipeline

def remote(task, family):
    return pipeline(task, model="alice/" + family, trust_remote_code=True, device="cpu")

for family in arguments["draws"]:
    drawn = remote("unconditional-image-generation", family)(4, seed=0, output_type="pt")
    answers[f"{family} drawn"] = drawn.tolist()
for family in arguments["reconstructs"]:
    answers[f"{family} image"] = remote("image-to-image", family)(arguments["image"], output_type="pt").tolist()
answers["anomaly"] = remote("image-anomaly-detection", "autoencoder")(arguments["image"])["score"]
answers["only task"] = type(pipeline(model="alice/gan", trust_remote_code=True)).__name__

from diffusers import DiffusionPipeline
for family in arguments["draws"]:
    sampling = DiffusionPipeline.from_pretrained("alice/" + family, trust_remote_code=True)
    images = sampling(batch_size=16).images
    assert len(images) == 16 and images[0].size == (8, 8)
    drawn = sampling(4, torch.Generator().manual_seed(0), output_type="pt").images
    answers[f"{family} diffusers"] = drawn.tolist()
    each = sampling(2, [torch.Generator().manual_seed(i) for i in range(2)], output_type="pt").images
    alone = sampling(1, torch.Generator().manual_seed(1), output_type="pt").images
    assert torch.allclose(each[1], alone[0], atol=1e-6)
    sampling.save_pretrained("saved-" + family)
    again = DiffusionPipeline.from_pretrained("./saved-" + family, trust_remote_code=True)
    assert torch.equal(again(4, torch.Generator().manual_seed(0), output_type="pt").images, drawn)
for key in ("autoencoder", "codec"):
    found = answers[f"{key} snippet"]
    answers[f"{key} snippet"] = np.asarray(found).tolist()
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each family, with its card for alice/FAMILY."""
    home = tmp_path_factory.mktemp("runs")
    for family in FAMILIES:
        write_card(copy_run(family, home / family), f"alice/{family}")
    return home


@pytest.fixture(scope="module")
def photo(runs: Path) -> Path:
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(levels).save(runs / "photo.png")
    return runs / "photo.png"


@pytest.fixture(scope="module")
def answers(runs: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        hub.run([sys.executable, "-c", PUSH, *FAMILIES], cwd=runs, timeout=300)
        code = {}
        for family in FAMILIES:
            config = json.loads((runs / family / "config.json").read_text())
            metadata = ModelCard.load(runs / family / "README.md").data.to_dict()
            files = select_files(runs / family)[0]
            code[family] = [
                *snippets(f"alice/{family}", metadata, config, files),
                snippets(f"alice/{family}", metadata, config, files, ', dtype="auto", device_map="auto"')[-1],
            ]
        arguments = {"snippets": code, "image": str(photo), "draws": DRAWS, "reconstructs": RECONSTRUCTS}
        home = tmp_path_factory.mktemp("elsewhere")
        env = hub.client_env(OMP_NUM_THREADS="1")
        said = hub.run([sys.executable, "-W", "ignore", "-c", USE, json.dumps(arguments)], cwd=home, env=env,
                       timeout=400).stdout  # fmt: skip
        for family in DRAWS:  # what a pipeline of diffusers saves is the same repository, with its weights once
            saved = home / f"saved-{family}"
            check_folder(saved)
            assert len(list(saved.rglob("*.safetensors"))) == 1
            for name in NAMES:
                assert (saved / name).read_text() == (runs / family / name).read_text()
    return json.loads(said.rpartition("ANSWERS")[2])


def test_snippets_of_tasks_with_a_pipeline_give_what_they_promise(
    answers: dict[str, Any], runs: Path, photo: Path
) -> None:
    autoencoder = AutoModel.from_pretrained(runs / "autoencoder")
    pixels = to_pixel_values(photo, 3) / 255
    expected = autoencoder.encode(pixels).detach()
    torch.testing.assert_close(torch.tensor(answers["autoencoder snippet"]), expected)
    assert np.shape(answers["codec snippet"]) == (8, 8)
    assert answers["gpt snippet"][0]["generated_text"].startswith("The ")
    assert {key.split()[0] for key in answers if key.endswith("snippet")} == {"autoencoder", "codec", "gpt"}


@pytest.mark.parametrize("family", DRAWS)
def test_both_pipelines_draw_what_the_model_draws(family: str, answers: dict[str, Any], runs: Path) -> None:
    model = AutoModel.from_pretrained(runs / family)
    expected = model.sample(4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.tensor(answers[f"{family} drawn"]), expected)
    torch.testing.assert_close(torch.tensor(answers[f"{family} diffusers"]), expected)
    assert answers["only task"] == "ImageGenerationPipeline"


@pytest.mark.parametrize("family", RECONSTRUCTS)
def test_the_pipeline_reconstructs_what_the_model_does(
    family: str, answers: dict[str, Any], runs: Path, photo: Path
) -> None:
    model, pixels = AutoModel.from_pretrained(runs / family), to_pixel_values(photo, 1) / 255
    with torch.no_grad():
        if family == "codec":
            expected = model.decode_symbols(model.encode_symbols(pixels), size=(8, 8))
        elif family == "autoencoder":
            expected = model.decode(model.encode(pixels))
            assert answers["anomaly"] == pytest.approx(model.predict_anomaly(pixels).scores.item(), rel=1e-4)
        else:
            expected = model.decode(model.encode(pixels).latent_dist.mode()).sample
    torch.testing.assert_close(torch.tensor(answers[f"{family} image"]), expected[0], atol=1e-5, rtol=1e-5)


def test_only_models_that_draw_have_files_for_diffusers_and_all_of_them(runs: Path) -> None:
    for family in FAMILIES:
        assert {name for name in NAMES if (runs / family / name).is_file()} == (
            set(NAMES) if family in DRAWS else set()
        )
        assert ("DiffusionPipeline.from_pretrained(repo" in (runs / family / "README.md").read_text()) == (
            family in DRAWS
        )


@pytest.mark.parametrize("name", ["pipeline.py", "model/model_at_root.py", "image_pipelines.py", "image_inputs.py"])
def test_a_folder_that_lacks_code_of_its_pipelines_is_refused(name: str, tmp_path: Path) -> None:
    folder = copy_run("vae", tmp_path / "vae")
    check_folder(folder)
    (folder / name).unlink()
    with pytest.raises(LoadError, match=f"{Path(name).name} is missing"):
        check_folder(folder)
