"""report.html, the page of a finished run, put together from the run's folder and its model."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup, escape

from hfgen import __version__
from hfgen.cards import describe_conditions, explain_metrics, explain_missing, headline, newest_samples, read_family
from hfgen.models import MODELS
from hfgen.notebook import without_button

from ...data.sources.splits import one_line
from ...data.text import TextData
from ...evaluation.evaluate import evaluation_mode
from ...objective import Objective
from .curves import draw_curve, read_curves
from .drawings import REAL_IMAGES, Ways, draw_real_images, draw_ways
from .pictures_in_page import Embedded, embed, read_film
from .surprise import Piece, measure_surprise
from .words import DECODED, PICTURES, SAMPLES, Words


logger = logging.getLogger(__name__)
PAGE = "report.html"
HERE = Path(__file__).parent
LOOK = files("hfgen") / "look.css"
SURPRISE_TOKENS = 1000
# The color of a piece of text is as strong as it gets from this surprise on.
MOST_BITS = 8
HEADLINES = 4


@dataclass
class Figure:
    """A picture and its words."""

    words: Words
    picture: Embedded


@dataclass
class Drawn:
    """What the page shows that only the model or its data can give; None or empty if there is no such thing."""

    real_images: Embedded | None = None
    ways: Ways | None = None
    surprise: list[Piece] = field(default_factory=list)


def write_report(output_dir: Path, results: dict[str, Any], objective: Objective[Any], model: Any) -> Path | None:
    """Writes the page into the folder of a run, whose card, samples and metrics.jsonl are there already.

    The random numbers of training do not change. A failure is a warning, and leaves no page.

    Args:
        output_dir: of the run.
        results: content of results.json.
        objective: has the data, and the primary metric.
        model: the finished one, whole.

    Returns:
        the page's path, or None after a failure.
    """
    target, temporary = output_dir / PAGE, output_dir / f".{PAGE}"
    try:
        target.unlink(missing_ok=True)  # of an earlier end of the run
        with torch.no_grad(), torch.random.fork_rng(), evaluation_mode(model):
            drawn = _draw(objective, model)
        text = render_report(output_dir, results, objective.primary_metric, drawn)
        temporary.write_text(text, encoding="utf-8", errors="replace")
        os.replace(temporary, target)
    except Exception as error:
        logger.warning("%s was not written: %s: %s", PAGE, type(error).__name__, one_line(error))
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        return None
    return target


def _draw(objective: Objective[Any], model: Any) -> Drawn:
    """Draws what the samples of the run do not hold. A part that fails is left out with a warning."""
    drawn = Drawn()
    try:
        if isinstance(objective.data, TextData):
            data = objective.data
            tokens = data.eval_tokens[: SURPRISE_TOKENS + 1]
            drawn.surprise = measure_surprise(model, tokens, data.tokenizer, data.context)
        else:
            batch = next(iter(objective.data.eval_batches(REAL_IMAGES, model.device, limit=REAL_IMAGES)))
            if MODELS[model.config.model_type].samples == "images":
                drawn.real_images = embed(draw_real_images(batch["pixel_values"]))
            drawn.ways = draw_ways(model, batch)
    except Exception as error:
        logger.warning("A part of %s is left out: %s: %s", PAGE, type(error).__name__, one_line(error))
    return drawn


def render_report(folder: Path, results: dict[str, Any], primary_metric: str, drawn: Drawn) -> str:
    """Returns the page as HTML. All text in it is escaped, and its only script is report.js, by its hash.

    Args:
        folder: of the run; what is missing in it is missing on the page.
        results: content of results.json.
        primary_metric: the curve that comes first.
        drawn: what the model drew for the page.
    """
    architecture = MODELS[results["model_type"]]
    card, script = _read(folder / "README.md"), _read(HERE / "report.js")
    film, film_length = read_film(folder)
    curves = read_curves(_read(folder / "metrics.jsonl"), primary_metric)
    figures = _find_figures(folder, drawn.ways is not None)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.jinja").render(
        name=folder.resolve().name,
        family=architecture.title,
        lead=_as_html(_lead(card)),
        style=Markup(LOOK.read_text(encoding="utf-8") + _read(HERE / "report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        headlines=headline(results)[:HEADLINES],
        film=film,
        film_length=film_length,
        film_words=SAMPLES.get(architecture.samples, DECODED),
        real_images=drawn.real_images,
        ways=drawn.ways,
        ways_picture=embed(drawn.ways.picture) if drawn.ways else None,
        figures=figures,
        surprise=drawn.surprise,
        most_bits=MOST_BITS,
        curves=[(curve, draw_curve(curve)) for curve in curves],
        metrics=[
            (label.strip("`"), number, meaning)
            for label, number, meaning in explain_metrics(results, read_family(results["model_type"]))
        ],
        missing=[reason.replace("`", "") for reason in explain_missing(results)],
        snippet=_snippet(card),
        command=results.get("command"),
        conditions=describe_conditions(results),
        parameters=results.get("num_parameters"),
        version=__version__,
    )


def _find_figures(folder: Path, has_ways: bool) -> list[Figure]:
    """The newest pictures besides the samples, in the order of `PICTURES`. Others come last, under their own names."""
    found = {name: path for name, path in newest_samples(folder).items() if path.suffix == ".png"}
    found.pop("samples", None)
    if has_ways:  # which show the same, and move
        found.pop("interpolation", None)
    names = [*(name for name in PICTURES if name in found), *(name for name in found if name not in PICTURES)]
    other = {name: Words(name.replace("-", " ").capitalize(), "", name.replace("-", " ")) for name in names}
    return [Figure({**other, **PICTURES}[name], embed(found[name])) for name in names]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _lead(card: str) -> str:
    """The first paragraph of a card: what the model is."""
    found = re.search(r"^# [^\n]*\n\s*(.+?)(?:\n\n|\Z)", without_button(card), re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _snippet(card: str) -> str:
    """The first Python code of a card: how to load and use the model."""
    found = re.search(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def _as_html(markdown: str) -> Markup:
    """A paragraph without its links, with its code and strong words."""
    text = str(escape(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)))
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", text)
    return Markup(re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", text))
