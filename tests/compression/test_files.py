"""From file to file. Whatever goes wrong is one ValueError, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from hfgen import GPTForCausalLM, VAEConfig, VAEModel
from hfgen.cli import main
from hfgen.compression import compress, decompress, describe
from hfgen.compression.container import read
from hfgen.compression.identity import fetch, hash_weights

from .tiny_gpt import save_tiny_gpt


# A model, a text, and the file that they gave: what was written once must be read for good.
DATA = Path(__file__).parent / "data"
VERSE = (DATA / "verse.txt").read_bytes()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A short text, compressed."""
    (tmp_path / "book.txt").write_bytes(VERSE[:60])
    compress(tmp_path / "book.txt", tmp_path / "book.txt.hfz", DATA / "gpt")
    (tmp_path / "book.txt").unlink()
    return tmp_path / "book.txt.hfz"


def assert_refused(file: Path, message: str, **arguments) -> None:
    """Nothing may be there afterwards that was not there before."""
    before = {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        decompress(file, **arguments)
    assert {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()} == before


def test_any_damage_is_refused_and_nothing_is_written(book: Path) -> None:
    content = book.read_bytes()
    for place in range(len(content)):
        book.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        assert_refused(book, "must", model=DATA / "gpt")
    for size in (0, 7, 21, 100, len(content) - 1):
        book.write_bytes(content[:size])
        assert_refused(book, "must", model=DATA / "gpt")
    book.write_bytes(content)
    assert decompress(book, model=DATA / "gpt").read_bytes() == VERSE[:60]


def test_damage_that_checksums_do_not_show_is_refused(book: Path) -> None:
    """As if the decoder had lost its way: what counts is the checksum of the original."""
    content = read(book)
    for other in (
        replace(content, payload=content.payload[:-4] + bytes(4)),
        replace(content, original_sha256=bytes(32)),
        replace(content, original_size=61),
    ):
        book.write_bytes(other.to_bytes())
        assert_refused(book, "must", model=DATA / "gpt")


def test_the_default_name_is_that_of_the_original(book: Path) -> None:
    assert decompress(book, model=DATA / "gpt") == book.with_suffix("")
    for name, expected in [("poem.hfz", "poem.txt"), ("poem", "poem.txt")]:
        shutil.copyfile(book, book.with_name(name))
        assert decompress(book.with_name(name), model=DATA / "gpt") == book.with_name(expected)
        book.with_name(expected).unlink()


def test_an_existing_file_is_not_overwritten(book: Path) -> None:
    book.with_suffix("").write_bytes(b"mine")
    assert_refused(book, "OUT must be a new file, got .*book.txt', which exists", model=DATA / "gpt")
    with pytest.raises(ValueError, match="OUT must be a new file"):
        compress(DATA / "verse.txt", book, DATA / "gpt")
    assert_refused(book, "OUT must be in a folder that exists", output=book.parent / "a" / "b", model=DATA / "gpt")


def test_only_the_very_model_decodes(book: Path, tmp_path: Path) -> None:
    assert_refused(book, "local folder named 'gpt', whose weights have the SHA-256 [0-9a-f]{64}. Name the folder")
    other = save_tiny_gpt(tmp_path / "other", seed=1)
    assert_refused(book, "weights of other must have the SHA-256 .* compressed with 'gpt': name this", model=other)
    VAEModel(VAEConfig(image_size=8, hidden_channels=[4], hidden_size=4)).save_pretrained(tmp_path / "vae")
    assert_refused(book, "model_type of .* must be 'hfgen_gpt', got 'hfgen_vae'", model=tmp_path / "vae")


def test_another_config_or_tokenizer_is_noticed(book: Path, tmp_path: Path) -> None:
    """The weights are the same."""
    shutil.copytree(DATA / "gpt", tmp_path / "config")
    path = tmp_path / "config" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rope_parameters": {"rope_type": "default", "rope_theta": 9999.0}}))
    assert_refused(book, "self-test must differ by less", model=tmp_path / "config")
    shutil.copytree(DATA / "gpt", tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
    path.write_text(json.dumps(tokenizer))
    assert_refused(book, "must", model=tmp_path / "tokenizer")


def test_a_full_disk_leaves_nothing(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        decompress(book, model=DATA / "gpt")
    assert [path.name for path in book.parent.iterdir()] == [book.name]


def test_the_hash_of_weights_does_not_depend_on_their_files(tmp_path: Path) -> None:
    model = GPTForCausalLM.from_pretrained(DATA / "gpt")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len([*(tmp_path / "sharded").glob("*.safetensors")]) > 1
    assert hash_weights(tmp_path / "sharded") == hash_weights(DATA / "gpt")
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} torch.float32 {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert hash_weights(DATA / "gpt") == digest.digest()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    assert hash_weights(tmp_path / "changed") != hash_weights(DATA / "gpt")


def test_a_model_of_the_hub_is_named_with_its_commit(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the Hub has a folder for each commit; the file can then be read without --model."""
    snapshot = book.parent / "snapshots" / ("c0ffee" + "0" * 34)
    shutil.copytree(DATA / "gpt", snapshot)
    asked: list[tuple[str, str | None]] = []

    def fetch_model(name: str, revision: str | None, model_type: str) -> Path:
        asked.append((name, revision))
        return snapshot

    monkeypatch.setattr("hfgen.compression.identity.fetch_model", fetch_model)
    found = fetch("me/gpt", "main", "hfgen_gpt")
    assert (found.name, found.revision) == ("me/gpt", snapshot.name)
    book.write_bytes(replace(read(book), model=found.name, revision=found.revision).to_bytes())
    assert decompress(book).read_bytes() == VERSE[:60]
    assert asked == [("me/gpt", "main"), ("me/gpt", snapshot.name)]


def test_info_describes_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(DATA / "verse.hfz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == describe(DATA / "verse.hfz")
    assert found["kind"] == "text" and found["model"] == "gpt" and found["revision"] is None
    assert found["original_sha256"] == sha256(VERSE).hexdigest() and found["original_size"] == len(VERSE)
    assert found["size"] == (DATA / "verse.hfz").stat().st_size
    assert found["bits_per_byte"] == 8 * found["size"] / len(VERSE) < 5
    assert found["tokens"] == len(VERSE.decode()) and found["characters_replaced"] == VERSE.decode().count("’")
    assert found["weights_sha256"] == hash_weights(DATA / "gpt").hex()
    assert main(["info", str(DATA / "verse.hfz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found) and f"original size        {len(VERSE):,}" in lines


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, packed, again = (str(tmp_path / name) for name in ("a.txt", "a.hfz", "b.txt"))
    Path(text).write_bytes(VERSE[:40])
    assert main(["compress", "--model", str(DATA / "gpt"), text, packed, "--verify"]) == 0
    size = Path(packed).stat().st_size
    assert capsys.readouterr().out == f"Wrote {packed}: 40 bytes in {size}, {8 * size / 40:.3f} bits per byte.\n"
    assert main(["decompress", packed, again, "--model", str(DATA / "gpt")]) == 0
    assert capsys.readouterr().out == f"Wrote {again}.\n" and Path(again).read_bytes() == VERSE[:40]
    for words in (["decompress", text], ["info", text]):
        assert main(words) == 1
        assert capsys.readouterr().err.startswith(f"hfgen {words[0]}: {text} must be a .hfz file")
