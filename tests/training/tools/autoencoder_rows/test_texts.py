"""The row of texts: what is measured, and how it reads."""

from __future__ import annotations

import bz2
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.compression.tiny_gpt import save_tiny_gpt
from training.tools import autoencoder
from training.tools.autoencoder_rows import models, texts
from training.tools.autoencoder_rows.texts import GPT, MODULE, Texts, load_texts, measure, measure_general, table
from training.tools.measuring import rows
from training.tools.measuring.rows import own_column
from training.tools.measuring.runs import AVX2


TEXTS = Texts(b"to be, or not to be: " * 400, b"that is the crime of a bleat\n" * 20)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be run, instead of running it: trainings, and processes that measure."""
    calls: list[Any] = []

    def run_recipe(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return {"seconds": 260.0, "seconds_trained": 240.0}

    def run_task(module: str, task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        calls.append((module, task["model"], Path(task["file"]).read_bytes(), environment))
        return {"size": 20, "seconds_to_compress": 2.0, "seconds_to_decompress": 4.0, "streams": 1, "kept": 4}

    monkeypatch.setattr(rows, "run_recipe", run_recipe)
    monkeypatch.setattr(models, "run_task", run_task)
    monkeypatch.setattr(texts, "load_texts", lambda recipe: TEXTS)
    return calls


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *words: str) -> dict[str, Any]:
    monkeypatch.setattr("sys.argv", ["autoencoder.py", "text", *words, "--figures", str(path)])
    autoencoder.main()
    return json.loads(path.read_text())["rows"]["text"]


def test_the_recipe_is_trained_and_measured_with_the_instructions_of_the_column(
    played: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    run(monkeypatch, path, "--model", str(tmp_path))
    assert played == [(MODULE, str(tmp_path), TEXTS.held_out, {})]
    played.clear()

    lines = run(monkeypatch, path, "--avx2", "--max_train_steps", "5")

    folder = rows.ROOT / "runs-avx2" / "text" / "seed-0" / "gpt-tiny-shakespeare"
    assert played == [
        ("gpt-tiny-shakespeare", folder, ["--max_train_steps", "5"], AVX2),
        (MODULE, str(folder.resolve()), TEXTS.held_out, AVX2),
    ]
    assert [*lines[GPT]] == [own_column(), "AVX2 alone"] == [*lines["xz -9e"]]
    assert lines[GPT]["AVX2 alone"][0]["machine"]["hardware"]
    printed = capsys.readouterr().out
    assert f"| {GPT} | 20 | {160 / 580:.3f} | 1.00 | 290 | 145 |" in printed
    assert "580 characters of tiny Shakespeare that were held out; trained for 240 s" in printed


def test_general_compressors_are_measured_alone_and_after_the_training_text() -> None:
    found = measure_general(TEXTS)
    assert found["bz2 -9"]["size"] == len(bz2.compress(TEXTS.held_out))
    assert found["xz -9e"]["size"] == len(lzma.compress(TEXTS.held_out, preset=9 | lzma.PRESET_EXTREME))
    assert found["xz -9e, after the training text"]["size"] < found["xz -9e"]["size"]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python has zstd from 3.14 on")
def test_zstd_is_the_program_if_there_is_no_package_and_is_never_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program stands for zstd that writes the ninth of what it reads, or nothing for another level than 19."""
    monkeypatch.setattr(texts.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "zstd -19" not in measure_general(TEXTS)
    assert "no zstd here, so it is left out" in capsys.readouterr().out

    program = "import sys; content = sys.stdin.buffer.read()\n"
    program += "sys.stdout.buffer.write(content[: len(content) // 9] if sys.argv[1:] == ['-19', '-c'] else b'')"
    (tmp_path / "zstd").write_text(f"#!{sys.executable}\n{program}\n")
    (tmp_path / "zstd").chmod(0o755)

    assert measure_general(TEXTS)["zstd -19"]["size"] == len(TEXTS.held_out) // 9
    assert capsys.readouterr().out == ""


def test_the_table_compares_with_the_gpt() -> None:
    sizes = {GPT: {"size": 60}, "xz -9e": {"size": 120}, "bz2 -9": {"size": 100, "seconds_to_compress": 0.5}}
    machine = {"hardware": "a processor", "cores": 2}
    figures = {
        name: {own_column(): [{"machine": machine, "measured": {"characters": 200, **found}}]}
        for name, found in sizes.items()
    }
    shown = table("text", figures)
    assert "| xz -9e | 120 | 4.800 | 2.00 |  |  |" in shown
    assert "| bz2 -9 | 100 | 4.000 | 1.67 | 400 |  |" in shown


def test_a_text_is_compressed_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(TEXTS.held_out)
    found = measure({"model": str(save_tiny_gpt(tmp_path / "gpt")), "file": str(tmp_path / "text.txt")})
    assert 0 < found["size"] < 2 * len(TEXTS.held_out)
    assert found["seconds_to_compress"] > 0 and found["seconds_to_decompress"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"gpt", "text.txt"}


def test_the_text_is_cut_where_the_recipe_cuts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(chr(ord("a") + place % 26) for place in range(1000))
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "my-gpt.yaml").write_text(f"dataset_name: {tmp_path / 'text.txt'}\nmax_position_embeddings: 8\n")
    monkeypatch.setattr(rows, "RECIPES", tmp_path)
    assert load_texts("my-gpt") == Texts(text[:900].encode(), text[900:].encode())
