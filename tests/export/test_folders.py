"""Whole exports: what is in the folder, what runs it, and what leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

import hfgen
from hfgen import GPTConfig, GPTForCausalLM, VAEConfig, VAEModel, build_image_processor
from hfgen.export import ExportError, export_folder, folders, onnx_files
from hfgen.export.checks import check, compare
from hfgen.export.graphs import Graph, Input, Output, draw_normal
from hfgen.export.image_graphs import image_graphs, load_image_model
from hfgen.export.onnx_files import Session, write_graph
from hfgen.export.text_models import load_text_model
from tests.commands.tiny_models import save_gpt, save_vae


NAMES = ("cat", "dog", "eel")


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a conditional VAE whose prior is learned."""
    folder = tmp_path_factory.mktemp("models") / "vae"
    torch.manual_seed(0)
    model = VAEModel(VAEConfig(image_size=8, hidden_channels=[4], hidden_size=4, latent_dim=2, num_prior_couplings=2,
                               id2label=dict(enumerate(NAMES))))  # fmt: skip
    for coupling in model.prior.couplings:
        torch.nn.init.normal_(coupling.to_shift_and_scale.weight, std=0.3)
    model.save_pretrained(folder)
    build_image_processor(1, (8, 8)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported_vae(vae: Path) -> Path:
    export_folder(vae, vae.with_name("vae-onnx"), name="me/vae")
    return vae.with_name("vae-onnx")


@pytest.fixture(scope="session")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt(tmp_path_factory.mktemp("models") / "gpt")


@pytest.fixture(scope="session")
def exported_gpt(gpt: Path) -> Path:
    export_folder(gpt, gpt.with_name("gpt-onnx"))
    return gpt.with_name("gpt-onnx")


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "onnx" / "export.json").read_text(encoding="utf-8"))


