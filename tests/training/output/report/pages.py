"""Folders of runs as a page finds them, and pages as a browser reads them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image


HOSTILE = "<script>alert('x')</script>\"'&"
CARD = """---
license: apache-2.0
---

# vae-digits

A model of [`digits`](https://example.org/digits), **nothing** else.
It is small.

## Use

```python
model = AutoModel.from_pretrained("me/vae")  # 1 < 2
```

# not the name

Not the lead.
"""


# Elements without an end.
EMPTY = {"meta", "link", "img", "input", "br", "line", "polyline", "circle"}


class Page(HTMLParser):
    """The elements of a page.

    Attributes:
        elements: (tag, attributes), in order.
        headings: text of each h1, h2 and h3.
        text: of the body, without styles and scripts.
    """

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[str] = []
        self.text, self.open = "", []  # type: ignore[var-annotated]
        self.feed(html)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in EMPTY:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:  # a browser writes ends even to those
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"h1", "h2", "h3"} & {*self.open}:
            self.headings[-1] += data.strip()
        if not {"style", "script", "title"} & {*self.open}:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def results(**changes: Any) -> dict[str, Any]:
    """What results.json says of a small VAE."""
    return {
        "model_type": "hfgen_vae", "dataset": "digits", "split": "test", "metrics": {"elbo": -26.5, "kl_loss": 3.25},
        "num_parameters": 12345, "steps": 20, "seconds_trained": 12.0, "hardware": "2 threads of a machine",
        "command": "hfgen train vae --output_dir vae-digits", **changes,
    }  # fmt: skip


def write_run(folder: Path, pictures: tuple[str, ...] = ("reconstructions", "interpolation", "map")) -> Path:
    """A run of a VAE with samples after two steps."""
    (folder / "samples").mkdir(parents=True)
    for step in (10, 20):
        Image.new("L", (40, 30), step).save(folder / "samples" / f"step-{step:06d}.png")
    for name in pictures:
        Image.new("RGB", (60, 30), "red").save(folder / "samples" / f"step-000020-{name}.png")
    lines = [{"step": step, "loss": 30.0 - step, "learning_rate": 0.1 / step} for step in (5, 10, 20)]
    evaluations = [{"step": step, "eval_elbo": step - 40.0} for step in (10, 20)]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *evaluations])
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder
