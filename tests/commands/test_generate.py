"""`hfgen generate`: text from any start, of any length, whole or while it is written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hfgen import GPTModel, build_character_tokenizer
from hfgen.cli import main
from hfgen.commands.text.stream import TextPrinter

from .tiny_models import save_gpt, save_vae, without_bytes


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    return save_gpt(tmp_path / "gpt")


def test_the_seed_decides_the_text(gpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(gpt), "--prompt", "The ", "--max_new_tokens", "9", "--temperature", "1", "--seed"]
    written = []
    for seed in ("1", "1", "2"):
        assert main([*words, seed]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] != written[2] and written[0].startswith("The ")


def test_text_has_any_length_from_any_start(gpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(gpt), "--max_new_tokens", "60"]
    for prompt in ("", "The quick brown fox jumps over the lazy dog. "):
        random = [*words, "--prompt", prompt, "--temperature", "1"]
        assert main(random) == 0
        written = capsys.readouterr().out
        assert written.startswith(prompt) and len(written) > len(prompt) + 30
        assert main([*random, "--stream"]) == 0
        assert capsys.readouterr().out == written
    greedy = set()
    for seed in ("1", "2"):
        assert main([*words, "--temperature", "0", "--seed", seed]) == 0
        greedy.add(capsys.readouterr().out)
    assert len(greedy) == 1
    assert main([*words, "--temperature", "-1"]) == 1
    refusal = "hfgen generate: temperature must be at least 0 and finite, got -1.0. 1 samples as trained.\n"
    assert capsys.readouterr().err.endswith(refusal)


def test_json_has_a_line_per_text_and_the_prompt_may_come_from_standard_input(
    gpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("The end"))
    words = [
        "generate",
        str(gpt),
        "--prompt",
        "-",
        "--max_new_tokens",
        "20",
        "--temperature",
        "1",
        "-n",
        "2",
        "--json",
    ]
    assert main(words) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["prompt"] == "The end" and first["text"].startswith("The end") and first["text"] != second["text"]
    assert main([*words, "--stream"]) == 1
    assert "--stream must be left out with --json" in capsys.readouterr().err


def test_a_model_of_transformers_writes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    tokenizer = build_character_tokenizer("The end.\n")
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    without_bytes(model, tokenizer)
    model.save_pretrained(tmp_path)
    words = ["generate", str(tmp_path), "--prompt", "The", "--max_new_tokens", "6", "--temperature", "0"]
    assert main(words) == 0
    written = capsys.readouterr().out
    assert written.startswith("The") and len(written) > 4
    assert main([*words, "--stream"]) == 0
    assert capsys.readouterr().out == written


def test_models_that_write_no_text_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(save_gpt(tmp_path / "base", GPTModel))]) == 1
    assert "must hold a GPTForCausalLM, got a GPTModel. Save the model with" in capsys.readouterr().err
    assert main(["generate", str(save_vae(tmp_path / "vae"))]) == 1
    assert "got 'hfgen_vae'. Use hfgen sample" in capsys.readouterr().err


def test_a_character_of_several_tokens_is_printed_when_it_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = build_character_tokenizer("ab\n")  # other characters are bytes
    printer = TextPrinter(tokenizer, "a")
    printer.put(torch.tensor([[0, 1]]))  # what generate passes on first
    printed = []
    for token in tokenizer("é\nb\u20ac", add_special_tokens=False)["input_ids"]:
        printer.put(torch.tensor([token]))
        printed.append(capsys.readouterr().out)
    assert printed == ["a", "é", "\n", "b", "", "", "€"]