def snippet(folder: Path, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def run_snippet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the Python code in README.md prints."""
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet(folder, "python"), {})
    return printed.getvalue().removesuffix("\n")


def test_vae_is_drawn_by_the_graphs_that_the_manifest_names(vae: Path, exported_vae: Path) -> None:
    model, manifest = load_image_model(vae), read_manifest(exported_vae)
    sampling = manifest["sampling"]
    values = 0.7 * torch.empty(7, *sampling["noise_shape"]).normal_(generator=torch.Generator().manual_seed(3))
    labels = torch.arange(7) % manifest["num_classes"]

    for name in sampling["graphs"]:
        (values,) = Session(exported_vae / manifest["graphs"][name]["files"]["fp32"]["path"])([values, labels])
    drawn = model.sample(7, temperature=0.7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(values, drawn, rtol=0, atol=1e-5)
    assert sampling["graphs"] == ["prior_model", "decoder_model"]


def test_vae_encodes_to_latents_and_to_the_noise_that_gives_them(vae: Path, exported_vae: Path) -> None:
    model, labels = load_image_model(vae), torch.tensor([2, 0, 1])
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    latents, noise = Session(exported_vae / "onnx" / "encoder_model.onnx")([images, labels])
    torch.testing.assert_close(latents, model.encode(images, labels).latent_dist.mean)
    (again,) = Session(exported_vae / "onnx" / "prior_model.onnx")([noise, labels])
    torch.testing.assert_close(again, latents, rtol=0, atol=1e-5)


def test_manifest_says_what_a_page_needs(exported_vae: Path) -> None:
    manifest = read_manifest(exported_vae)
    assert {name: manifest[name] for name in (
        "format", "family", "base_model", "image_size", "num_channels", "pixel_range", "latent_shape", "class_names"
    )} == {
        "format": 1, "family": "vae", "base_model": "me/vae", "image_size": [8, 8], "num_channels": 1,
        "pixel_range": [0, 1], "latent_shape": [2], "class_names": list(NAMES),
    }  # fmt: skip
    decoder = manifest["graphs"]["decoder_model"]
    assert decoder["inputs"][0] == {"name": "latents", "dtype": "float32", "shape": ["batch_size", 2]}
    for graph in manifest["graphs"].values():
        assert set(graph["files"]) == {"fp32", "int8"}
        for file in graph["files"].values():
            assert (exported_vae / file["path"]).stat().st_size == file["bytes"]
        assert max(graph["files"]["fp32"]["max_difference"].values()) < 1e-4


def test_difference_of_8_bits_is_measured(vae: Path, exported_vae: Path) -> None:
    graph = next(graph for graph in image_graphs(load_image_model(vae)) if graph.name == "encoder_model")
    file = read_manifest(exported_vae)["graphs"]["encoder_model"]["files"]["int8"]
    measured = compare(exported_vae / file["path"], graph)["latents"]
    assert file["max_difference"]["latents"] == pytest.approx(measured.largest, rel=0.01)
    assert 0 < file["mean_difference"]["latents"] < file["max_difference"]["latents"] < 0.1


def test_folder_loads_and_holds_nothing_of_this_machine(exported_vae: Path) -> None:
    config = AutoConfig.from_pretrained(exported_vae)
    assert config.latent_dim == 2 and not hasattr(config, "auto_map")
    assert (exported_vae / "preprocessor_config.json").is_file()
    place = str(Path(hfgen.__file__).parent).encode()
    assert [path.name for path in exported_vae.rglob("*") if path.is_file() and place in path.read_bytes()] == []
    assert {path.suffix for path in (exported_vae / "onnx").iterdir()} == {".onnx", ".json"}


def test_code_in_the_card_of_images_runs(exported_vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_snippet(exported_vae, monkeypatch).startswith("(16, 1, 8, 8) ")
    assert "onnxruntime-web" in snippet(exported_vae, "js")
    assert "library_name: onnx\n" in (exported_vae / "README.md").read_text(encoding="utf-8")


def test_code_in_the_card_of_a_gpt_writes_what_pytorch_writes(
    gpt: Path, exported_gpt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt, trust_remote_code=False)
    model = GPTForCausalLM.from_pretrained(gpt).eval()
    tokens = tokenizer("The ", return_tensors="pt").input_ids
    for _ in range(8):  # all that fit, each from the whole text
        tokens = torch.cat([tokens, model(input_ids=tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert run_snippet(exported_gpt, monkeypatch) == tokenizer.decode(tokens[0])


def test_gpt_is_laid_out_for_transformers_js(exported_gpt: Path) -> None:
    manifest, config = read_manifest(exported_gpt), AutoConfig.from_pretrained(exported_gpt)
    assert (config.model_type, config.architectures) == ("apertus", ["ApertusForCausalLM"])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (exported_gpt / name).is_file()
    graph = manifest["graphs"]["model"]
    shapes = {entry["name"]: entry["shape"] for entry in (*graph["inputs"], *graph["outputs"])}
    assert shapes["past_key_values.0.key"] == ["batch_size", 2, "past_sequence_length", 8]
    assert shapes["present.0.value"] == ["batch_size", 2, "total_sequence_length", 8]
    assert manifest["transformers_js"] and graph["tokens_compared"] == 12
    assert "library_name: transformers.js\n" in (exported_gpt / "README.md").read_text(encoding="utf-8")


def test_gpt_without_a_native_layout_runs_and_says_why(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, use_bias=True,
                       max_position_embeddings=16)  # fmt: skip
    GPTForCausalLM(config).save_pretrained(tmp_path / "gpt")

    manifest = export_folder(tmp_path / "gpt", tmp_path / "out", ["fp32"])
    assert manifest["model_type"] == "hfgen_gpt" and not manifest["transformers_js"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "No class of transformers can express this model." in card and "library_name: onnx\n" in card
    content = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in content and content["transformers.js_config"] == {"dtype": "fp32"}
    assert not (tmp_path / "out" / "onnx" / "model_quantized.onnx").exists()


def test_native_gpt_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    save_gpt(tmp_path / "gpt")
    (tmp_path / "gpt" / "tokenizer.json").unlink()
    assert "no tokenizer.json" in load_text_model(tmp_path / "gpt").details["transformers_js_obstacle"]


def test_size_that_code_fixes_is_an_error(tmp_path: Path) -> None:
    def fix_while_traced(x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(2 if torch.compiler.is_exporting() else len(x), 1)

    entry, output = Input("x", ("batch_size", 3), draw_normal), Output("y", ("batch_size", 3))
    sizes = {"traced": {"batch_size": 2}, "checked": ({"batch_size": 5},)}
    graph = Graph("fixed", "", fix_while_traced, (entry,), (output,), torch.nn.Identity(), **sizes)  # type: ignore
    write_graph(graph, tmp_path / "fixed.onnx")  # torch only warns
    with pytest.raises(ExportError, match=r"fixed\.onnx must run with x \(5, 3\), got: .*may fix a size"):
        compare(tmp_path / "fixed.onnx", graph)


def test_file_that_differs_from_pytorch_is_an_error(vae: Path, exported_vae: Path) -> None:
    path = exported_vae / "onnx" / "decoder_model.onnx"
    graph = next(graph for graph in image_graphs(load_image_model(vae)) if graph.name == "decoder_model")
    check(path, compare(path, graph))
    wrong = replace(graph, compute=lambda *inputs: graph.compute(*inputs) + 3e-4)
    with pytest.raises(ExportError, match=r"images of decoder_model\.onnx must agree with PyTorch to 1\.0e-04, got"):
        check(path, compare(path, wrong))


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vae(tmp_path / "vae")

    def write_another(graph: Graph, path: Path) -> int:
        path.write_bytes(b"no graph")
        return 20

    monkeypatch.setattr(folders, "write_graph", write_another)
    with pytest.raises(ExportError, match=r"onnxruntime cannot load encoder_model\.onnx"):
        export_folder(tmp_path / "vae", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]


def test_wrong_arguments_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="OUT must be a new or empty folder"):
        export_folder(tmp_path, tmp_path / "full")
    for dtypes, words in ((["fp32", "fp16"], "fp16"), ([], "none")):
        with pytest.raises(ValueError, match=f"dtypes must be some of fp32, int8, got .*{words}"):
            export_folder(tmp_path, tmp_path / "out", dtypes)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ExportError, match=r"must be one of hfgen_autoencoder.*, got 'bert'"):
        export_folder(tmp_path, tmp_path / "out")
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs onnx, onnxscript, onnxruntime.*pip install 'hfgen\[onnx\]'"):
        export_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
