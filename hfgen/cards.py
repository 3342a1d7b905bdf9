"""Model cards, written from what was measured.

    write_card("runs/vae-mnist")                    README.md of a run's folder
    write_card("runs/vae-mnist", "me/vae-mnist")    ... that names its repository

Everything in a card comes from the folder: results.json, config.json, the newest samples and the plot. A number that
was not measured is not on the card. The wording is in `model_cards/template_*.md` (Jinja), one file per architecture.
"""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hfgen.models import MODELS


@dataclass(frozen=True)
class Template:
    """The wording of an architecture's cards, and the header in the comment at its top.

    Attributes:
        path: of the file, a Jinja template.
        task: one of the Hub's tasks.
        tags: what people search for.
        columns: what README's table of results shows: (metric, label, format), the most important one first.
    """

    path: Path
    task: str
    tags: list[str]
    columns: list[tuple[str, str, str]]

    @property
    def task_name(self) -> str:
        return self.task.replace("-", " ").title()


# Metric -> name for people, what it says.
METRICS = {
    "elbo": ("ELBO", "evidence lower bound, nats per image; the log-likelihood is at least this; higher is better"),
    "nll": ("Negative log-likelihood", "importance-weighted estimate, nats per image; lower is better"),
    "bits_per_dim": ("Bits per dimension", "the negative log-likelihood in bits, for each pixel and channel"),
    "reconstruction_loss": ("Reconstruction loss", "what the decoder gets wrong; lower is better"),
    "kl_loss": ("KL", "divergence of the encoder's distribution from the prior, nats per image"),
    "mse": ("MSE", "mean squared error of a pixel in [0, 1]; lower is better"),
    "psnr": ("PSNR", "peak signal-to-noise ratio, dB; higher is better"),
    "auroc": ("AUROC", "chance that a strange image scores higher than a usual one; 0.5 is guessing"),
    "classifier_fid": (
        "Classifier FID",
        "Fréchet distance in the features of a small classifier of this dataset, not of Inception: compare it with "
        "values measured the same way only; lower is better",
    ),
    "precision": ("Precision", "share of generated images that lie among real ones"),
    "recall": ("Recall", "share of real images that lie among generated ones"),
    "density": ("Density", "how densely real images surround generated ones; about 1 for real images"),
    "coverage": ("Coverage", "share of real images with a generated one nearby"),
    "discriminator_accuracy": (
        "Discriminator accuracy", "share of images that the discriminator gets right; 0.5 means it cannot tell"
    ),
    "discriminator_accuracy_real": ("… on real images", "share of held-out images taken for real"),
    "discriminator_accuracy_fake": ("… on generated images", "share of generated images taken for generated"),
    "classifier_accuracy": (
        "Accuracy of the measuring classifier", "on real test images; how far the numbers resting on it can be trusted"
    ),
    "label_accuracy": ("Label accuracy", "share of generated images that the classifier puts into their class"),
    "loss": ("Loss", "cross-entropy, nats per token; lower is better"),
    "bits_per_char": ("Bits per character", "the loss in bits, for each character of the text; lower is better"),
    "perplexity": ("Perplexity", "exp(loss): as unsure as a choice among so many equally likely tokens"),
}  # fmt: skip

BUILT_IN_DATASETS = {
    "digits": "scikit-learn's 1,797 handwritten digits of 8 × 8 pixels",
    "python-docs": "the language reference that ships inside CPython",
}
TEMPLATE_HEADER = re.compile(r"{#\n(.*?)-#}", flags=re.DOTALL)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
REPO_LINE = re.compile(r'^repo = ".*"$', flags=re.MULTILINE)
SAMPLE_CHARACTERS = 600
LINE_LENGTH = 110


class CardError(ValueError):
    """A folder lacks what a card is written from; the message says what."""


