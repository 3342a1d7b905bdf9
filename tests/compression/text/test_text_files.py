"""From a text to a file and back: what was written once must be read for good."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hfgen import GPTModel
from hfgen.compression import compress, decompress
from hfgen.compression.container import read
from hfgen.compression.text import text_files

from ..tiny_gpt import save_tiny_gpt


# A model, a text, and the file that they gave.
DATA = Path(__file__).parents[1] / "data"
VERSE = (DATA / "verse.txt").read_bytes()
# Read by oneDNN, by torch's own kernels and by MKL.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def test_a_file_written_long_ago_is_read(tmp_path: Path) -> None:
    assert decompress(DATA / "verse.hfz", tmp_path / "verse.txt", DATA / "gpt").read_bytes() == VERSE


def test_the_same_file_is_written_as_long_ago(tmp_path: Path) -> None:
    """Else the format or the arithmetic has changed: raise its version, or find the mistake."""
    compress(DATA / "verse.txt", tmp_path / "verse.hfz", DATA / "gpt")
    ours, old = read(tmp_path / "verse.hfz"), read(DATA / "verse.hfz")
    self_test = slice(1, 17)
    for content in (ours, old):
        assert len(content.parameters[self_test]) == 16
    assert ours.payload == old.payload
    assert ours.parameters[:1] + ours.parameters[17:] == old.parameters[:1] + old.parameters[17:]
    assert replace(ours, parameters=b"") == replace(old, parameters=b"")


@pytest.mark.parametrize("threads, limit", [(1, AVX2), (2, {})], ids=["one thread with AVX2", "two threads"])
def test_other_threads_and_instructions_decode_exactly(threads: int, limit: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hfgen", "decompress", DATA / "verse.hfz", tmp_path / "verse.txt",
               "--model", DATA / "gpt"]  # fmt: skip
    environment = {**os.environ, **limit, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "verse.txt").read_bytes() == VERSE


@pytest.mark.parametrize("what", ["headless", "no tokenizer"])
def test_a_model_that_cannot_compress_is_refused(what: str, tmp_path: Path) -> None:
    save_tiny_gpt(tmp_path / "gpt")
    if what == "headless":
        GPTModel.from_pretrained(tmp_path / "gpt").save_pretrained(tmp_path / "gpt")
    else:
        for path in tmp_path.glob("gpt/tokenizer*"):
            path.unlink()
    message = {"headless": r"must hold a GPTForCausalLM, got \['GPTModel'\]", "no tokenizer": "model's tokenizer, got"}
    with pytest.raises(ValueError, match=message[what]):
        compress(DATA / "verse.txt", tmp_path / "verse.hfz", tmp_path / "gpt")
    assert not (tmp_path / "verse.hfz").exists()


def test_verify_decodes_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short.txt").write_bytes(VERSE[:30])
    compress(tmp_path / "short.txt", tmp_path / "short.hfz", DATA / "gpt", verify=True)
    monkeypatch.setattr(text_files.gpt_text_codec, "decode", lambda *_: b"something else")
    with pytest.raises(ValueError, match="Nothing was written"):
        compress(tmp_path / "short.txt", tmp_path / "again.hfz", DATA / "gpt", verify=True)
    assert not (tmp_path / "again.hfz").exists()


def test_the_tokenizer_of_the_data_is_one_of_characters() -> None:
    assert len(AutoTokenizer.from_pretrained(DATA / "gpt", trust_remote_code=False)("to be")["input_ids"]) == 5
