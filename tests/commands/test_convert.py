"""`hfgen convert`: a GPT in another layout, or as a GGUF file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from hfgen.cli import main
from hfgen.convert.gguf_file import read_tensors
from hfgen.model_folder import read_json
from tests.convert.saved_gpt import save_gpt


def test_convert_writes_a_folder_or_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_gpt(tmp_path / "ours")
    ours, native, again, file = (str(tmp_path / name) for name in ("ours", "native", "again", "gpt.gguf"))

    assert main(["convert", ours, native]) == 0
    assert f"Wrote {native}: ApertusForCausalLM, {model.num_parameters():,} parameters." in capsys.readouterr().out
    assert main(["convert", native, again, "--to", "hfgen"]) == 0
    assert read_json(tmp_path / "again" / "config.json") == read_json(tmp_path / "ours" / "config.json")
    assert {path.name for path in tmp_path.glob("again/*.py")} == {path.name for path in tmp_path.glob("ours/*.py")}
    capsys.readouterr()
    assert main(["convert", native, file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"output": file, "architecture": "apertus"}
    assert "token_embd.weight" in read_tensors(file)


def test_convert_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_gpt(tmp_path / "ours", use_bias=True)

    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "x.gguf"), "--to", "native"]) == 1
    assert "--to must be left out if OUT is a .gguf file" in capsys.readouterr().err
    for output in ("x.gguf", "x"):
        assert main(["convert", str(tmp_path / "ours"), str(tmp_path / output)]) == 1
        assert "hfgen convert: No class of transformers can express this model." in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"ours"}


@pytest.mark.parametrize("prompt", ["To be", ""])
def test_every_layout_writes_the_same_text(
    prompt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    save_gpt(tmp_path / "ours")
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "native")]) == 0
    capsys.readouterr()

    logging.getLogger("transformers").addHandler(caplog.handler)  # it passes nothing on
    texts = []
    for name in ("ours", "native"):
        words = ["generate", str(tmp_path / name), "--prompt", prompt, "--max_new_tokens", "20", "--temperature", "0"]
        assert main(words) == 0
        texts.append(capsys.readouterr().out)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert texts[0] == texts[1] and texts[0].startswith(prompt) and len(texts[0]) > len(prompt) + 1
    assert "max_length" not in caplog.text
