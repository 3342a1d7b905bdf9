"""`hfgen score`: what it prints and writes for files and folders, readable or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import AutoencoderConfig, AutoencoderModel
from hfgen.cli import main
from hfgen.commands.images.scores import find_files, score_images

from ...runs import save_untrained, trained_runs


def black_model(**config: Any) -> AutoencoderModel:
    """Reconstructs every image as black, so that its score is the mean of its squared pixels."""
    model = AutoencoderModel(
        AutoencoderConfig(image_size=4, hidden_channels=[2], hidden_size=2, latent_dim=2, **config)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.decoder.convs[-1].bias.fill_(-1)
    return model.eval()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_untrained(black_model(anomaly_threshold=0.25), tmp_path / "model")


def write_gray(path: Path, gray: int, size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (size, size), gray).save(path)
    return path


def score(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, output, and messages."""
    capsys.readouterr()
    status = main(["score", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_table_has_a_row_per_image_and_status_0(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gray(tmp_path / "photos" / "b" / "bright.PNG", 255)
    write_gray(tmp_path / "photos" / "a.jpg", 102, size=9)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    write_gray(tmp_path / "photos" / ".hidden.png", 255)
    status, table, messages = score(capsys, model, tmp_path / "photos", write_gray(tmp_path / "dark.bmp", 0))
    rows = [line.split() for line in table.splitlines()]
    assert status == 0 and rows == [
        ["score", "anomaly", "file"],
        ["0.16", "no", str(tmp_path / "photos" / "a.jpg")],
        ["1", "yes", str(tmp_path / "photos" / "b" / "bright.PNG")],
        ["0", "no", str(tmp_path / "dark.bmp")],
    ]
    assert messages.endswith("1 of 3 images are anomalies, with scores above 0.25.\n")


def test_json_has_a_line_per_image(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, maps = write_gray(tmp_path / "gray.png", 51), tmp_path / "maps"
    status, lines, _ = score(capsys, model, path, "--json", "--maps", maps)
    assert status == 0 and [json.loads(line) for line in lines.splitlines()] == [
        {"file": str(path), "score": pytest.approx(0.04), "is_anomaly": False, "map": str(maps / "gray.png")}
    ]


def test_files_that_cannot_be_read_are_named_and_set_the_status(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    good, missing = write_gray(tmp_path / "good.png", 0), tmp_path / "missing.png"
    words = [model, tmp_path / "broken.png", good, missing]
    status, table, messages = score(capsys, *words)
    assert status == 1 and [line.split()[-1] for line in table.splitlines()[1:]] == [str(good)]
    assert f"hfgen score: {tmp_path / 'broken.png'}: must be readable, got corrupt or unknown data" in messages
    assert f"hfgen score: {missing}: there is no such file or folder." in messages
    assert messages.endswith("0 of 1 images are anomalies, with scores above 0.25. 2 files could not be read.\n")
    status, lines, _ = score(capsys, *words, "--json", "--maps", tmp_path / "maps")
    found = [json.loads(line) for line in lines.splitlines()]
    assert status == 1 and [("error" in line, "score" in line) for line in found] == [
        (True, False), (False, True), (True, False),
    ]  # fmt: skip


def test_model_without_a_threshold_gives_scores_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_gray(tmp_path / "gray.png", 51)
    status, table, messages = score(capsys, save_untrained(black_model(), tmp_path / "model"), path)
    assert status == 0 and table.splitlines()[1].split() == ["0.04", "-", str(path)]
    assert "1 of 1 files were scored. The model has no threshold to tell anomalies by" in messages
    _, lines, _ = score(capsys, tmp_path / "model", path, "--json")
    assert json.loads(lines)["is_anomaly"] is None


def test_maps_are_painted_where_images_are_strange(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_untrained(black_model(anomaly_threshold=0.1, anomaly_map_threshold=0.25), tmp_path / "model")
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "x.webp", lossless=True)
    maps = tmp_path / "a" / "maps"
    for _ in range(2):  # maps of an earlier run are no images to score
        status, table, _ = score(capsys, model, tmp_path / "a", tmp_path / "b", "--maps", maps)
        assert status == 0 and len(table.splitlines()) == 3
    assert sorted(path.relative_to(maps).as_posix() for path in maps.rglob("*.png")) == [
        "a/x.webp.png",
        "b/x.webp.png",
    ]
    picture = Image.open(maps / "b" / "x.webp.png")
    # White where the map is 1, four times the threshold: red, with a fifth of the image. Black where it is 0.
    assert picture.size == (256, 256) and picture.getpixel((100, 10)) == (255, 51, 51)
    assert picture.getpixel((100, 250)) == (0, 0, 0)


def test_files_are_read_a_batch_at_a_time(tmp_path: Path) -> None:
    """Whatever their number, no more than a batch of them is held."""
    asked: list[int] = []

    def files() -> Any:
        for number in range(7):
            asked.append(number)
            yield write_gray(tmp_path / f"{number}.png", 36 * number)

    scored = score_images(black_model(), files(), batch_size=3)
    first = next(scored)
    assert asked == [0, 1, 2] and first.path.name == "0.png"
    scores = [first.score, *(image.score for image in scored)]
    assert scores == pytest.approx([(36 * number / 255) ** 2 for number in range(7)], abs=1e-6)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_gray(tmp_path / "elsewhere" / "x.png", 0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "circle").symlink_to(tmp_path / "photos")
    assert list(find_files([tmp_path / "photos"])) == [tmp_path / "photos" / "link" / "x.png"]


def test_what_cannot_be_scored_is_one_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    status, _, messages = score(capsys, model, tmp_path / "empty")
    assert status == 1 and "IMAGES must hold images, got" in messages
    status, _, messages = score(capsys, trained_runs() / "vae", tmp_path)
    assert status == 1 and "hfgen_autoencoder" in messages and "hfgen_vae" in messages
