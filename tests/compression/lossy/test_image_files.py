"""From images to a file and back, as people do it. Whatever goes wrong is one ValueError, and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import CodecModel
from hfgen.cli import main
from hfgen.compression import compress_images, decompress, describe
from hfgen.compression.container import read
from hfgen.compression.lossy import image_codec

from .image_data import DATA, tiny_codec, write_data


AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and two images."""
    tiny_codec().save_pretrained(tmp_path / "codec")
    noise = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "color.png")
    Image.fromarray(noise[:5, :, 0]).resize((30, 20)).save(tmp_path / "gray.jpg")
    return tmp_path


def compressed(folder: Path, quality: float = 1.0) -> Path:
    compress_images([folder / "color.png", folder / "gray.jpg"], folder / "two.hfz", folder / "codec", quality)
    return folder / "two.hfz"


def test_images_are_restored_as_the_model_decodes_them(folder: Path) -> None:
    restored = decompress(compressed(folder), model=folder / "codec")

    assert restored == folder / "two" and sorted(path.name for path in restored.iterdir()) == ["color.png", "gray.png"]
    model = CodecModel.from_pretrained(folder / "codec").eval()
    for name in ("color.png", "gray.jpg"):
        original = Image.open(folder / name).convert("L")
        pixels = torch.from_numpy(np.array(original))[None, None] / 255
        expected = model.decode_symbols(model.encode_symbols(pixels, 1.0), 1.0, original.size[::-1])
        found = np.asarray(Image.open(restored / f"{Path(name).stem}.png"))
        assert found.shape == original.size[::-1]
        assert np.abs(found - 255 * expected[0, 0].numpy()).max() <= 1


def test_a_file_written_long_ago_is_read(tmp_path: Path) -> None:
    """What was written once must be read for good: the symbols exactly, pixels but for 1 of 255."""
    restored = decompress(DATA / "images.hfz", tmp_path / "images", DATA / "codec")

    for name in ("noise.png", "ramp.png"):
        found, expected = (np.asarray(Image.open(of / name)).astype(int) for of in (restored, DATA / "images"))
        assert found.shape == expected.shape and np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("threads, limit", [(1, AVX2), (2, {})], ids=["one thread with AVX2", "two threads"])
def test_other_threads_and_instructions_decode_exactly(threads: int, limit: dict[str, str], tmp_path: Path) -> None:
    """The checksum of the symbols is looked at before anything is written."""
    command = [sys.executable, "-m", "hfgen", "decompress", DATA / "images.hfz", tmp_path / "images",
               "--model", DATA / "codec"]  # fmt: skip
    environment = {**os.environ, **limit, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    subprocess.run(command, env=environment, check=True)
    assert len([*(tmp_path / "images").iterdir()]) == 2


def test_the_data_is_what_this_version_writes(tmp_path: Path) -> None:
    """Else the format has changed: raise its version, or find the mistake. The payload depends on floats of the
    encoder, and is not compared."""
    write_data(tmp_path, CodecModel.from_pretrained(DATA / "codec").eval())
    ours, old = read(tmp_path / "images.hfz"), read(DATA / "images.hfz")
    same = {"payload": b"", "original_sha256": bytes(32)}
    assert replace(ours, **same) == replace(old, **same)


def test_any_damage_is_refused_and_nothing_is_written(folder: Path) -> None:
    file = compressed(folder)
    content = file.read_bytes()
    before = sorted(folder.rglob("*"))
    damaged = [
        content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :] for place in range(len(content))
    ]
    for other in (*damaged[::3], b"", content[:100], content[:-1]):
        file.write_bytes(other)
        with pytest.raises(ValueError, match="must"):
            decompress(file, model=folder / "codec")
    assert sorted(folder.rglob("*")) == before


def test_damage_that_checksums_do_not_show_is_refused(folder: Path) -> None:
    file = compressed(folder)
    content = read(file)
    escaped = image_codec.unpack_parameters(content.parameters)[1][0]
    assert escaped.name == "color.png"
    outside = content.parameters.replace(b"color.png", b"../r.png ")
    for other in (
        replace(content, original_sha256=bytes(32)),
        replace(content, payload=bytes(len(content.payload))),
        replace(content, parameters=outside),
        replace(content, parameters=b"\x63" + content.parameters[1:]),
    ):
        file.write_bytes(other.to_bytes())
        with pytest.raises(ValueError, match="must"):
            decompress(file, model=folder / "codec")
    assert not (folder / "two").exists() and not [*folder.glob(".*")]


def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = compressed(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        decompress(file, model=folder / "codec")
    assert not (folder / "two").exists() and not [*folder.glob(".*")]


def test_the_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, model = str(folder / "two.hfz"), str(folder / "codec")
    images = [str(folder / "color.png"), str(folder / "gray.jpg")]
    assert main(["compress", *images, packed, "--model", model, "--quality", "1", "--verify"]) == 0
    size, pixels = Path(packed).stat().st_size, 9 * 14 + 20 * 30
    expected = f"Wrote {packed}: 2 images in {size:,} bytes, {8 * size / pixels:.3f} bits per pixel.\n"
    assert capsys.readouterr().out == expected
    assert main(["info", packed, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == describe(packed) and found["kind"] == "images" and found["pixels"] == found["original_size"]
    assert found["names"] == ["color.png", "gray.png"] and found["sizes"] == [[9, 14], [20, 30]]
    assert main(["decompress", packed, "--model", model]) == 0
    assert capsys.readouterr().out == f"Wrote {folder / 'two'}.\n"


def test_what_cannot_be_compressed_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, image = str(folder / "codec"), str(folder / "color.png")
    (folder / "text.png").write_text("no image")
    for words, message in [
        ([image, image], "names that differ"),
        ([str(folder / "text.png")], "must be readable"),
        ([str(folder / "missing.png")], "missing.png"),
        ([image, "--quality", "1.5"], "quality must be from 0 to 1, got 1.5"),
    ]:
        assert main(["compress", *words, str(folder / "new.hfz"), "--model", model]) == 1
        assert message in capsys.readouterr().err
    assert not (folder / "new.hfz").exists()


def test_a_text_model_takes_one_text_and_no_quality(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = str(DATA / "gpt"), str(DATA / "verse.txt")
    assert main(["compress", text, text, str(folder / "new.hfz"), "--model", model]) == 1
    assert "FILE must be one text for this model, got 2 files" in capsys.readouterr().err
    assert main(["compress", text, str(folder / "new.hfz"), "--model", model, "--quality", "0.5"]) == 1
    assert "--quality must be left out" in capsys.readouterr().err
