"""The page in a real browser: its script runs, under its own policy, without a network."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from training.output.report.drawings import Ways
from training.output.report.page import Drawn, render_report

from .pages import Page, results, write_run


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = shlex.split(
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr"
)
# What a person does, followed by what is then on the page.
ACTIONS = """
addEventListener("load", () => {
  const film = document.querySelector(".film"), slider = film.querySelector("input");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  const ways = document.querySelector(".ways"), place = ways.querySelector("input");
  place.value = 4;
  place.dispatchEvent(new Event("input"));
});
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")


def open_in_browser(html: str, folder: Path) -> tuple[Page, str]:
    """Returns the page after its scripts, and what the browser wrote to its console."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = "\n".join(re.findall(r"CONSOLE.*", done.stderr))
    return Page(done.stdout), console


def test_the_film_and_the_ways_move(tmp_path: Path) -> None:
    ways = Ways(Image.new("L", (50, 20), 9), count=2, frames=5, size=(10, 10), between_real_images=True)
    run = write_run(tmp_path / "run")
    html = render_report(run, results(), "elbo", Drawn(ways=ways))

    shown, console = open_in_browser(html, tmp_path)
    assert console == ""
    assert not any("hidden" in part for part in shown.all("div") if part.get("class") == "controls")
    frames = [part for part in shown.all("div") if part.get("class") == "frame"]
    assert ["hidden" in frame for frame in frames] == [True, False]

    policy = re.compile(r"; script-src '[^']*'")
    moved, console = open_in_browser(
        policy.sub("; script-src 'unsafe-inline'", html).replace("</body>", f"<script>{ACTIONS}</script></body>"),
        tmp_path,
    )
    assert console == ""
    frames = [part for part in moved.all("div") if part.get("class") == "frame"]
    assert ["hidden" in frame for frame in frames] == [False, True]
    (figure,) = [part for part in moved.all("figure") if part.get("class") == "ways"]
    assert "--frame: 1" in figure["style"]


def test_a_script_that_is_not_its_own_does_not_run(tmp_path: Path) -> None:
    html = render_report(write_run(tmp_path / "run"), results(), "elbo", Drawn())
    shown, console = open_in_browser(
        html.replace("</body>", "<script>document.querySelector('h1').textContent = 'taken over'</script></body>"),
        tmp_path,
    )

    assert shown.headings[0] == "run" and "Content Security Policy" in console
