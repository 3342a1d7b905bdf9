"""The page at the end of real runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfgen.model_folder import read_json
from training.output.report import page

from ....runs import FAMILIES, Fault, shared_run, train
from .pages import Page


def break_the_page() -> None:
    page.render_report = lambda *_: 1 / 0  # type: ignore[assignment]


def test_a_run_without_its_page_is_complete(tmp_path: Path) -> None:
    run = train("gan", tmp_path / "run", fault=Fault(patch=break_the_page))

    assert run.code == 0 and "report.html was not written" in run.output and "Open " not in run.output
    assert read_json(tmp_path / "run" / "results.json")["steps"] == 12 and not (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_run_ends_with_its_page(family: str) -> None:
    shared = shared_run(family, "--report_to", "tensorboard")
    target = shared.folder / "report.html"
    shown = Page(target.read_text(encoding="utf-8"))

    assert f"Open {target}" in shared.run.output and "A part of report.html" not in shared.run.output
    assert shown.headings[1] == ("Reconstructions" if family in ("autoencoder", "codec") else "Samples")
    assert {"Curves", "Numbers", "Load it", "How it was made"} < {*shown.headings}
    assert ("What surprises the model" in shown.headings) == (family == "gpt")
    assert ("From one image to another" in shown.headings) == (family not in ("gpt", "codec"))
    frames = [attributes for attributes in shown.all("div") if attributes.get("class") == "frame"]
    steps = (2, 3, 5, 6, 8, 9, 11, 12) if family == "gan" else (3, 6, 9, 12)
    assert [frame["data-label"] for frame in frames] == [f"step {step}" for step in steps]
    real = [image for image in shown.all("img") if image["alt"].startswith("Real images")]
    assert len(real) == (family in ("vae", "ladder_vae", "gan"))
    assert target.stat().st_size < 2_000_000
