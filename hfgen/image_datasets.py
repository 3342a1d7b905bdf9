"""Datasets of images by their name: on the Hub, in a folder, or files of images or tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image


INSTALL = "Run: pip install 'hfgen[embedding]'"
TABLES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json", ".arrow": "arrow"}


def open_dataset(
    data: Sequence[str], split: str | None, config_name: str | None, revision: str | None, streaming: bool
) -> dict[str, Any]:
    """The splits that were asked for, unread."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"Reading images needs the package datasets, which is not installed. {INSTALL}") from None

    missing = [name for name in data if (len(data) > 1 or _looks_local(name)) and not Path(name).expanduser().exists()]
    if missing:
        raise ValueError(f"DATA must exist, got {missing[0]!r}, which is no file or folder. Check its spelling.")
    paths = [str(Path(name).expanduser()) if _looks_local(name) else name for name in data]
    first = Path(paths[0])
    if len(paths) > 1 or first.is_file():
        opened = _open_files([Path(path) for path in paths], split, streaming)
    elif (first / "state.json").is_file() or (first / "dataset_dict.json").is_file():
        with _in_words(data):
            opened = datasets.load_from_disk(paths[0])
    else:
        with _in_words(data):
            opened = datasets.load_dataset(paths[0], config_name, split=split, revision=revision, streaming=streaming)
    if not isinstance(opened, dict):
        return {split or str(opened.split or "train"): opened}
    if split is None:
        return dict(opened)
    if split not in opened:
        raise ValueError(f"--split must be a split of the dataset ({', '.join(opened)}), got {split!r}.")
    return {split: opened[split]}


def _open_files(paths: list[Path], split: str | None, streaming: bool) -> Any:
    """Files of images, or of tables of one kind."""
    import datasets

    kinds, names = {path.suffix.lower() for path in paths}, [str(path) for path in paths]
    loaders = {TABLES.get(kind, "") for kind in kinds}
    if len(loaders) == 1 and "" not in loaders:
        with _in_words(names):
            split = split or "train"
            return datasets.load_dataset(loaders.pop(), data_files=names, split=split, streaming=streaming)
    unknown = sorted(kinds - set(PIL.Image.registered_extensions()))
    if unknown:
        raise ValueError(
            f"DATA must be files of images, or of tables of one kind ({', '.join(TABLES)}), got {', '.join(unknown)} "
            "among them. Leave those out."
        )
    if split is not None:
        raise ValueError(f"--split must be left out for files of images, got {split!r}.")
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": names}, features=features)


@contextmanager
def _in_words(data: Sequence[str]) -> Iterator[None]:
    """Says which dataset an error is about. Those of `datasets` are of many classes, and some name no dataset."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        text = " ".join(str(cause).split())[:300].rstrip(".")
        raise ValueError(
            f"DATA must be a dataset on the Hub, a folder, or files of images or tables, got {', '.join(data[:3])}: "
            f"{text}. Check its name, --split and --dataset_config_name."
        ) from error


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def image_column(features: Any, wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"--image_column must be one of {', '.join(features)}, got {wanted!r}.")
        return wanted
    images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if len(images) != 1:
        raise ValueError(
            f"DATA must have one column of images, got {len(images)} among {', '.join(features) or 'its columns'}. "
            "Name one with --image_column."
        )
    return images[0]