def write_card(folder: str | Path, repo_id: str | None = None, results: dict[str, Any] | None = None) -> Path:
    """Writes README.md into the folder of a run, and replaces the one that was there.

    Args:
        folder: what a training left in `--output_dir`.
        repo_id: repository that the code in the card loads from; `--hub_model_id` or the folder's name if None.
        results: content of results.json of a run that is not finished.

    Raises:
        CardError: the folder holds no results or no config, or they are of no architecture of hfgen.
    """
    target = Path(folder) / "README.md"
    temporary = target.with_name(".README.md")
    temporary.write_text(render_card(folder, repo_id, results), encoding="utf-8")
    os.replace(temporary, target)
    return target


def render_card(folder: str | Path, repo_id: str | None = None, results: dict[str, Any] | None = None) -> str:
    """The text of [`write_card`]."""
    folder = Path(folder).resolve()
    results = _read_json(folder / "results.json") if results is None else results
    config = _read_json(folder / "config.json")
    if config.get("model_type") not in MODELS:
        raise CardError(
            f"{folder / 'config.json'}: model_type must be one of {', '.join(MODELS)}, got "
            f"{config.get('model_type')!r}. Cards are written for models of hfgen only."
        )
    template = load_template(config["model_type"])
    arguments = results.get("arguments", {})
    repo_id = repo_id or arguments.get("hub_model_id") or folder.name
    name = repo_id.rpartition("/")[2]
    values = {
        **_describe_model(config),
        **_describe_samples(folder),
        "name": name,
        "repo_id": repo_id,
        "config": config,
        "dataset": _dataset_in_words(results),
        "dataset_name": f"`{_short(results['dataset'])}`" if results.get("dataset") else "that dataset",
        "ema_decay": arguments.get("ema_decay"),
        "in_progress": results.get("finished") is False,
        "steps": results.get("steps"),
        "num_parameters": f"{results['num_parameters']:,}" if "num_parameters" in results else None,
        "results": _results_section(results),
        "training": _training_section(folder, config, results),
    }
    card = ModelCard.from_template(_metadata(name, template, results), template_path=str(template.path), **values)
    card.text = "\n" + _reflowed(card.text)
    return str(card)


def name_repository(card: str, repo_id: str) -> str:
    """A card whose code loads from this repository; everything else, whoever wrote it, stays as it is."""
    return REPO_LINE.sub(f'repo = "{repo_id}"', card)


def load_template(model_type: str) -> Template:
    """Finds the template of an architecture, in the installed package or beside it in a checkout."""
    name, package = f"template_{MODELS[model_type].family}.md", Path(__file__).parent
    for folder in (package / "model_cards", package.parent / "model_cards"):
        if (folder / name).is_file():
            header = TEMPLATE_HEADER.match((folder / name).read_text(encoding="utf-8"))
            if header is None:
                raise CardError(f"{folder / name} must begin with a comment that holds task, tags and columns.")
            return Template(folder / name, **yaml.safe_load(header[1]))
    raise CardError(f"The template {name} is missing, in {package} and beside it. Install hfgen again.")


def is_hub_id(name: str | None) -> bool:
    """True if a name can only mean something on the Hub: owner/name, and no such local path."""
    return bool(name and HUB_ID.fullmatch(name) and not Path(name).exists())


def _metadata(name: str, template: Template, results: dict[str, Any]) -> ModelCardData:
    arguments = results.get("arguments", {})
    dataset = results.get("dataset")
    base_model = arguments.get("model_name_or_path")
    tags = ["hfgen", *template.tags]
    if dataset in BUILT_IN_DATASETS:
        tags.append(str(dataset))
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=template.task,
        tags=tags,
        datasets=[str(dataset)] if is_hub_id(dataset) else None,
        base_model=base_model if is_hub_id(base_model) else None,
        model_name=name,
        eval_results=_eval_results(template, results) or None,
    )


