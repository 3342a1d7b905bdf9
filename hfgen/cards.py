"""Model cards, written from what was measured.

    write_card("runs/vae-mnist")                    README.md of a run's folder
    write_card("runs/vae-mnist", "me/vae-mnist")    ... that names its repository

Everything in a card comes from the folder: results.json, config.json, the newest samples and the plot. A number that
is not there is not in the card. The wording of each family, its place on the Hub and the metrics that stand for it
are in its Jinja template, `model_cards/template_FAMILY.md`.
"""

from __future__ import annotations

import math
import os
import re
import textwrap
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .convert.native import NATIVE_TYPES, config_in_words_of_hfgen
from .metrics import metric_named
from .model_folder import read_json, step_of
from .models import MODELS
from .notebook import NO_BUTTON, with_button, write_notebook
from .templates import find_template


BUILT_IN_DATASETS = {
    "digits": "scikit-learn's 1,797 handwritten digits of 8 × 8 pixels",
    "python-docs": "the language reference that ships inside CPython",
    "binarized-mnist": "MNIST in Larochelle's fixed binarization",
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_REPO_LINE = re.compile(r'^repo = ".*"$', flags=re.MULTILINE)
_TEMPLATE_HEADER = re.compile(r"\A\{#(.*?)-#\}", flags=re.DOTALL)
_SAMPLE_CHARACTERS = 600
_LINE_LENGTH = 110
_MOST_CLASSES = 20


class CardError(ValueError):
    """A card cannot be written; the message says why."""


@dataclass(frozen=True)
class Family:
    """What all cards of an architecture have in common: the YAML comment at the top of its template.

    Attributes:
        pipeline_tag: one of the Hub's tasks.
        tags: what people search for.
        headline_metrics: for tables of results: metric, label, format; first the one that people compare, among those
            that a run measures. A label may name a flag or a detail of the measurement in braces.
        meanings: metric -> what it says, where that differs from `hfgen.metrics.METRICS`.
    """

    pipeline_tag: str
    tags: list[str]
    headline_metrics: list[tuple[str, str, str]]
    meanings: dict[str, str] = field(default_factory=dict)


def read_family(model_type: str) -> Family:
    """What the cards of an architecture have in common.

    Raises:
        CardError: hfgen has no such architecture, or its template is missing or has no header.
    """
    path = _find_template(model_type)
    header = _TEMPLATE_HEADER.match(path.read_text(encoding="utf-8"))
    if header is None:
        raise CardError(f"{path} must begin with a comment {{# ... -#}} of YAML. See the other templates.")
    return Family(**yaml.safe_load(header[1]))


def headline(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The metrics that stand for a run, as names, labels and numbers: first the one that people compare.

    Args:
        results: content of results.json.
    """
    metrics, details, arguments = results["metrics"], results.get("metrics_details", {}), results.get("arguments", {})
    unit = "token" if arguments.get("train_bpe") or arguments.get("tokenizer_name") else "character"
    # The flag, in older results: all images had that many samples.
    numbers = {"nll_samples": "K", "unit": unit, **arguments, **details}
    shown = []
    for key, label, form in read_family(results["model_type"]).headline_metrics:
        if (value := metrics.get(key)) is None:
            continue
        error = details.get(f"{key}_standard_error")
        number = f"{value:{form}}" if error is None else format_with_error(value, error)
        shown.append((key, label.format_map(numbers), number))
    return shown


def write_card(folder: str | Path, repo_id: str | None = None, results: dict[str, Any] | None = None) -> Path:
    """Writes README.md into the folder of a run, and the notebook.ipynb that it links to, replacing earlier ones.

    Args:
        folder: what a training left in `--output_dir`.
        repo_id: repository that the code in the card loads from; `--hub_model_id` or the folder's name if None.
        results: content of results.json, for a run that has not finished.

    Raises:
        LoadError: results.json or config.json is missing or damaged.
        CardError: the model is none of hfgen's architectures.
    """
    target = Path(folder) / "README.md"
    temporary = target.with_name(".README.md")
    # A file name that is not UTF-8 contains what cannot be encoded.
    results = _read_of_run(target.with_name("results.json")) if results is None else results
    temporary.write_text(render_card(folder, repo_id, results), encoding="utf-8", errors="replace")
    write_notebook(folder, _repository(folder, repo_id, results))
    os.replace(temporary, target)
    return target


def render_card(folder: str | Path, repo_id: str | None = None, results: dict[str, Any] | None = None) -> str:
    """The text that [`write_card`] writes."""
    folder = Path(folder).resolve()
    results = _read_of_run(folder / "results.json") if results is None else results
    config, native_class = _read_of_run(folder / "config.json"), None
    if config.get("model_type") in NATIVE_TYPES:
        native_class, config = config["architectures"][0], config_in_words_of_hfgen(config)
    model_type = config.get("model_type", "")
    if model_type not in MODELS:
        raise CardError(
            f"The model_type in {folder / 'config.json'} must be one of {', '.join(MODELS)}, got {model_type!r}. "
            "Cards of other models have to be written by hand."
        )
    family = read_family(model_type)
    arguments = results.get("arguments", {})
    repo_id = _repository(folder, repo_id, results)
    name = repo_id.rpartition("/")[2]
    values = {
        **_describe_model(config),
        **_describe_samples(folder),
        "name": name,
        "repo_id": repo_id,
        "config": config,
        "native_class": native_class,
        "is_for_diffusers": (folder / "model_index.json").is_file(),
        "dataset": _describe_dataset(results),
        "dataset_name": f"`{short_dataset_name(results['dataset'])}`" if results.get("dataset") else "that dataset",
        "ema_decay": arguments.get("ema_decay"),
        "in_progress": results.get("finished") is False,
        "steps": results.get("steps"),
        "num_parameters": f"{results['num_parameters']:,}" if "num_parameters" in results else None,
        "results": _results_section(family, results),
        "details": results.get("metrics_details") or {},
        "training": _training_section(folder, MODELS[model_type].family, results),
    }
    card = ModelCard.from_template(
        _metadata(name, family, results), template_path=str(_find_template(model_type)), **values
    )
    # Below the title there is room for the button.
    title, _, text = _reflow(card.text).partition("\n")
    card.text = f"\n{title}\n\n{NO_BUTTON}\n{text}"
    return with_button(str(card), repo_id) if is_hub_id(repo_id) else str(card)


def name_repository(card: str, repo_id: str, has_notebook: bool = False) -> str:
    """The card with its code loading from this repository; everything else stays, whoever wrote it.

    Args:
        card: the text of a README.md.
        repo_id: owner/name.
        has_notebook: whether the repository holds the notebook.ipynb that the button opens in Colab. The card gets the
            button, in the place that [`write_card`] has left for it.
    """
    card = _REPO_LINE.sub(f'repo = "{repo_id}"', card)
    return with_button(card, repo_id) if has_notebook else card


def is_hub_id(name: str | None) -> bool:
    """True if a name can only refer to the Hub: it has the form owner/name, and there is no such path here."""
    return bool(name and _HUB_ID.fullmatch(name) and not Path(name).exists())


def short_dataset_name(dataset: str) -> str:
    """The name of a dataset among people: its Hub id, or the last part of a local path or URL.

    For a file named input.txt, train.txt or data.txt it is the folder.
    """
    if is_hub_id(dataset):
        return dataset
    path = Path(urlsplit(dataset).path if "://" in dataset else dataset)
    return path.parent.name if path.stem in ("input", "train", "data") and path.parent.name else path.name or dataset


def _repository(folder: str | Path, repo_id: str | None, results: dict[str, Any]) -> str:
    """What the code of card and notebook loads from."""
    return repo_id or results.get("arguments", {}).get("hub_model_id") or Path(folder).resolve().name


def newest_samples(folder: Path) -> dict[str, Path]:
    """The files that a run drew last: "samples" -> step-000500.png or .txt, NAME -> step-000500-NAME.png."""
    files = sorted((folder / "samples").glob("step-*"))
    newest = max(map(step_of, files), default=0)
    return {path.stem.partition("step-")[2].partition("-")[2] or "samples": path
            for path in files if step_of(path) == newest}  # fmt: skip


def _find_template(model_type: str) -> Path:
    """The template of an architecture."""
    if model_type not in MODELS:
        raise CardError(f"model_type must be one of {', '.join(MODELS)}, got {model_type!r}. Update hfgen.")
    return find_template(f"template_{MODELS[model_type].family}.md")


def _read_of_run(path: Path) -> dict[str, Any]:
    return read_json(path, "Name the folder of a finished run, which holds results.json and config.json.")


def _metadata(name: str, family: Family, results: dict[str, Any]) -> ModelCardData:
    arguments = results.get("arguments", {})
    dataset = results.get("dataset")
    base_model = arguments.get("model_name_or_path")
    tags = ["hfgen", *family.tags]
    if dataset in BUILT_IN_DATASETS:
        tags.append(str(dataset))
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=family.pipeline_tag,
        tags=tags,
        datasets=[str(dataset)] if is_hub_id(dataset) else None,
        base_model=base_model if is_hub_id(base_model) else None,
        model_name=name,
        eval_results=_eval_results(family, results) or None,
    )


def _eval_results(family: Family, results: dict[str, Any]) -> list[EvalResult]:
    arguments = results.get("arguments", {})
    dataset = results.get("dataset")
    if not dataset:
        return []
    return [
        EvalResult(
            task_type=family.pipeline_tag,
            task_name=family.pipeline_tag.replace("-", " ").title(),
            dataset_type=dataset if is_hub_id(dataset) else short_dataset_name(dataset),
            dataset_name=short_dataset_name(dataset),
            dataset_config=arguments.get("dataset_config_name"),
            dataset_split=results.get("split"),
            dataset_revision=results.get("dataset_revision"),
            metric_type=metric,
            metric_name=metric_named(metric).label.strip("`"),
            metric_value=round(value, 6),
        )
        for metric, value in _measured(results).items()
    ]


def _measured(results: dict[str, Any]) -> dict[str, float]:
    """The metrics that are numbers. (One that could not be measured is null in results.json.)"""
    metrics = results.get("metrics") or {}
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _describe_model(config: dict[str, Any]) -> dict[str, Any]:
    """Values for the templates that follow from the config."""
    if "image_size" not in config:
        return {}
    height, width = config["image_size"]
    channels = config["num_channels"]
    num_labels = len(config.get("id2label") or {})
    model_config = MODELS[config["model_type"]].config_class.from_dict(config)
    latent_shape = getattr(model_config, "latent_shape", (config["latent_dim"],))
    return {
        "image_kind": f"{'grayscale' if channels == 1 else 'color'} images of {height} × {width} pixels",
        "image_numbers": f"{channels * height * width:,}",
        "is_grayscale": channels == 1,
        "convert": '.convert("L")' if channels == 1 else "",
        "first_image": "images[0, 0]" if channels == 1 else "images[0].permute(1, 2, 0)",
        "latent_shape": latent_shape,
        "latent_numbers": f"{math.prod(latent_shape):,}",
        "num_labels": num_labels,
        "labels_argument": ", labels=labels" if num_labels else "",
    }


def _describe_samples(folder: Path) -> dict[str, Any]:
    """The newest samples, by name: images to show, or a text to quote."""
    samples = newest_samples(folder)
    images = {name: path.relative_to(folder).as_posix() for name, path in samples.items() if path.suffix == ".png"}
    found: dict[str, Any] = {"images": images, "sample_text": None, "vocabulary": "its own vocabulary"}
    if "samples" in samples and "samples" not in images:
        found["sample_text"] = _quoted(samples["samples"].read_text(encoding="utf-8", errors="replace"))
    film = folder / "samples" / "film.webp"
    found["film"] = film.relative_to(folder).as_posix() if film.is_file() else None
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        content = read_json(tokenizer)
        model = content.get("model", {})
        names = {*model.get("vocab", {}), *(token["content"] for token in content.get("added_tokens", []))}
        kind = (
            "tokens"
            if model.get("merges")
            else "tokens: one for each character of the training text, and one for each byte"
        )
        found["vocabulary"] = f"{len(names):,} {kind}"
    return found


def _quoted(text: str) -> str:
    """A text as a fenced block of Markdown that nothing in the text can close."""
    if len(text) > _SAMPLE_CHARACTERS:
        text = text[:_SAMPLE_CHARACTERS].rstrip() + " …"
    text = "".join(character for character in text if character in "\n\t" or unicodedata.category(character)[0] != "C")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.strip(chr(10))}\n{fence}"


def _reflow(markdown: str) -> str:
    """Rewraps paragraphs and list items, into which values of any length were inserted; leaves the rest as it is."""
    blocks, fence = [], None
    for block in re.split(r"\n{2,}", markdown.strip()):
        if fence is None:
            is_text = not block.startswith(("#", "|", "<", "!", "`" * 3))
            blocks.append("\n".join(_wrap(part) for part in re.split(r"\n(?=- )", block)) if is_text else block)
        else:
            blocks[-1] += f"\n\n{block}"
        for line in block.splitlines():
            mark = re.match(r"`{3,}", line)
            if mark:
                fence = mark[0] if fence is None else None if line.strip() == fence else fence
    return "\n\n".join(blocks) + "\n"


def _wrap(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(" ".join(text.split()), _LINE_LENGTH, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _describe_dataset(results: dict[str, Any]) -> str:
    name = results.get("dataset")
    if not name:
        return "a dataset that was not recorded"
    if is_hub_id(name):
        return f"[{name}](https://huggingface.co/datasets/{name})"
    if name in BUILT_IN_DATASETS:
        return f"`{name}` ({BUILT_IN_DATASETS[name]})"
    if "://" in name:
        return f"[{short_dataset_name(name)}]({name})"
    return f"`{short_dataset_name(name)}`"


def _results_section(family: Family, results: dict[str, Any]) -> str:
    measured = _measured(results)
    missing = explain_missing(results)
    if not measured:
        return "\n\n".join(["Nothing was measured.", *missing]) if missing else "Nothing was measured yet."
    arguments = results.get("arguments", {})
    where = f"Measured on the split `{results['split']}` of " if results.get("split") else "Measured on "
    where += f"`{short_dataset_name(results.get('dataset') or 'a dataset that was not recorded')}`"
    if results.get("dataset_revision"):
        where += f", revision `{results['dataset_revision']}`"
    if arguments.get("max_eval_samples"):
        where += f", of which {arguments['max_eval_samples']:,} examples at most were used"
    rows = [f"| {label} | {number} | {meaning} |" for label, number, meaning in explain_metrics(results, family)]
    table = "\n".join(["| Metric | Value | What it says |", "|---|---:|---|", *rows])
    explanations = [*_how_likelihood_was_measured(results), *_how_samples_were_measured(results)]
    return "\n\n".join([f"{where}.", table, *explanations, *_course_of_the_run(results), *missing])


def explain_metrics(results: dict[str, Any], family: Family) -> list[tuple[str, str, str]]:
    """Every metric that was measured: its label, its number and what it says.

    Args:
        results: content of results.json.
        family: of its model.
    """
    rows = []
    for name, value in _measured(results).items():
        metric = metric_named(name)
        error = (results.get("metrics_details") or {}).get(f"{name}_standard_error")
        number = _format_number(value) if error is None else format_with_error(value, error)
        rows.append((metric.label, number, family.meanings.get(name, metric.meaning)))
    return rows


def format_with_error(value: float, error: float) -> str:
    """A value and its standard error, such as 85.31 ± 0.03: with two decimals, or as many as the error begins with."""
    decimals = max(2, -math.floor(math.log10(error))) if error > 0 else 2
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _how_likelihood_was_measured(results: dict[str, Any]) -> list[str]:
    """A paragraph about the estimate of the likelihood, if there is one and results.json says how it was made."""
    details = results.get("metrics_details") or {}
    if "nll" not in _measured(results) or "nll_images" not in details:
        return []
    samples, images, others = (details[f"nll_{name}"] for name in ("samples", "images", "other_images"))
    text = f"The negative log-likelihood is the importance-weighted bound IW-{samples} "
    if others:
        few = details["nll_other_samples"]
        text += (
            f"on all {images + others:,} images, estimated: IW-{few} on all of them, plus the mean gain from {few} to "
            f"{samples} samples on images chosen at random, of which {images:,} have {samples} samples each. "
        )
    else:
        text += f"on all {images:,} images, each with {samples} samples. "
    took = format_duration(details["nll_seconds"])
    return [f"{text}The number after ± is the standard error due to this sampling. The estimate took {took}."]


def _how_samples_were_measured(results: dict[str, Any]) -> list[str]:
    """A paragraph about the classifier that measured generated images, and the histogram of their classes."""
    details = results.get("metrics_details") or {}
    if "classifier_sha256" not in details:
        return []
    learned = {
        "classes": "the classes of the dataset",
        "turns": "by how many quarter turns an image is turned",
        "reflections": "how an image is mirrored",
        "distortions": "whether an image is inverted, blurred or rearranged",
    }.get(details["classifier_task"], details["classifier_task"])
    images = details["compared_images"]
    text = (
        f"{images['generated']:,} generated images were compared with {images['real']:,} held-out ones in the "
        f"features of a small classifier, which learned {learned}. The SHA-256 of its weights begins with "
        f"`{details['classifier_sha256'][:12]}`; numbers measured with other weights do not compare."
    )
    if rows := details.get("class_histogram"):
        shares = ", ".join(f"{row['name']} {row['generated']:.1%} ({row['real']:.1%})" for row in rows[:_MOST_CLASSES])
        more = f", and {len(rows) - _MOST_CLASSES} others" if len(rows) > _MOST_CLASSES else ""
        return [text, f"Classes of generated images (of real ones): {shares}{more}."]
    return [text]


def _course_of_the_run(results: dict[str, Any]) -> list[str]:
    """Paragraphs about problems that the evaluations showed, why the run ended, and which state is published."""
    details = results.get("metrics_details") or {}
    parts = [f"During the training: {problem['text']}." for problem in details.get("problems") or []]
    if details.get("stop_reason"):
        parts.append(details["stop_reason"])
    if details.get("published_step") is not None:
        step, compared = details["published_step"], details.get("compared_states")
        best = "the best state that was seen"
        if compared:
            best = f"the best of {compared} states, all measured on examples of the split that the results are for"
        parts.append(f"The weights are those after step {step:,}, {best}.")
    return parts


def explain_missing(results: dict[str, Any]) -> list[str]:
    """A paragraph for each reason why metrics have no value."""
    reasons = results.get("metrics_missing") or {}
    labels = {name: metric_named(name).label for name in reasons}
    return [
        f"Not measured: {', '.join(labels[name] for name in reasons if reasons[name] == reason)} ({reason})."
        for reason in dict.fromkeys(reasons.values())
    ]


def _training_section(folder: Path, family: str, results: dict[str, Any]) -> str:
    parts = []
    if results.get("command"):
        parts += [f"```bash\n{results['command']}\n```"]
    # Older results have no recipe; their arguments also say where and how the run was started.
    recipe = results.get("recipe") or results.get("arguments") or {}
    recipe = {name: value for name, value in recipe.items() if value is not None}
    if recipe:
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()
        parts += [
            "<details>\n<summary>The whole recipe</summary>\n\nSave it as `recipe.yaml` and run "
            f"`hfgen train {family} recipe.yaml --output_dir {folder.name}`.\n\n"
            f"```yaml\n{text}\n```\n\n</details>"
        ]
    if (folder / "plots" / "loss.png").is_file():
        parts += ["![Losses over the steps of the training](plots/loss.png)"]
    rows = [f"| {name} | {value} |" for name, value in describe_conditions(results)]
    if rows:
        parts += ["\n".join(["| | |", "|---|---|", *rows])]
    return "\n\n".join(parts) or "How it was trained was not recorded."


def describe_conditions(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Length, hardware and versions of a run, as far as they were recorded."""
    rows = []
    if "seconds_trained" in results:
        wall = results.get("seconds_wall")
        with_all = f", {format_duration(wall)} with start, evaluation and samples" if wall else ""
        rows.append(("Time", f"{format_duration(results['seconds_trained'])} of training{with_all}"))
    if "steps" in results:
        skipped = f", {results['skipped_steps']} of them skipped" if results.get("skipped_steps") else ""
        rows.append(("Steps", f"{results['steps']:,}{skipped}"))
    if "examples_seen" in results:
        rows.append(("Examples seen", f"{results['examples_seen']:,}"))
    if "hardware" in results:
        processes = results.get("processes", 1)
        rows.append(("Hardware", results["hardware"] + (f", {processes} processes" if processes > 1 else "")))
    if "mixed_precision" in results:
        precision = results["mixed_precision"]
        words = "fp32" if precision == "no" else f"{precision} mixed with fp32"
        rows.append(("Precision", words + _reason(results, "mixed_precision")))
    choices = results.get("choices", {})
    if choices.get("attn_implementation"):
        rows.append(("Attention", choices["attn_implementation"] + _reason(results, "attn_implementation")))
    if "channels_last" in choices and not choices.get("attn_implementation"):
        layout = "channels last" if choices["channels_last"] else "channels first"
        rows.append(("Memory layout", layout + _reason(results, "channels_last")))
    if results.get("versions"):
        rows.append(("Versions", ", ".join(f"{name} {value}" for name, value in results["versions"].items())))
    return rows


def _reason(results: dict[str, Any], choice: str) -> str:
    """Why the run chose it, in parentheses."""
    reason = results.get("choices", {}).get("reasons", {}).get(choice)
    return f" ({reason})" if reason else ""


def format_duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 120 else f"{hours:.1f} h"


def _format_number(value: float) -> str:
    """Four significant digits, with an exponent only for tiny numbers."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if abs(value) >= 1e-6 else f"{value:.2e}"
