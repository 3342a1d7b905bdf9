"""From a model's folder to the folder of its explorer, which any server of static files can serve.

    index.html  *.css  *.js            the page
    onnx/                              the networks, as `hfgen export` writes them
    runtime/                           onnxruntime-web
    explorer.json                      what the page has to know
    pictures.png  latents.bin          stored pictures in one, and their latents as float32, if there are any
    README.md                          the card of a static Space on the Hub

The page reads explorer.json first: its view, its files, and what that view has to know.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cards import is_hub_id
from ..export import export_folder
from ..model_folder import read_json
from ..models import MODELS
from ..new_folder import new_folder
from .latent_space import find_directions, find_plane, find_sensitive_directions
from .runtime import NETWORK_ORIGIN, VERSION, Runtime, place_runtime
from .space import render_card
from .stored_pictures import COLUMNS, StoredPictures, draw_pictures, find_images, read_pictures
from .strangeness import describe_strangeness
from .text import describe_text


PAGE = Path(__file__).with_name("page")
MANIFEST = "explorer.json"
# Family -> view of the page, and its networks: name there -> name of the export.
VIEWS: dict[str, tuple[str, dict[str, str]]] = {
    "autoencoder": ("latents", {"decoder": "decoder_model", "encoder": "encoder_model", "anomaly": "anomaly_model"}),
    "vae": ("latents", {"decoder": "decoder_model", "encoder": "encoder_model", "prior": "prior_model"}),
    "ladder_vae": ("latents", {"decoder": "decoder_model", "encoder": "encoder_model"}),
    "gan": ("generator", {"generator": "generator_model"}),
    "gpt": ("text", {"model": "model"}),
}
_INK = 0.15  # how different from the background a pixel is that belongs to what a picture shows


def write_explorer(
    source: str | Path,
    target: str | Path,
    *,
    name: str | None = None,
    images: Sequence[str] | None = None,
    split: str | None = None,
    prompt: str | None = None,
    dtype: str = "fp32",
    runtime: Path | None = None,
) -> dict[str, Any]:
    """Writes the explorer of a model.

    Args:
        source: a checked folder of a model. No code in it is run.
        target: a new or empty folder, which appears only once everything is there.
        name: what the model is called: a repository on the Hub, or a folder, which is the default.
        images: pictures for the map of an Auto-Encoder or VAE, as for [`hfgen.demo.stored_pictures.read_pictures`].
            None for those that the model was evaluated on, if they are at hand, else pictures of its own.
        split: of the images.
        prompt: what the text of a GPT begins with at first.
        dtype: of the weights, "fp32" or "int8".
        runtime: a folder with onnxruntime-web; fetched by npm if None.

    Returns:
        What is in explorer.json.

    Raises:
        ExportError, RuntimeMissingError: the networks or the runtime cannot be had.
        ValueError: this kind of model has no explorer, an argument does not fit it, or the target is not empty.
    """
    source = Path(source)
    entry = MODELS.get(read_json(source / "config.json").get("model_type", ""))
    if entry is None or entry.family not in VIEWS:
        raise ValueError(
            f"MODEL must be one of {', '.join(VIEWS)}, got {entry.family if entry else 'an unknown kind'}. Others "
            "have no explorer."
        )
    if images is not None and VIEWS[entry.family][0] != "latents":
        raise ValueError(f"--images must be left out, got {images[0]!r}. A {entry.title} does not read images.")
    name = name or source.resolve().name
    with new_folder(target, "--output") as staging:
        manifest = export_folder(source, staging, [dtype], name)
        about = _describe(source, manifest, name, dtype)
        if about["view"] == "text":
            about["text"] = describe_text(source, manifest, prompt)
        else:
            about |= _describe_images(staging, source, manifest, images, split)
        write_page(staging, about, place_runtime(staging, runtime))
        (staging / "README.md").write_text(render_card(about, name), encoding="utf-8")
    return about


def _describe(source: Path, manifest: dict[str, Any], name: str, dtype: str) -> dict[str, Any]:
    """What every page has to know."""
    view, networks = VIEWS[manifest["family"]]
    files = [
        {"name": short, "words": f"the {short}", **_file(manifest["graphs"][long]["files"][dtype])}
        for short, long in networks.items() if long in manifest["graphs"]
    ]  # fmt: skip
    return {
        "format": 1,
        "title": name if is_hub_id(name) else source.resolve().name,
        "kind": f"{manifest['title']} · explorer",
        "family": manifest["family"],
        "view": view,
        "lead": _lead(manifest),
        "files": files,
        "footer": f"The model runs in this browser, by onnxruntime-web {VERSION}. Nothing you do here leaves it.",
    }


def _file(entry: dict[str, Any]) -> dict[str, Any]:
    return {"path": entry["path"], "bytes": entry["bytes"]}


def _lead(manifest: dict[str, Any]) -> str:
    if manifest["family"] == "gpt":
        return (
            "It writes from left to right: it reads what is there, weighs what may follow, and draws one of it. The "
            "color says how little it expected what came."
        )
    height, width = manifest["image_size"]
    numbers = f"{int(np.prod(manifest['latent_shape'])):,} numbers"
    if manifest["family"] == "gan":
        return (
            f"A generator turns {numbers} drawn at random into a picture of {width} × {height} pixels. It has learned "
            "to do so by deceiving a critic that had seen real ones."
        )
    return (
        f"{numbers} stand for a picture of {width} × {height} pixels. Drag on the map, and the decoder draws what "
        "lies there; draw something yourself, and the encoder finds its place."
    )


def _describe_images(
    folder: Path, source: Path, manifest: dict[str, Any], images: Sequence[str] | None, split: str | None
) -> dict[str, Any]:
    """What a page of images has to know; writes stored pictures."""
    model_class: Any = MODELS[manifest["model_type"]].base_model_class
    model = model_class.from_pretrained(source, dtype=torch.float32).eval()
    height, width = manifest["image_size"]
    common = {
        "image": {"channels": manifest["num_channels"], "height": height, "width": width},
        "latent_shape": manifest["latent_shape"],
        "classes": manifest["class_names"],
        "conditional": bool(manifest["num_classes"]),
    }
    if manifest["family"] == "gan":
        return {**common, "truncation": "Truncation", "directions": _sensitive(model, manifest).describe()}
    found = (list(images), split) if images is not None else find_images(source)
    if found is None and manifest["sampling"] is None:
        raise ValueError(
            f"--images must be given for an {manifest['title']}, whose latents have no known distribution: a dataset, "
            "or a folder or files of images like those that it was trained on."
        )
    stored = draw_pictures(model, manifest["class_names"]) if found is None else read_pictures(model, source, *found)
    return common | _describe_stored(folder, model, manifest, stored)


def _sensitive(model: Any, manifest: dict[str, Any]) -> Any:
    def decode(latents: Tensor) -> Tensor:
        labels = torch.arange(len(latents)) % manifest["num_classes"] if manifest["num_classes"] else None
        # The same class on both sides of a difference, and every class in turn.
        return model(latents, labels)

    return find_sensitive_directions(decode, int(np.prod(manifest["latent_shape"])))


def _describe_stored(folder: Path, model: Any, manifest: dict[str, Any], stored: StoredPictures) -> dict[str, Any]:
    stored.sheet().save(folder / "pictures.png", optimize=True)
    stored.latents.astype("<f4").tofile(folder / "latents.bin")
    plane = find_plane(stored.latents, stored.labels)
    classes = stored.class_names or manifest["class_names"]
    return {
        "classes": classes,
        "center": [float(f"{value:.6g}") for value in stored.latents.mean(axis=0)],
        "map": {**plane.axes.describe(), "extent": plane.extent, "words": f"{stored.words}. {plane.words}"},
        "directions": find_directions(stored.latents, plane).describe(),
        "has_prior": manifest["sampling"] is not None,
        "pictures": {
            "columns": COLUMNS,
            "count": len(stored.latents),
            "labels": None if stored.labels is None else stored.labels.tolist(),
        },
        "stored_files": [
            {"name": "pictures", "words": "stored pictures", "path": "pictures.png"},
            {"name": "latents", "words": "their latents", "path": "latents.bin"},
        ],
        "drawing": describe_drawing(stored, classes),
        "strangeness": _strangeness(model, manifest, stored),
    }


@torch.no_grad()
def _strangeness(model: Any, manifest: dict[str, Any], stored: StoredPictures) -> dict[str, Any]:
    latents = torch.from_numpy(stored.latents).view(-1, *manifest["latent_shape"])
    classes = {"labels": torch.tensor(stored.labels)} if manifest["num_classes"] else {}
    decoded = model.decode(latents, **classes)
    reconstruction = decoded if isinstance(decoded, Tensor) else decoded[0]
    return describe_strangeness(model, stored.pixel_values, reconstruction, stored.are_real)


def describe_drawing(stored: StoredPictures, classes: list[str]) -> dict[str, Any]:
    """How to make a drawing like the stored pictures: their background, and, in gray pictures on an even background,
    how large what they show is and where its middle lies."""
    pixels = stored.pixel_values.mean(dim=1)
    height, width = pixels.shape[1:]
    border = torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], dim=1)
    background = float(border.median())
    ink = (pixels - background).abs()
    drawn = ink > _INK
    is_even = stored.pixel_values.shape[1] == 1 and float(((border - background).abs() > _INK).float().mean()) < 0.4
    extent, middle = None, [0.5, 0.5]
    visible = drawn.flatten(1).any(dim=1)
    if is_even and visible.any():
        ink, drawn = ink[visible] * drawn[visible], drawn[visible]
        sides = torch.stack([drawn.any(dim=1).sum(dim=1), drawn.any(dim=2).sum(dim=1)]).amax(dim=0)
        extent = float(sides.float().median()) / max(height, width)
        mass = ink.sum(dim=(1, 2))
        across = (ink.sum(dim=1) * (torch.arange(width) + 0.5)).sum(dim=1) / mass / width
        down = (ink.sum(dim=2) * (torch.arange(height) + 0.5)).sum(dim=1) / mass / height
        middle = [float(across.mean()), float(down.mean())]
    are_digits = bool(classes) and all(name.isdecimal() and len(name) == 1 for name in classes)
    return {
        "title": "Draw a digit" if are_digits else "Draw, or open a picture",
        "background": round(background),
        "extent": extent,
        "middle": middle,
    }


def write_page(folder: Path, about: dict[str, Any], runtime: Runtime) -> None:
    """Copies the page, and writes explorer.json."""
    for file in PAGE.iterdir():
        if file.suffix in (".html", ".css", ".js"):
            shutil.copyfile(file, folder / file.name)
    (folder / "look.css").write_bytes((files("hfgen") / "look.css").read_bytes())
    if not runtime.is_local:
        index = (folder / "index.html").read_text(encoding="utf-8")
        for directive in ("script-src 'self'", "connect-src 'self'"):
            index = index.replace(directive, f"{directive} {NETWORK_ORIGIN}")
        (folder / "index.html").write_text(index, encoding="utf-8")
        about["footer"] += f" The runtime comes from {NETWORK_ORIGIN}, so this page needs the network."
    about["runtime"] = {"script": runtime.script, "wasm": runtime.wasm, "bytes": runtime.size}
    for file in about.pop("stored_files", []):
        about["files"].append({**file, "bytes": (folder / file["path"]).stat().st_size})
    (folder / MANIFEST).write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")
