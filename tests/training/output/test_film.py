"""The film of a training."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest

from training.output import film


def draw(output_dir: Path, *steps: int) -> None:
    """Pictures that become brighter with each step."""
    (output_dir / film.FOLDER).mkdir(parents=True, exist_ok=True)
    for step in steps:
        PIL.Image.new("L", (64, 48), step).save(output_dir / film.FOLDER / f"step-{step:06d}.png")


def test_a_film_shows_all_pictures_in_order_and_ends_with_the_published_state(tmp_path: Path) -> None:
    draw(tmp_path, 200, 10, 100)
    path = film.write_film(tmp_path, last_step=100)
    assert path == tmp_path / "samples" / "film.webp"
    with PIL.Image.open(path) as shown:
        assert shown.n_frames == 2 and shown.size == (64, 48)
        brightness = []
        for frame in range(2):
            shown.seek(frame)
            brightness.append(shown.convert("L").getpixel((30, 20)))
    assert brightness == pytest.approx([10, 100], abs=3)
    assert [file.name for file in path.parent.iterdir()] == ["film.webp"]


def test_a_film_ends_with_the_picture_of_the_finished_model(tmp_path: Path) -> None:
    draw(tmp_path, 10)
    PIL.Image.new("L", (64, 48), 250).save(tmp_path / "finished.png")
    path = film.write_film(tmp_path, 100, tmp_path / "finished.png")
    assert path is not None
    with PIL.Image.open(path) as shown:
        shown.seek(1)
        assert shown.n_frames == 2 and shown.convert("L").getpixel((30, 20)) == pytest.approx(250, abs=3)
    assert film.write_film(tmp_path, 100, tmp_path / "missing.png") is None


def test_one_picture_is_no_film(tmp_path: Path) -> None:
    draw(tmp_path, 10)
    assert film.write_film(tmp_path, 100) is None and not (tmp_path / "samples").exists()


def test_a_film_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path, 10, 20)
    (tmp_path / film.FOLDER / "step-000020.png").write_bytes(b"no picture")
    assert film.write_film(tmp_path, 100) is None
    assert "The film was not written" in caplog.text


def test_a_run_that_resumes_forgets_what_it_will_repeat(tmp_path: Path) -> None:
    film.forget_after(tmp_path, 5)  # there is no folder yet
    draw(tmp_path, 10, 20, 30)
    film.forget_after(tmp_path, 20)
    assert sorted(path.name for path in (tmp_path / film.FOLDER).iterdir()) == ["step-000010.png", "step-000020.png"]


def test_pictures_are_due_at_equal_distances_while_they_are_cheap() -> None:
    due = [step for step in range(400) if film.is_due(step / 400, (step + 1) / 400)]
    assert len(due) == film.FRAMES and {b - a for a, b in zip(due, due[1:])} == {10}
    assert film.is_cheap(1.0, 100.0) and not film.is_cheap(3.0, 100.0)