def _eval_results(template: Template, results: dict[str, Any]) -> list[EvalResult]:
    arguments = results.get("arguments", {})
    dataset = results.get("dataset")
    if not dataset:
        return []
    return [
        EvalResult(
            task_type=template.task,
            task_name=template.task_name,
            dataset_type=dataset if is_hub_id(dataset) else _short(dataset),
            dataset_name=_short(dataset),
            dataset_config=arguments.get("dataset_config_name"),
            dataset_split=results.get("split"),
            dataset_revision=results.get("dataset_revision"),
            metric_type=metric,
            metric_name=METRICS.get(metric, (metric, ""))[0].replace("…", "Discriminator accuracy"),
            metric_value=round(value, 6),
        )
        for metric, value in _measured(results).items()
    ]


def _measured(results: dict[str, Any]) -> dict[str, float]:
    """The metrics that are numbers: what could not be measured is null in results.json."""
    metrics = results.get("metrics") or {}
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _describe_model(config: dict[str, Any]) -> dict[str, Any]:
    """What the templates say of a model beyond its config."""
    if "image_size" not in config:
        context = config["max_position_embeddings"]
        return {"max_new_tokens": max(1, context - 16 if context > 32 else context // 2)}
    height, width = config["image_size"]
    channels = config["num_channels"]
    num_labels = len(config.get("id2label") or {})
    latent_shape = [config["latent_dim"]]
    if config.get("latent_type") == "spatial":
        scale = 2 ** len(config["hidden_channels"])
        latent_shape += [height // scale, width // scale]
    return {
        "image_kind": f"{'grey' if channels == 1 else 'colour'} images of {height} × {width} pixels",
        "image_numbers": f"{channels * height * width:,}",
        "is_grey": channels == 1,
        "convert": '.convert("L")' if channels == 1 else "",
        "first_image": "images[0, 0]" if channels == 1 else "images[0].permute(1, 2, 0)",
        "latent_shape": latent_shape,
        "latent_numbers": f"{math.prod(latent_shape):,}",
        "num_labels": num_labels,
        "labels_argument": ", labels=labels" if num_labels else "",
    }


def _describe_samples(folder: Path) -> dict[str, Any]:
    """The newest samples: a picture to show, or a text to quote."""
    found: dict[str, Any] = {"sample_image": None, "sample_text": None, "vocabulary": "its own vocabulary"}
    images, texts = (sorted((folder / "samples").glob(f"step-*.{suffix}"), key=step_of) for suffix in ("png", "txt"))
    if images:
        found["sample_image"] = images[-1].relative_to(folder).as_posix()
    if texts:
        found["sample_text"] = _quoted(texts[-1].read_text(encoding="utf-8", errors="replace"))
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        content = _read_json(tokenizer)
        model = content.get("model", {})
        names = {*model.get("vocab", {}), *(token["content"] for token in content.get("added_tokens", []))}
        kind = "tokens" if model.get("merges") else "tokens, one for each character of the training text and each byte"
        found["vocabulary"] = f"{len(names):,} {kind}"
    return found


def _quoted(text: str) -> str:
    """A text as a block of Markdown that nothing in it can end."""
    if len(text) > SAMPLE_CHARACTERS:
        text = text[:SAMPLE_CHARACTERS].rstrip() + " …"
    text = "".join(character for character in text if character in "\n\t" or unicodedata.category(character)[0] != "C")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.strip(chr(10))}\n{fence}"


def _reflowed(markdown: str) -> str:
    """Paragraphs and list items in lines of one width, as values of any length were put in; all else as it is."""
    blocks, fence = [], None
    for block in re.split(r"\n{2,}", markdown.strip()):
        if fence is None:
            is_text = not block.startswith(("#", "|", "<", "!", "`" * 3))
            blocks.append("\n".join(_wrapped(part) for part in re.split(r"\n(?=- )", block)) if is_text else block)
        else:
            blocks[-1] += f"\n\n{block}"
        for line in block.splitlines():
            mark = re.match(r"`{3,}", line)
            if mark:
                fence = mark[0] if fence is None else None if line.strip() == fence else fence
    return "\n\n".join(blocks) + "\n"


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(" ".join(text.split()), LINE_LENGTH, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _dataset_in_words(results: dict[str, Any]) -> str:
    name = results.get("dataset")
    if not name:
        return "a dataset that was not recorded"
    if is_hub_id(name):
        return f"[{name}](https://huggingface.co/datasets/{name})"
    if name in BUILT_IN_DATASETS:
        return f"`{name}` ({BUILT_IN_DATASETS[name]})"
    return f"`{_short(name)}`"


def _short(dataset: str) -> str:
    """The last part of a local path; a file named input.txt is told by its folder."""
    if is_hub_id(dataset):
        return dataset
    path = Path(dataset)
    return path.parent.name if path.stem in ("input", "train", "data") and path.parent.name else path.name or dataset


def _results_section(results: dict[str, Any]) -> str:
    measured = _measured(results)
    if not measured:
        return "Nothing was measured yet."
    arguments = results.get("arguments", {})
    where = f"Measured on the split `{results['split']}` of " if results.get("split") else "Measured on "
    where += f"`{_short(results.get('dataset') or 'a dataset that was not recorded')}`"
    if results.get("dataset_revision"):
        where += f", revision `{results['dataset_revision']}`"
    if arguments.get("max_eval_samples"):
        where += f", of which {arguments['max_eval_samples']:,} examples at most were used"
    rows = []
    for name, value in measured.items():
        label, meaning = METRICS.get(name, (f"`{name}`", ""))
        if name == "reconstruction_loss" and results.get("model_type") == "hfgen_vae":
            meaning = "minus the expected log-likelihood given the latents, nats per image; lower is better"
        rows.append(f"| {label} | {_number(value)} | {meaning} |")
    return "\n".join([f"{where}.", "", "| Metric | Value | What it says |", "|---|---:|---|", *rows])


def _training_section(folder: Path, config: dict[str, Any], results: dict[str, Any]) -> str:
    parts = []
    if results.get("command"):
        parts += [f"```bash\n{results['command']}\n```"]
    recipe = {
        name: value
        # Runs of earlier releases have no recipe.
        for name, value in results.get("recipe", results.get("arguments", {})).items()
        if value is not None
    }
    if recipe:
        script = config["model_type"].removeprefix("hfgen_")
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()
        parts += [
            "<details>\n<summary>The whole recipe</summary>\n\nSaved as `recipe.yaml`, it is run by "
            f"`accelerate launch training/train_{script}.py recipe.yaml --output_dir {folder.name}`.\n\n"
            f"```yaml\n{text}\n```\n\n</details>"
        ]
    if (folder / "plots" / "loss.png").is_file():
        parts += ["![Losses over the steps of the training](plots/loss.png)"]
    rows = [f"| {name} | {value} |" for name, value in _conditions(results)]
    if rows:
        parts += ["\n".join(["| | |", "|---|---|", *rows])]
    return "\n\n".join(parts) or "How it was trained was not recorded."


def _conditions(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Length, machine and versions of a run, as far as they were recorded."""
    rows = []
    if "seconds_trained" in results:
        rows.append(("Time", f"{_duration(results['seconds_trained'])} of training"))
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
        rows.append(("Precision", "fp32" if precision == "no" else f"{precision} mixed with fp32"))
    if results.get("versions"):
        rows.append(("Versions", ", ".join(f"{name} {value}" for name, value in results["versions"].items())))
    return rows


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 120 else f"{hours:.1f} h"


def _number(value: float) -> str:
    """Four significant digits, never an exponent for what people read."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if abs(value) >= 1e-6 else f"{value:.2e}"


def step_of(path: Path) -> int:
    """Returns the N of `step-N`, a checkpoint or a file of samples; -1 for any other name."""
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdigit() else -1


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CardError(
            f"{path} is missing: expected the folder of a finished run, which holds results.json and config.json."
        ) from None
    except (OSError, ValueError) as error:
        raise CardError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CardError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content
