"""From images to a file and back, pixel for pixel. Whatever goes wrong is one ValueError, and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfgen.cli import main
from hfgen.compression import compress_lossless, decompress, describe
from hfgen.compression.container import read
from hfgen.compression.identity import hash_weights
from hfgen.compression.lossless.image_plan import ImagePlan, numbered_names

from ..tiny_gpt import save_tiny_gpt
from .tiny_vae import DATA, smooth_images, tiny_vae


AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
MODEL = DATA / "ladder-vae"
WAVES = DATA / "waves"


def pixels_of(folder: Path) -> dict[str, list]:
    return {path.name: np.asarray(Image.open(path)).tolist() for path in sorted(folder.iterdir())}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two images, compressed."""
    compress_lossless([WAVES / "wave 1.png", WAVES / "wave 4.png"], tmp_path / "two.hfz", MODEL)
    return tmp_path / "two.hfz"


def assert_refused(file: Path, message: str, **arguments: object) -> None:
    """Nothing may be there afterwards that was not there before."""
    before = {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        decompress(file, **{"model": MODEL, **arguments})
    assert {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()} == before


def test_a_file_written_long_ago_is_read(tmp_path: Path) -> None:
    restored = decompress(DATA / "waves.hfz", tmp_path / "waves", MODEL)
    assert pixels_of(restored) == pixels_of(WAVES)


def test_the_same_file_is_written_as_long_ago(tmp_path: Path) -> None:
    """Else the format or the arithmetic has changed: raise its version, or find the mistake."""
    compress_lossless([WAVES], tmp_path / "waves.hfz", MODEL, verify=True)
    ours, old = read(tmp_path / "waves.hfz"), read(DATA / "waves.hfz")
    assert ours.payload == old.payload and ours.parameters[17:] == old.parameters[17:]
    assert replace(ours, parameters=b"") == replace(old, parameters=b"")


@pytest.mark.parametrize("threads, limit", [(1, AVX2), (2, {})], ids=["one thread with AVX2", "two threads"])
def test_other_threads_and_instructions_decode_exactly(threads: int, limit: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hfgen", "decompress", DATA / "waves.hfz", tmp_path / "waves", "--model", MODEL]
    environment = {**os.environ, **limit, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    subprocess.run(command, env=environment, check=True)
    assert pixels_of(tmp_path / "waves") == pixels_of(WAVES)


def test_any_damage_is_refused_and_nothing_is_written(file: Path) -> None:
    content = file.read_bytes()
    for place in range(0, len(content), 3):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        assert_refused(file, "must")
    for size in (0, 7, 21, 100, len(content) - 1):
        file.write_bytes(content[:size])
        assert_refused(file, "must")
    file.write_bytes(content)
    assert len(pixels_of(decompress(file, model=MODEL))) == 2


def test_damage_that_checksums_do_not_show_is_refused(file: Path) -> None:
    """As a foreign program might write it."""
    content = read(file)
    for place in range(0, len(content.parameters), 2):
        parameters = bytearray(content.parameters)
        parameters[place] ^= 0x41
        if bytes(parameters[17:]) != content.parameters[17:]:
            file.write_bytes(replace(content, parameters=bytes(parameters)).to_bytes())
            assert_refused(file, "must")
    for other in (
        replace(content, payload=content.payload[:-4] + b"abcd"),
        replace(content, payload=content.payload[:5]),
        replace(content, original_sha256=bytes(32)),
        replace(content, original_size=64),
    ):
        file.write_bytes(other.to_bytes())
        assert_refused(file, "must")


def test_only_the_very_model_decodes(file: Path, tmp_path: Path) -> None:
    assert_refused(file, "local folder named 'ladder-vae', whose weights have the SHA-256", model=None)
    tiny_vae(is_ladder=True, seed=1, likelihood="logistic_mixture").save_pretrained(tmp_path / "other")
    assert_refused(
        file, "weights of other must have the SHA-256 .* compressed with 'ladder-vae'", model=tmp_path / "other"
    )


def test_another_config_is_noticed(file: Path, tmp_path: Path) -> None:
    """The weights are the same."""
    other = tmp_path / "other"
    other.mkdir()
    for part in MODEL.iterdir():
        (other / part.name).write_bytes(part.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert_refused(file, "self-test must differ by less", model=other)


def test_color_gray_and_black_and_white_come_back(tmp_path: Path) -> None:
    color = tiny_vae(num_channels=3, likelihood="logistic_mixture")
    color.save_pretrained(tmp_path / "color")
    binary = tiny_vae(likelihood="bernoulli")
    binary.save_pretrained(tmp_path / "binary")
    (rgb,) = smooth_images(1, 3).transpose(0, 2, 3, 1)
    ((bilevel,),) = smooth_images(1, is_binary=True)
    Image.fromarray(rgb).save(tmp_path / "a.bmp")
    Image.fromarray(rgb[..., 0]).save(tmp_path / "b.png")
    Image.fromarray(bilevel).convert("1").save(tmp_path / "c.png")

    compress_lossless([tmp_path / "a.bmp", tmp_path / "b.png"], tmp_path / "color.hfz", tmp_path / "color")
    found = pixels_of(decompress(tmp_path / "color.hfz", tmp_path / "found", tmp_path / "color"))
    assert found == {"a.png": rgb.tolist(), "b.png": np.stack([rgb[..., 0]] * 3, axis=-1).tolist()}
    compress_lossless([tmp_path / "c.png"], tmp_path / "binary.hfz", tmp_path / "binary")
    restored = decompress(tmp_path / "binary.hfz", tmp_path / "bilevel", tmp_path / "binary")
    assert pixels_of(restored) == {"c.png": bilevel.tolist()}
    assert describe(tmp_path / "binary.hfz")["pixel_values"] == "0 and 255"


def test_what_would_lose_something_is_refused(tmp_path: Path) -> None:
    rgb = Image.fromarray(smooth_images(1, 3)[0].transpose(1, 2, 0))
    rgb.save(tmp_path / "color.png")
    rgb.convert("L").resize((9, 8)).save(tmp_path / "large.png")
    rgb.convert("LA").save(tmp_path / "alpha.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "wave 1.jpg").write_bytes((WAVES / "wave 1.png").read_bytes())
    (tmp_path / "empty").mkdir()
    for names, message in [
        (
            ["color.png"],
            "color.png must have one of Pillow's modes 1, L, and no transparency, got RGB. The model has 1",
        ),
        (["alpha.png"], "got LA"),
        (["large.png"], r"shape \(1, 8, 8\) of the model .* got uint8 of shape \(1, 1, 8, 9\)"),
        (["text.png"], "text.png: must be readable"),
        (["missing.png"], "missing.png"),
        (["empty"], "must be files of images, or folders with some"),
        (["wave 1.jpg", WAVES], "names that differ"),
    ]:
        with pytest.raises(ValueError, match=message):
            compress_lossless([tmp_path / name for name in names], tmp_path / "out.hfz", MODEL)
    save_tiny_gpt(tmp_path / "gpt")
    with pytest.raises(
        ValueError, match="must hold a hfgen_vae or hfgen_ladder_vae for lossless images, got 'hfgen_gpt'"
    ):
        compress_lossless([WAVES], tmp_path / "out.hfz", tmp_path / "gpt")
    with pytest.raises(ValueError, match="OUT must be a new file"):
        compress_lossless([WAVES], tmp_path / "color.png", MODEL)
    assert not (tmp_path / "out.hfz").exists()


def test_the_split_of_a_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(pixels) for (pixels,) in smooth_images(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": images, "label": [*range(12)]}, features=features)
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")

    packed = tmp_path / "test.hfz"
    compress_lossless([tmp_path / "data"], packed, MODEL, split="test")
    restored = decompress(packed, tmp_path / "restored", MODEL)
    assert pixels_of(restored) == {f"{n:02}.png": smooth_images(12)[n, 0].tolist() for n in range(12)}
    for data, split, message in [(["data"], "train", "with the split 'train'"), (["data", "data"], "test", "got 2")]:
        with pytest.raises(ValueError, match=message):
            compress_lossless([tmp_path / name for name in data], tmp_path / "out.hfz", MODEL, split=split)


def test_numbers_for_names_take_no_bytes() -> None:
    shape, batches = (1, 8, 8), [(1, 2), (64, 2)]
    plan = ImagePlan(shape, False, np.zeros(2), [1], batches, 9, numbered_names(130))
    assert plan.names[0] == "000.png" and plan.names[-1] == "129.png" and len(plan.to_bytes()) < 40
    named = replace(plan, names=[f"café {n}.png" for n in range(130)])
    for written in (plan, named):
        assert replace(ImagePlan.from_bytes(written.to_bytes()), self_test=plan.self_test) == written
    assert len(named.to_bytes()) < 500
    for names, message in [
        (["../a.png"] * 130, "name of an image must be that of a PNG file"),
        (["a.png"] * 130, "130 images must differ"),
        (named.names[:-1], "130 images must differ, got 129"),
    ]:
        with pytest.raises(ValueError, match=message):
            ImagePlan.from_bytes(replace(plan, names=names).to_bytes())


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, model = str(tmp_path / "waves.hfz"), str(MODEL)
    assert main(["compress", "--lossless", "--model", model, str(WAVES), packed, "--verify"]) == 0
    size = Path(packed).stat().st_size
    expected = f"Wrote {packed}: 6 images in {size:,} bytes, {8 * size / (6 * 64):.3f} bits per pixel.\n"
    assert capsys.readouterr().out == expected
    assert main(["info", packed, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == describe(packed) and found["kind"] == "lossless images" and found["images"] == 6
    assert found["weights_sha256"] == hash_weights(MODEL).hex() and found["height"] == found["width"] == 8
    stacked = np.stack([np.asarray(Image.open(path)) for path in sorted(WAVES.iterdir())])
    assert found["original_sha256"] == sha256(stacked.tobytes()).hexdigest() and found["original_size"] == 6 * 64
    assert found["names"] == [path.name for path in sorted(WAVES.iterdir())]
    assert main(["decompress", packed, "--model", model]) == 0
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'waves'}.\n"
    assert pixels_of(tmp_path / "waves") == pixels_of(WAVES)


def test_flags_that_do_not_fit_the_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, image = str(tmp_path / "out.hfz"), str(WAVES / "wave 1.png")
    for words, message in [
        (["--model", str(MODEL)], "A VAE must be used with --lossless"),
        (["--model", str(MODEL), "--lossless", "--quality", "1"], "A VAE must be used with --lossless and without"),
        (["--model", str(DATA / "codec"), "--lossless"], "--lossless must be left out, as a codec loses details"),
        (["--model", str(DATA / "gpt"), "--split", "test"], "--split must be left out"),
    ]:
        assert main(["compress", image, output, *words]) == 1
        assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
