"""The command `hfgen` as far as it needs no Hub; the rest of it is in hub_checks.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from hfgen import GPTModel
from hfgen.cli import main

from .runs import copy_run, trained_runs


@pytest.mark.parametrize("command", ["train", "push", "pull", "card", "check", "sample"])
def test_help_explains_every_argument(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "None" not in text and f"usage: hfgen {command}" in text


@pytest.mark.parametrize(
    "words", [[], ["publish"], ["push", "folder"], ["pull"], ["sample", "x", "--count", "0"], ["train", "x"]]
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
