"""report.html: what is on it, that it needs nothing else, and that nothing on it can act."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hfgen.notebook import NO_BUTTON, with_button
from training.output.report import page
from training.output.report.drawings import Ways
from training.output.report.page import Drawn, render_report, write_report
from training.output.report.pictures_in_page import embed
from training.output.report.surprise import Piece

from .pages import HOSTILE, Page, results, write_run


WAYS = Ways(Image.new("L", (50, 20), 9), count=2, frames=5, size=(10, 10), between_real_images=True)
DRAWN = Drawn(embed(Image.new("L", (40, 30), 7)), WAYS)


def render(folder: Path, drawn: Drawn = DRAWN, **changes: Any) -> Page:
    return Page(render_report(folder, results(**changes), "elbo", drawn))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "vae-digits")


def test_a_page_shows_all_that_a_run_left(run: Path) -> None:
    shown = render(run)

    assert shown.headings == [
        "vae-digits", "Samples", "From one image to another", "Reconstructions", "Map of the latents", "Curves",
        "ELBO", "Loss", "Learning rate", "Numbers", "Load it", "How it was made",
    ]  # fmt: skip
    assert "A model of digits, nothing else. It is small." in shown.text and "Not the lead" not in shown.text
    assert 'AutoModel.from_pretrained("me/vae")  # 1 < 2' in shown.text
    assert "hfgen train vae --output_dir vae-digits" in shown.text and "12,345" in shown.text
    assert "−26.50" in shown.text and "evidence lower bound" in shown.text


def test_the_film_has_the_samples_of_each_step_and_shows_the_last(run: Path) -> None:
    frames = [attributes for attributes in render(run).all("div") if attributes.get("class") == "frame"]

    assert [(frame["data-label"], "hidden" in frame) for frame in frames] == [("step 10", True), ("step 20", False)]


def test_pictures_are_those_of_the_run(run: Path) -> None:
    images = render(run).all("img")
    uris = [image["src"].partition("base64,")[2] for image in images]

    assert uris[0] == base64.b64encode((run / "samples" / "step-000010.png").read_bytes()).decode()
    colors = [Image.open(io.BytesIO(base64.b64decode(uri))).getpixel((0, 0)) for uri in uris]
    assert colors == [10, 20, 7, (255, 0, 0), (255, 0, 0)]


def test_everything_is_in_the_file(run: Path) -> None:
    shown = render(run)
    links = [value for _, attributes in shown.elements for name, value in attributes.items()
             if name in ("src", "href", "action", "srcset", "poster", "data", "xlink:href")]  # fmt: skip
    html = render_report(run, results(), "elbo", DRAWN)

    assert links and all(link.startswith("data:") for link in links)
    assert set(re.findall(r"url\((.{5})", html)) == {"data:"} and "@import" not in html
    assert "https://" not in html and "http://" not in html


def test_the_only_script_is_its_own(run: Path) -> None:
    html = render_report(run, results(), "elbo", DRAWN)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    (policy,) = [meta["content"] for meta in Page(html).all("meta") if "http-equiv" in meta]

    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';") and policy.endswith(f"script-src 'sha256-{digest}'")


def test_all_text_is_inert(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a<b>&")
    (run / "README.md").write_text(f"# x\n\n{HOSTILE}\n\n```python\n{HOSTILE}\n```\n")
    (run / "samples" / "step-000030.txt").write_text(HOSTILE)
    Image.new("L", (4, 4)).save(run / "samples" / "step-000030-<b>onerror.png")
    drawn = Drawn(surprise=[Piece(HOSTILE, 2.0)])

    shown = render(run, drawn, dataset=HOSTILE, command=HOSTILE, hardware=HOSTILE, split=HOSTILE,
                   metrics={HOSTILE: 1.0}, metrics_missing={"nll": HOSTILE}, versions={HOSTILE: HOSTILE})  # fmt: skip

    assert len(shown.all("script")) == 1 and not shown.all("b")
    assert shown.text.count(HOSTILE) >= 7
    assert not [name for _, attributes in shown.elements for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("repo_id", [None, "me/vae-digits"])
def test_the_button_of_the_card_is_not_on_the_page(repo_id: str | None, run: Path) -> None:
    path = run / "README.md"
    card = path.read_text().replace("# vae-digits\n", f"# vae-digits\n\n{NO_BUTTON}\n")
    path.write_text(card if repo_id is None else with_button(card, repo_id))
    shown = render(run)
    assert "A model of digits, nothing else. It is small." in shown.text
    assert "Colab" not in shown.text and "# vae-digits" not in shown.text


def test_what_is_missing_leaves_no_heading(tmp_path: Path) -> None:
    shown = render(tmp_path, Drawn(), metrics={}, command=None, hardware="x")
    assert shown.headings == [tmp_path.name, "How it was made"]
    bare = Page(render_report(tmp_path, {"model_type": "hfgen_gan", "metrics": {}}, "elbo", Drawn()))
    assert bare.headings == [tmp_path.name] and not bare.all("section") and not bare.all("img")


def test_the_picture_of_ways_is_shown_where_they_cannot_be_moved(run: Path) -> None:
    shown = render(run, Drawn())
    assert shown.headings.count("From one image to another") == 1
    assert len([image for image in shown.all("img") if "turn into each other" in image["alt"]]) == 1


def test_a_picture_of_another_name_is_shown_too(run: Path) -> None:
    Image.new("L", (4, 4)).save(run / "samples" / "step-000020-nearest-neighbors.png")
    assert "Nearest neighbors" in render(run).headings


def test_each_part_has_a_name_for_those_who_cannot_see(run: Path) -> None:
    shown = render(run, Drawn(DRAWN.real_images, WAYS, [Piece("a", 1.0)]))
    ids = {attributes["id"] for _, attributes in shown.elements if "id" in attributes}

    assert all(image["alt"] and image["width"] and image["height"] for image in shown.all("img"))
    assert all(entry.get("aria-label") for entry in shown.all("input") + shown.all("svg"))
    assert all(part["aria-labelledby"] in ids for part in shown.all("section") if "aria-labelledby" in part)
    assert shown.all("html")[0]["lang"] == "en" and shown.headings[0] == "vae-digits"


def test_surprise_is_a_color_up_to_the_strongest(run: Path) -> None:
    pieces = [Piece("To", 0.0), Piece(" be", 4.0), Piece("\n", 40.0)]
    spans = [span for span in render(run, Drawn(surprise=pieces)).all("span") if "--s" in span.get("style", "")]

    assert [span["style"] for span in spans] == ["--s: 0.00", "--s: 0.50", "--s: 1.00"]
    assert [span["title"] for span in spans] == ["0.0 bits", "4.0 bits", "40.0 bits"]


def test_a_page_that_cannot_be_written_is_a_warning_and_no_page(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "report.html").write_text("of an earlier end")
    monkeypatch.setattr(page, "_draw", lambda *_: Drawn())
    monkeypatch.setattr(page, "render_report", lambda *_: 1 / 0)
    model, before = torch.nn.Linear(1, 1), torch.get_rng_state()

    class Objective:
        primary_metric = "elbo"

    with caplog.at_level(logging.WARNING):
        assert write_report(run, results(), Objective(), model) is None  # type: ignore[arg-type]
    assert "report.html was not written: ZeroDivisionError" in caplog.text
    assert not list(run.glob("*report.html")) and torch.equal(before, torch.get_rng_state())
