"""README's table of what works where: each of its marks stands for a test that is here."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    "transformers", "its pipelines", "diffusers", "ONNX", "browser", "scikit-learn", "peft", "Trainer", "GGUF",
)  # fmt: skip
LOADS = "test_auto_classes.py::test_without_hfgen_a_folder_loads_by_its_own_code_and_computes_the_same"
RECONSTRUCTS = "pipelines/test_without_hfgen.py::test_the_pipeline_reconstructs_what_the_model_does"
DRAWS = "pipelines/test_without_hfgen.py::test_both_pipelines_draw_what_the_model_draws"
SNIPPETS = "pipelines/test_without_hfgen.py::test_snippets_of_tasks_with_a_pipeline_give_what_they_promise"
FOLLOWS = "demo/test_page.py::test_others_with_latents_follow_too"
TRAINER = "models/test_image_models.py::test_the_trainer_of_transformers_trains_on_batches_with_labels"
TESTS = {
    "Auto-Encoder": {
        "transformers": LOADS,
        "its pipelines": RECONSTRUCTS,
        "ONNX": "export/test_image_graphs.py::test_anomaly_model_scores_as_the_fitted_detector_does",
        "browser": FOLLOWS,
        "scikit-learn": "test_autoencoder_transformer.py::test_it_is_an_estimator",
        "Trainer": TRAINER,
    },
    "VAE": {
        "transformers": LOADS,
        "its pipelines": DRAWS,
        "diffusers": "test_auto_classes.py::test_without_hfgen_diffusers_loads_a_vae_alone_and_in_a_pipeline",
        "ONNX": "export/test_folders.py::test_vae_is_drawn_by_the_graphs_that_the_manifest_names",
        "browser": "demo/test_page.py::test_a_vae_follows_what_one_does",
        "Trainer": TRAINER,
    },
    "Ladder VAE": {
        "transformers": LOADS,
        "its pipelines": DRAWS,
        "diffusers": "test_auto_classes.py::test_without_hfgen_diffusers_loads_a_vae_alone_and_in_a_pipeline",
        "ONNX": "export/test_image_graphs.py::test_ladder_vae_draws_what_sample_draws",
        "browser": FOLLOWS,
        "Trainer": TRAINER,
    },
    "codec": {
        "transformers": LOADS,
        "its pipelines": RECONSTRUCTS,
        "ONNX": "export/test_image_graphs.py::test_codec_has_the_symbols_and_images_of_its_files",
    },
    "GAN": {
        "transformers": LOADS,
        "its pipelines": DRAWS,
        "diffusers": DRAWS,
        "ONNX": "export/test_image_graphs.py::test_gan_draws_what_sample_draws",
        "browser": "demo/test_page.py::test_a_gan_shows_what_the_address_says",
    },
    "GPT": {
        "transformers": LOADS,
        "its pipelines": SNIPPETS,
        "ONNX": "export/test_folders.py::test_code_in_the_card_of_a_gpt_writes_what_pytorch_writes",
        "browser": "demo/test_page.py::test_a_gpt_writes_as_pytorch_does",
        "peft": "ecosystem/test_finetuning.py::test_lora_trains_saves_loads_and_merges",
        "Trainer": "ecosystem/test_finetuning.py::test_trainer_lowers_the_loss_and_saves_what_loads",
        "GGUF": "convert/test_gguf_file.py::test_tensors_have_the_names_and_values_that_llama_cpp_reads",
    },
}


def marks() -> dict[str, set[str]]:
    """Model -> columns with a mark, in README."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("| works in |"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    header, _, *models = rows
    assert tuple(header[1:]) == COLUMNS
    return {name: {column for column, cell in zip(COLUMNS, cells) if cell == "✓"} for name, *cells in models}


def test_every_mark_has_a_test_and_every_test_a_mark() -> None:
    assert marks() == {name: set(tests) for name, tests in TESTS.items()}


@pytest.mark.parametrize("place", sorted({place for tests in TESTS.values() for place in tests.values()}))
def test_the_tests_are_there(place: str) -> None:
    file, name = place.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
