"""The command `hfgen` as far as it needs no Hub; the rest of it is in hub_checks.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from hfgen import GPTModel, VAEConfig, VAEModel
from hfgen.cli import main

from .runs import copy_run, trained_runs


@pytest.mark.parametrize(
    "command", ["train", "push", "pull", "card", "check", "sample", "embed", "compress", "decompress", "info", "score"]
)
def test_help_explains_every_argument(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "None" not in text and f"usage: hfgen {command}" in text


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["publish"],
        ["push", "folder"],
        ["pull"],
        ["sample", "x", "--count", "0"],
        ["train", "x"],
        ["compress", "x", "y"],
    ],
)
def test_a_wrong_command_line_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "usage: hfgen" in capsys.readouterr().err


def test_card_replaces_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_run("gan", tmp_path / "run")
    (run / "README.md").write_text("old")
    assert main(["card", str(run)]) == 0
    assert (run / "README.md").read_text().startswith("---\n")
    assert main(["card", str(tmp_path)]) == 1
    assert "results.json is missing" in capsys.readouterr().err


def test_check_reports_what_is_wrong_with_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_run("vae", tmp_path / "run")
    assert main(["check", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"hidden_size": 17}))
    assert main(["check", str(run)]) == 1
    assert "hidden.weight" in capsys.readouterr().err


def test_sample_draws_or_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = trained_runs()
    for name in ("vae", "gan"):
        picture = tmp_path / f"{name}.png"
        assert (
            main(["sample", str(runs / name), "--count", "4", "--temperature", "0.7", "--output", str(picture)]) == 0
        )
        assert Image.open(picture).width > 4 * 8
    capsys.readouterr()
    assert main(["sample", str(runs / "gpt"), "--label", "1"]) == 1
    assert "--label must name a class of images" in capsys.readouterr().err
    words = ["sample", str(runs / "gpt"), "--prompt", "The ", "--tokens", "5", "--temperature", "0.5"]
    assert main(words) == 0
    written = capsys.readouterr().out
    assert written.startswith("The ")
    assert main(words) == 0
    assert capsys.readouterr().out == written
    assert main(["sample", str(runs / "autoencoder")]) == 1
    assert "Nothing can be sampled" in capsys.readouterr().err


def test_sample_writes_text_of_any_length_from_any_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The context of this model is 16 tokens."""
    run = copy_run("gpt", tmp_path / "run")
    generation_config = json.loads((run / "generation_config.json").read_text())
    (run / "generation_config.json").write_text(json.dumps(generation_config | {"eos_token_id": None}))
    words = ["sample", str(run), "--tokens", "100"]
    for prompt in ("", "The ", "A long prompt that the context does not hold. "):
        assert main([*words, "--prompt", prompt]) == 0
        written = capsys.readouterr().out
        assert written.startswith(prompt) and len(written) > len(prompt) + 50
    greedy = set()
    for seed in ("1", "2"):
        assert main([*words, "--temperature", "0", "--seed", seed]) == 0
        greedy.add(capsys.readouterr().out)
    assert len(greedy) == 1
    assert main([*words, "--temperature", "-1"]) == 1
    refusal = "hfgen sample: temperature must be at least 0 and finite, got -1.0. 1 samples as trained.\n"
    assert capsys.readouterr().err.endswith(refusal)


def test_sample_needs_a_model_with_its_output_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GPTModel.from_pretrained(trained_runs() / "gpt").save_pretrained(tmp_path)

    assert main(["sample", str(tmp_path)]) == 1
    assert "must hold a GPTForCausalLM, got a GPTModel. Save the model with" in capsys.readouterr().err


def save_conditional_model(folder: Path, names: list[str]) -> None:
    """Draws images of one gray value per class, 0.25, 0.5 and 0.75."""
    labels = {"id2label": dict(enumerate(names))} if names else {}
    model = VAEModel(VAEConfig(image_size=8, hidden_channels=[4], hidden_size=4, likelihood="gaussian", **labels))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        model.decoder.from_latents.weight[0, -3:] = torch.tensor([0.25, 0.5, 0.75])
        model.decoder.hidden.weight[:, 0] = 1
        model.decoder.stages[0][0].weight[0] = 0.25
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    "labels, drawn",
    [
        ([], [0, 1, 2, 0]),
        (["two"], [1, 1, 1, 1]),
        (["2"], [2, 2, 2, 2]),
        (["0"], [0, 0, 0, 0]),
        (["1"], [2, 2, 2, 2]),
        (["two", "0"], [1, 0, 1, 0]),
    ],
)
def test_sample_draws_the_classes_that_are_asked_for(tmp_path: Path, labels: list[str], drawn: list[int]) -> None:
    save_conditional_model(tmp_path, ["one", "two", "1"])
    flags = [word for label in labels for word in ("--label", label)]
    picture = tmp_path / "picture.png"

    assert main(["sample", str(tmp_path), "--count", "4", "--output", str(picture), *flags]) == 0

    image = Image.open(picture)
    middles = [image.getpixel((image.width * (2 * column + 1) // 8, image.height // 2)) for column in range(4)]
    assert middles == [[64, 128, 191][index] for index in drawn]


@pytest.mark.parametrize(
    "names, label, message",
    [
        (["one", "two", "three"], "four", "got 'four'. The classes are 0 (one), 1 (two), 2 (three)."),
        (["one", "two", "three"], "3", "got 3. The classes are 0 (one), 1 (two), 2 (three)."),
        ([], "3", "labels must be None, got list. It is unconditional."),
    ],
)
def test_sample_names_the_classes_that_there_are(
    tmp_path: Path, names: list[str], label: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_conditional_model(tmp_path, names)
    assert main(["sample", str(tmp_path), "--label", label]) == 1
    assert message in capsys.readouterr().err
