"""The pages in a real browser, with no network but their own server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from hfgen import GANModel, GPTForCausalLM
from hfgen.demo import write_explorer

from . import tiny_models
from .browser import Shown, open_browser, opened, runtime_folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


class Explorers:
    """Folders of models by family, and of their explorers, written when they are first asked for."""

    def __init__(self, home: Path):
        pytest.importorskip("onnxscript", reason="needs hfgen[onnx]")
        self._home, self._runtime = home, runtime_folder()

    def model(self, family: str) -> Path:
        folder = self._home / family
        return folder if folder.is_dir() else getattr(tiny_models, f"save_{family}")(folder)

    def page(self, family: str) -> Path:
        folder = self._home / f"{family}-page"
        if not folder.is_dir():
            images = None if family in ("gan", "gpt") else ["digits"]
            write_explorer(self.model(family), folder, images=images, runtime=self._runtime)
        return folder


@pytest.fixture(scope="module")
def explorers(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Explorers:
    return Explorers(tmp_path_factory.mktemp("explorers"))


def test_a_vae_follows_what_one_does(browser: Any, explorers: Explorers) -> None:
    with opened(browser, explorers.page("vae")) as shown:
        page, picture = shown.page, shown.pixels("#picture")

        frames = int(page.locator("#timing").get_attribute("data-shown"))
        dragged = _drag(shown, picture)
        assert int(page.locator("#timing").get_attribute("data-shown")) >= frames + 5
        assert float(page.locator("#timing").get_attribute("data-milliseconds")) < 1000 / 30

        # The arrow keys; back again is the same picture.
        page.keyboard.press("Shift+ArrowLeft")
        moved = shown.wait_for_change("#picture", dragged)
        page.keyboard.press("Shift+ArrowRight")
        assert max(abs(a - b) for a, b in zip(shown.wait_for_change("#picture", moved), dragged)) <= 1

        # A direction that the map does not show, and a sample.
        page.locator("#directions input").first.focus()
        page.keyboard.press("End")
        turned = shown.wait_for_change("#picture", moved)
        page.locator("#samples button").nth(2).click()
        shown.wait_for_change("#picture", turned)
        assert shown.pixels("#picture") == shown.pixels("#samples button:nth-child(3) canvas")

        # The way between two pictures ends at the second one.
        page.locator("#between").focus()
        page.keyboard.press("End")
        page.wait_for_timeout(200)
        assert shown.pixels("#picture") == shown.pixels("#to canvas")

        _draw(shown)
        assert (shown.problems, shown.strangers) == ([], [])


def _drag(shown: Shown, picture: list[int]) -> list[int]:
    """Drags across the map, and returns the picture at the end."""
    page = shown.page
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.7 * box["height"], steps=15)
    page.mouse.up()
    shown.wait_for_change("#picture", picture)
    page.wait_for_timeout(200)
    return shown.pixels("#picture")


def _draw(shown: Shown) -> None:
    """Draws by keyboard, and looks at what the encoder makes of it."""
    page = shown.page
    page.locator("#pad").focus()
    page.keyboard.press("Space")
    for key in ["ArrowDown"] * 6:
        page.keyboard.press(key)
    # One stroke from top to bottom, as large and where the digits of the dataset are.
    red = "document.querySelector('#seen').getContext('2d').getImageData(4, {row}, 1, 1).data[0] > 60"
    shown.wait_until(" && ".join(red.format(row=row) for row in range(1, 7)))
    page.wait_for_timeout(300)
    seen = shown.pixels("#seen")
    assert sum(seen[0::8]) + sum(seen[7::8]) == 0
    assert page.locator("#neighbors button").count() == 8
    assert "of the stored pictures" in page.locator("#strangeness").text_content()
    assert shown.pixels("#rebuilt") == shown.pixels("#picture")

    page.locator("#neighbors button").first.click()
    page.locator("#clear").click()
    page.wait_for_selector("#neighbors-part", state="hidden")


@pytest.mark.parametrize("family", ["autoencoder", "ladder_vae"])
@torch.no_grad()
def test_others_with_latents_follow_too(browser: Any, explorers: Explorers, family: str) -> None:
    folder = explorers.page(family)
    center = torch.tensor([json.loads((folder / "explorer.json").read_text())["center"]])
    model = AutoModel.from_pretrained(explorers.model(family)).eval()
    decoded = model.decode(center)
    expected = decoded if isinstance(decoded, torch.Tensor) else decoded.sample
    with opened(browser, folder) as shown:
        page, picture = shown.page, shown.pixels("#picture")
        assert picture == pytest.approx((255 * expected[0, 0]).flatten().tolist(), abs=1)

        dragged = _drag(shown, picture)
        page.locator("#samples button").nth(2).click()
        shown.wait_for_change("#picture", dragged)
        assert shown.pixels("#picture") == shown.pixels("#samples button:nth-child(3) canvas")
        _draw(shown)
        assert (shown.problems, shown.strangers) == ([], [])


@torch.no_grad()
def test_a_gan_shows_what_the_address_says(browser: Any, explorers: Explorers) -> None:
    address = "#seed=7&class=2&truncation=0.5"
    with opened(browser, explorers.page("gan"), hash=address) as shown:
        page, first = shown.page, shown.pixels("#picture")
        latents = page.evaluate("import('./vectors.js').then(({ normal }) => [...normal(7, 4)])")
        model = GANModel.from_pretrained(explorers.model("gan")).eval()
        expected = model(0.5 * torch.tensor([latents]), torch.tensor([2]))
        assert first == pytest.approx((255 * expected[0, 0]).flatten().tolist(), abs=1)

        page.get_by_role("radio", name="cat").click()
        cat = shown.wait_for_change("#picture", first)
        page.locator("#walk").focus()
        page.keyboard.press("PageUp")
        walked = shown.wait_for_change("#picture", cat)
        shown.wait_until("location.hash.includes('class=0') && location.hash.includes('walk=')")
        link = page.evaluate("location.hash")

        page.locator("#play").click()
        shown.wait_for_change("#picture", walked)
        page.locator("#play").click()
        page.locator("#samples button").nth(4).click()
        assert "Seed 11, dog" in page.locator("#place").text_content()
        shown.wait_until("location.hash.includes('seed=11')")
        other = shown.pixels("#picture")

        page.evaluate(f"location.hash = {link!r}")
        shown.wait_for_change("#picture", other)
        page.wait_for_timeout(200)
        assert shown.pixels("#picture") == walked
        assert (shown.problems, shown.strangers) == ([], [])


def test_a_gpt_writes_as_pytorch_does(browser: Any, explorers: Explorers) -> None:
    model = GPTForCausalLM.from_pretrained(explorers.model("gpt")).eval()
    tokenizer = AutoTokenizer.from_pretrained(explorers.model("gpt"), trust_remote_code=False)
    with opened(browser, explorers.page("gpt")) as shown:
        page = shown.page
        page.fill("#prompt", "quick ☂ fox")  # an umbrella is no character of the tokenizer's
        page.locator("#temperature").focus()
        page.keyboard.press("Home")
        page.locator("#pace").focus()
        page.keyboard.press("End")
        page.locator("#write").click()
        shown.wait_until("document.querySelector('#page').textContent.length > 45")
        page.keyboard.press("Escape")
        written = page.locator("#page").text_content()
        # The context is full more than once by then.
        assert model.sample(tokenizer, "quick ☂ fox", max_new_tokens=300, temperature=0.0).startswith(written)

        # Another temperature spreads the bars, and a bar that is pressed is what comes next.
        assert page.locator("#bars button:visible span").all_text_contents() == ["100.0 %"]
        page.locator("#temperature").focus()
        page.keyboard.press("End")
        page.wait_for_selector("#bars button:nth-child(3):visible")
        name = page.locator("#bars button code").nth(2).text_content()
        before = page.locator("#page span").count()
        page.locator("#bars button").nth(2).click()
        shown.wait_until(f"document.querySelectorAll('#page span').length === {before + 1}")
        assert page.locator("#page span").last.text_content() == {"␣": " ", "⏎": "\n"}.get(name, name)
        assert (shown.problems, shown.strangers) == ([], [])


def test_a_missing_file_is_named(browser: Any, explorers: Explorers, tmp_path: Path) -> None:
    broken = shutil.copytree(explorers.page("gan"), tmp_path / "broken")
    (broken / "onnx" / "generator_model.onnx").unlink()
    with opened(browser, broken, wait_for="#problem:not([hidden])") as shown:
        assert "onnx/generator_model.onnx is missing (status 404)" in shown.page.locator("#problem").text_content()

    (broken / "explorer.json").write_text(json.dumps({})[:1])
    with opened(browser, broken, wait_for="#problem:not([hidden])") as shown:
        assert "explorer.json is damaged" in shown.page.locator("#problem").text_content()
