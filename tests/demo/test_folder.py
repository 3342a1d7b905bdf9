"""What explorer.json says about a model. Whole explorers are tested in test_page.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfgen import CodecConfig, CodecModel, VAEModel
from hfgen.demo import folder as explorer_folder
from hfgen.demo import write_explorer
from hfgen.demo.folder import describe_drawing, write_page
from hfgen.demo.runtime import NETWORK_ORIGIN, Runtime
from hfgen.demo.stored_pictures import StoredPictures, draw_pictures, find_images, read_pictures
from hfgen.demo.strangeness import describe_strangeness
from hfgen.demo.text import describe_text

from . import tiny_models


def stored(pixel_values: torch.Tensor) -> StoredPictures:
    return StoredPictures(pixel_values, np.zeros((len(pixel_values), 2)), None, [], "pictures")


def test_a_drawing_is_to_be_like_the_pictures() -> None:
    """White rectangles, 4 high and 2 wide, at one place of black pictures of 10 x 10 pixels."""
    pixels = torch.zeros(3, 1, 10, 10)
    pixels[:, :, 3:7, 6:8] = 1

    drawing = describe_drawing(stored(pixels), ["0", "1"])
    assert drawing == {"title": "Draw a digit", "background": 0, "extent": 0.4, "middle": pytest.approx([0.7, 0.5])}
    assert describe_drawing(stored(1 - pixels), ["cat"])["background"] == 1
    # A photograph has no background: what one draws is taken as it is.
    photographs = torch.rand(3, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    assert describe_drawing(stored(photographs), ["cat"])["extent"] is None


def test_the_sheet_holds_the_pictures_one_after_the_other() -> None:
    pixels = torch.arange(40)[:, None, None, None].expand(40, 1, 2, 3) / 255
    sheet = np.asarray(stored(pixels).sheet())
    assert sheet.shape == (4, 96) and (sheet[1, 95], sheet[2, 0], sheet[3, 23]) == (31, 32, 39)


@torch.no_grad()
def test_stored_pictures_are_where_the_encoder_sees_them(tmp_path: Path) -> None:
    model = VAEModel.from_pretrained(tiny_models.save_vae(tmp_path / "vae")).eval()
    pictures = read_pictures(model, tmp_path / "vae", ["digits"], None)

    assert pictures.words == "1,000 pictures of digits" and pictures.class_names == [str(i) for i in range(10)]
    assert pictures.labels is not None and set(pictures.labels) == set(range(10))
    assert np.allclose(pictures.latents, model.encode(pictures.pixel_values).latent_dist.mean, atol=1e-5)

    drawn = draw_pictures(model, [])
    assert not drawn.are_real and drawn.latents.shape == (500, 3)

    decoded = model.decode(torch.from_numpy(pictures.latents)).sample
    found = describe_strangeness(model, pictures.pixel_values, decoded, are_real=True)
    errors = (decoded - pictures.pixel_values).square().mean(dim=(1, 2, 3))
    assert len(found["quantiles"]) == 101 and found["quantiles"][50] == pytest.approx(float(errors.median()), rel=1e-3)


def test_the_images_of_a_run_are_found_if_they_are_here(tmp_path: Path) -> None:
    def results(dataset: str, split: str = "test") -> Any:
        (tmp_path / "results.json").write_text(json.dumps({"dataset": dataset, "split": split}))
        return find_images(tmp_path)

    assert find_images(tmp_path) is None
    assert results("digits") == (["digits"], "test")
    assert results(str(tmp_path)) == ([str(tmp_path)], "test")
    assert results(str(tmp_path), "10 % of train") == ([str(tmp_path)], None)  # held out by the run itself
    assert results("ylecun/mnist") is None  # would be a download


def test_a_page_without_a_local_runtime_may_ask_for_it(tmp_path: Path) -> None:
    about = {"files": [], "footer": "A page."}
    write_page(tmp_path, about, Runtime(f"{NETWORK_ORIGIN}/x.mjs", f"{NETWORK_ORIGIN}/x.wasm", 1, is_local=False))

    index = (tmp_path / "index.html").read_text()
    assert f"script-src 'self' {NETWORK_ORIGIN} 'wasm-unsafe-eval'; style-src 'self'" in index
    assert "needs the network" in json.loads((tmp_path / "explorer.json").read_text())["footer"]


def test_what_a_page_has_to_know_of_a_gpt(tmp_path: Path) -> None:
    source = tiny_models.save_gpt(tmp_path / "gpt")
    names = [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    inputs = [{"name": name, "shape": ["batch", 2, "past", 8]} for name in names]
    about = describe_text(source, {"graphs": {"model": {"inputs": inputs}}}, None)

    assert (about["kind"], about["context"], about["layers"], about["heads"], about["head_dim"]) == (
        "characters", 24, 2, 2, 8,
    )  # fmt: skip
    special = {about["vocabulary"][index] for index in about["special"]}
    assert special == {"<|endoftext|>", "<|pad|>"}
    assert about["vocabulary"].index("<|pad|>") in about["suppressed"] and about["start"] in about["special"]

    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["model"]["type"] = "Unigram"
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"must be one that hfgen builds .* got 'Unigram'"):
        describe_text(source, {"graphs": {"model": {"inputs": inputs}}}, None)


def test_what_cannot_be_shown_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer_folder, "export_folder", lambda *_: pytest.fail("exported"))
    codec = CodecModel(CodecConfig(hidden_channels=[4, 4], latent_dim=2))
    codec.save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match=r"MODEL must be one of autoencoder, vae, .*, got codec"):
        write_explorer(tmp_path / "codec", tmp_path / "page")

    gan = tiny_models.save_gan(tmp_path / "gan")
    with pytest.raises(ValueError, match="--images must be left out"):
        write_explorer(gan, tmp_path / "page", images=["digits"])
    with pytest.raises(ValueError, match="--output must be a new or empty folder"):
        write_explorer(gan, tmp_path)


def test_nothing_is_left_of_an_explorer_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        (Path(arguments[1]) / "config.json").write_text("{}")
        raise ValueError("no")

    monkeypatch.setattr(explorer_folder, "export_folder", fail)
    gan = tiny_models.save_gan(tmp_path / "gan")
    with pytest.raises(ValueError, match="no"):
        write_explorer(gan, tmp_path / "new" / "page")
    assert list((tmp_path / "new").iterdir()) == []
