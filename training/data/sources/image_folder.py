"""Folders of images as datasets: splits and classes from the names of folders, or columns from a table of metadata."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterable
from typing import Any

from .layout import find_classes
from .local_files import TABLE_LOADERS, DataFile, LocalData, data_files


logger = logging.getLogger(__name__)
MASK_COLUMN = "mask"  # which pixels of an image are anomalous


def image_splits(local: LocalData) -> dict[str, Any]:
    """The splits of a folder of images, a `datasets.Dataset` each.

    They have a column `image`, and `label` if folders name classes; a split with masks in a folder `ground_truth` has
    `mask`, which is None for images without one. A `metadata.csv` (`.jsonl`, `.parquet`) with a
    column `file_name` replaces the classes by its own columns, as in the ImageFolder of `datasets`. Images that it
    does not name are left out, which is logged.

    Raises:
        ValueError: The metadata names none of the images.
    """
    import datasets

    metadata = [table for table in map(_read_table, local.metadata) if table is not None]
    if metadata:
        return _described(local, metadata)
    names, classes = find_classes(local.layout)
    if names:
        logger.info(
            "%d classes by the names of folders: %s.", len(names), ", ".join(names[:10]) + ", ..." * (len(names) > 10)
        )
    elif len({len(local.layout.folders[row]) for row in next(iter(local.layout.splits.values()))}) > 1:
        logger.warning("Folders name no classes because images of the training split lie at different depths.")
    splits = {}
    for split, rows in local.layout.splits.items():
        columns: dict[str, list[Any]] = {}
        features: dict[str, Any] = {}
        if names:
            columns["label"] = [classes[row] for row in rows]
            features["label"] = datasets.ClassLabel(names=names)
        splits[split] = _dataset(local, rows, columns, features)
    return splits


def _dataset(local: LocalData, rows: list[int], columns: dict[str, list[Any]], features: dict[str, Any]) -> Any:
    """Images, unread, and other columns beside them."""
    import datasets

    def paths(files: Iterable[int | None]) -> list[Any]:
        return [None if row is None else {"bytes": None, "path": str(local.files[row].path)} for row in files]

    columns, features = {"image": paths(rows), **columns}, {"image": datasets.Image(), **features}
    masks = [local.layout.mask_of.get(row) for row in rows]
    if any(mask is not None for mask in masks) and MASK_COLUMN not in columns:
        columns[MASK_COLUMN], features[MASK_COLUMN] = paths(masks), datasets.Image(decode=False)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _read_table(file: DataFile) -> tuple[DataFile, Any] | None:
    """A table of metadata; None if it is about something else, which is logged."""
    import datasets

    loader, options = TABLE_LOADERS[file.kind]
    table = datasets.load_dataset(loader, data_files={"train": data_files([file.path])}, split="train", **options)
    if "file_name" not in table.column_names:
        logger.warning("%s was left out because it has no column file_name.", file.path)
        return None
    return file, table


def _described(local: LocalData, metadata: list[tuple[DataFile, Any]]) -> dict[str, Any]:
    """The images that the metadata names, beside its columns, in its order."""
    import datasets

    row_of = {"/".join(file.place): row for row, file in enumerate(local.files)}
    named = [
        row_of.get(posixpath.normpath("/".join((*file.place[:-1], str(name)))))
        for file, table in metadata
        for name in table["file_name"]
    ]
    found = {row for row in named if row is not None}
    if not found:
        raise ValueError(f"The column file_name of {metadata[0][0].path} names none of the images.")
    _log_left_out(sum(row is None for row in named), len(named), "rows of the metadata", "no image is there")
    images = len(local.files)
    _log_left_out(images - len(found), images, "images", "no metadata names them")
    table = datasets.concatenate_datasets([table.remove_columns("file_name") for _, table in metadata])
    table = table.select_columns([column for column in table.column_names if column != "image"])
    splits = {}
    for split, rows in local.layout.splits.items():
        inside = found.intersection(rows)
        kept = [(number, row) for number, row in enumerate(named) if row is not None and row in inside]
        if kept:
            columns = table.select([number for number, _ in kept])[:] if table.column_names else {}
            splits[split] = _dataset(local, [row for _, row in kept], columns, dict(table.features))
    return splits


def _log_left_out(count: int, total: int, noun: str, reason: str) -> None:
    if count:
        logger.warning("%d of %d %s were left out because %s.", count, total, noun, reason)
