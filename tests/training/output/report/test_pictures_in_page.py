"""What of a run's samples a page holds: pixels as they are, and not too many bytes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.output.report import pictures_in_page
from training.output.report.pictures_in_page import Embedded, embed, read_film, spread


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def decoded(embedded: Embedded) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(embedded.uri.partition(",")[2])))


def test_a_small_picture_is_embedded_to_the_bit(tmp_path: Path) -> None:
    picture = noise(40, 30)
    picture.save(tmp_path / "a.png")

    for embedded in (embed(picture), embed(tmp_path / "a.png")):
        assert (embedded.width, embedded.height) == (40, 30) and embedded.uri.startswith("data:image/png;base64,")
        assert np.array_equal(np.asarray(decoded(embedded)), np.asarray(picture))


def test_a_large_picture_is_compressed_and_looks_the_same() -> None:
    smooth = noise(8, 8).resize((1024, 1024), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(1).integers(-3, 4, (1024, 1024, 3))
    picture = Image.fromarray((np.asarray(smooth).astype(int) + grain).clip(0, 255).astype(np.uint8))
    embedded = embed(picture)

    assert embedded.uri.startswith("data:image/webp;base64,") and len(embedded.uri) < 1_000_000
    assert np.abs(np.asarray(decoded(embedded)).astype(int) - np.asarray(picture)).mean() < 4


def test_a_picture_that_webp_cannot_hold_stays_a_png(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_in_page, "LARGEST_PNG", 10)
    assert embed(Image.new("L", (16_384, 1))).uri.startswith("data:image/png")


def test_a_film_has_pictures_in_the_order_of_their_steps(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for step in (1_000_000, 999_999, 5):
        Image.new("L", (2, 2), step % 7).save(tmp_path / "samples" / f"step-{step:06d}.png")
        Image.new("L", (2, 2)).save(tmp_path / "samples" / f"step-{step:06d}-map.png")
    frames, count = read_film(tmp_path)

    assert [frame.step for frame in frames] == [5, 999_999, 1_000_000] and count == 3
    assert all(frame.picture is not None and frame.text is None for frame in frames)


def test_a_film_of_texts(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-000007.txt").write_bytes("Ä\n".encode() + b"\xff")

    assert [(frame.step, frame.text) for frame in read_film(tmp_path)[0]] == [(7, "Ä\n\N{REPLACEMENT CHARACTER}")]
    assert read_film(tmp_path / "elsewhere") == ([], 0)


def test_a_long_film_is_thinned_out_to_what_can_be_sent_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "samples").mkdir()
    for step in range(1, 101):
        noise(20, 20).save(tmp_path / "samples" / f"step-{step:06d}.png")
    frames, count = read_film(tmp_path)
    size = (tmp_path / "samples" / "step-000001.png").stat().st_size
    monkeypatch.setattr(pictures_in_page, "FILM_BYTES", 5 * size + 100)
    few, _ = read_film(tmp_path)

    assert count == 100 and len(frames) == 40
    assert (frames[0].step, frames[-1].step) == (few[0].step, few[-1].step) == (1, 100) and 4 <= len(few) <= 5


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 1000])
def test_spread_keeps_both_ends_and_never_repeats(count: int) -> None:
    chosen = spread(range(count), 5)

    assert len(chosen) == min(count, 5) == len({*chosen}) and chosen == sorted(chosen)
    assert not count or (chosen[0], chosen[-1]) == (0, count - 1)
