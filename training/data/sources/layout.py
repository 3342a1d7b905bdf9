"""What the places of a dataset's files say: which split each belongs to, and which class.

A place is the folders of a file, from the dataset's own folder down, and its name. Nothing here reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal


Place = tuple[str, ...]
SPLIT_WORDS = {  # those of `datasets`
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
GROUND_TRUTH_FOLDERS = {"ground_truth", "groundtruth"}
MASK_FOLDERS = {*GROUND_TRUTH_FOLDERS, "gt", "mask", "masks", "annotations", "labels"}
NORMAL_FOLDERS = {"good", "normal", "ok"}  # of MVTec AD and anomalib, of VisA, of BTAD
IMAGE_FOLDERS = {"image", "images", "img", "imgs"}  # what masks lie beside, unless it is the splits
_SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}")


@dataclass
class Layout:
    """Which files are in which split.

    Attributes:
        splits: Indices of the files, by the name of the split.
        left_out: Indices of the files in none, by the reason.
        folders: The folders of each file, without the one that names its split.
        mask_of: Index of the mask in `ground_truth`, by that of the image that it belongs to.
    """

    splits: dict[str, list[int]]
    left_out: dict[str, list[int]] = field(default_factory=dict)
    folders: list[Place] = field(default_factory=list)
    mask_of: dict[int, int] = field(default_factory=dict)


def find_splits(places: Sequence[Place], hold: Literal["images", "text", "tables"]) -> Layout:
    """Reads the splits out of the names of folders or else of files; without any, all files are `train`.

    A name counts only where all its neighbors agree: `train` among the classes `bus` and `car` is a class, and a
    picture called `val.png` is no validation split.

    Args:
        places: Of the files.
        hold: What the files hold. The name of a table tells its split by any of its words; that of an image or text
            only by the last one, and only if training and evaluation files are both there. Images may be masks of
            others, which belong to no split.
    """
    masks = _find_masks(places) if hold == "images" else {}
    without = {row for rows in masks.values() for row in rows}
    kept = [row for row in range(len(places)) if row not in without]
    layout = _splits_of([places[row] for row in kept], hold)
    folders = [place[:-1] for place in places]
    for row, folder in zip(kept, layout.folders):
        folders[row] = folder
    splits = {split: [kept[row] for row in rows] for split, rows in layout.splits.items()}
    left_out = {reason: [kept[row] for row in rows] for reason, rows in layout.left_out.items()}
    return Layout(splits, {**masks, **left_out}, folders, _match_masks(places, without, splits, folders))


def _splits_of(places: Sequence[Place], hold: Literal["images", "text", "tables"]) -> Layout:
    level = _split_level(places)
    if level is None:
        layout = _by_file_name([place[-1] for place in places], hold)
        layout.folders = [place[:-1] for place in places]
        return layout
    layout = _by_folder([place[level] if level < len(place) - 1 else None for place in places])
    layout.folders = [(*place[:level], *place[level + 1 : -1]) for place in places]
    return layout


def _find_masks(places: Sequence[Place]) -> dict[str, list[int]]:
    """Images that are masks of others, as in `ground_truth` beside `train` and `test`, or `masks` beside `images`."""
    beside: dict[Place, set[str]] = {}
    for place in places:
        for level, name in enumerate(place[:-1]):
            beside.setdefault(place[:level], set()).add(name)
    masks: dict[str, list[int]] = {}
    for row, place in enumerate(places):
        for level, name in enumerate(place[:-1]):
            if name.lower() not in MASK_FOLDERS:
                continue
            others = {other for other in beside[place[:level]] if other.lower() not in MASK_FOLDERS}
            if _has_masks(name, others):
                neighbors = " and ".join(in_natural_order(others))
                masks.setdefault(f"they lie in {name}, beside {neighbors}, and so are masks", []).append(row)
                break
    return masks


def _has_masks(name: str, others: set[str]) -> bool:
    """Whether a folder of that name holds the masks of images in the others."""
    if name.lower() in GROUND_TRUTH_FOLDERS:
        return bool(others)
    return bool(others) and all(other.lower() in IMAGE_FOLDERS or _split_of_folder(other) for other in others)


def _match_masks(
    places: Sequence[Place], masks: set[int], splits: dict[str, list[int]], folders: list[Place]
) -> dict[int, int]:
    """The mask of each evaluation image: `ground_truth/KIND/NAME_mask.png` or `NAME.png` for `test/KIND/NAME.png`."""
    found: dict[tuple[Place, str], int] = {}
    for row in masks:
        folder = tuple(name for name in places[row][:-1] if name.lower() not in GROUND_TRUTH_FOLDERS)
        if len(folder) < len(places[row]) - 1:
            found[folder, _stem(places[row]).removesuffix("_mask")] = row
    evaluated = [row for split in ("validation", "test") for row in splits.get(split, [])]  # test last: it wins
    image_of = {found[key]: row for row in evaluated if (key := (folders[row], _stem(places[row]))) in found}
    return {image: mask for mask, image in image_of.items()}


def _stem(place: Place) -> str:
    return place[-1].rpartition(".")[0]


def find_classes(layout: Layout) -> tuple[list[str], list[int | None]]:
    """The classes that the folders name, and the class of each file.

    Folders name classes where there are several at one depth, the same for all files of the training split, or where
    a single one has a name such as `good`. Files of another split at another depth have no class.

    Returns:
        The names, in natural order, and for each file the index of its class, or None. No names if there are none.
    """
    depths = {split: {len(layout.folders[row]) for row in rows} for split, rows in layout.splits.items()}
    reference = depths.get("train") or next(iter(depths.values()), set())
    if len(reference) != 1:
        return [], [None] * len(layout.folders)
    (depth,) = reference
    rows = [row for split, rows in layout.splits.items() if depths[split] == reference for row in rows]
    for level in reversed(range(depth)):
        names = in_natural_order({layout.folders[row][level] for row in rows})
        if len(names) > 1 or (level == depth - 1 and NORMAL_FOLDERS.issuperset(name.lower() for name in names)):
            index_of = {name: index for index, name in enumerate(names)}
            classes: list[int | None] = [None] * len(layout.folders)
            for row in rows:
                classes[row] = index_of[layout.folders[row][level]]
            return names, classes
    return [], [None] * len(layout.folders)


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Sorted, with the numbers in them in the order of numbers: 2 before 10."""
    return sorted(names, key=lambda name: (_natural_key(name), name))


def _natural_key(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", name)
    numbers = [part.isdecimal() for part in parts]
    return [(not number, int(part) if number else 0, part) for part, number in zip(parts, numbers) if part]


def _split_level(places: Sequence[Place]) -> int | None:
    """The depth of the folders that name splits; None if there are none."""
    for level in range(max((len(place) for place in places), default=1) - 1):
        inside = [place for place in places if len(place) - 1 > level]
        if level and 2 * len(inside) < len(places):
            return None
        if _are_splits(inside, level):
            return level
    return None


def _are_splits(places: Sequence[Place], level: int) -> bool:
    names = {place[level] for place in places}
    splits = {name: _split_of_folder(name) for name in names}
    found = set(splits.values()) - {None}
    if not found:
        return False
    if None not in splits.values():
        return len(found) > 1 or names.issubset(_exact(names))
    # Folders beside the splits, as for unlabeled images, not classes that happen to be called train and test: splits
    # hold folders themselves.
    nested = all(len(place) - 1 > level + 1 for place in places if splits.get(place[level]))
    return "train" in found and len(found) > 1 and nested


def _exact(names: set[str]) -> set[str]:
    return {name for name in names if name.lower() in SPLIT_WORDS}


def _split_of_folder(name: str) -> str | None:
    words = {SPLIT_WORDS[word] for word in _words(name) if word in SPLIT_WORDS}
    return words.pop() if len(words) == 1 else None


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-._ 0-9]+", name.lower()) if word]


def _by_folder(names: Sequence[str | None]) -> Layout:
    splits = [None if name is None else _split_of_folder(name) for name in names]
    layout = _grouped(splits)
    folders = sorted({name for name, split in zip(names, splits) if name and split})
    beside = " and ".join(folders)
    if "train" in layout.splits:
        reason = f"they lie beside the folders {beside}, which are the splits"
        _leave_out(layout, reason, [row for row, name in enumerate(names) if name is None])
    else:  # pictures beside a folder called test
        loose = [row for row, name in enumerate(names) if name is None]
        layout.splits = {**({"train": loose} if loose else {}), **layout.splits}
    for other in sorted({name for name, split in zip(names, splits) if name and not split}):
        rows = [row for row, name in enumerate(names) if name == other]
        _leave_out(layout, f"they lie in {other}, beside the folders {beside}, which are the splits", rows)
    return layout


def _by_file_name(names: Sequence[str], hold: Literal["images", "text", "tables"]) -> Layout:
    everything = Layout({"train": list(range(len(names)))})
    if hold == "tables":
        shards = [_SHARD.match(name) for name in names]
        if all(shards):
            return _grouped([shard["split"] for shard in shards if shard])
    splits = [_split_of_file(name, hold) for name in names]
    found = set(splits) - {None}
    told = "train" in found and (None not in splits or len(found) > 1)
    if not found or (hold != "tables" and not told):
        return everything
    if "train" not in found:  # cats.csv and cats_test.csv
        return _grouped([split or "train" for split in splits])
    layout = _grouped(splits)
    rest = [row for row, split in enumerate(splits) if split is None]
    _leave_out(layout, "they lie beside files whose names tell their splits, and their own tell none", rest)
    return layout


def _split_of_file(name: str, hold: Literal["images", "text", "tables"]) -> str | None:
    words = _words(name.removesuffix(".gz"))[:-1]  # without the suffix
    telling = words if hold == "tables" else words[-1:]
    return next((SPLIT_WORDS[word] for word in telling if word in SPLIT_WORDS), None)


def _grouped(splits: Sequence[str | None]) -> Layout:
    """Indices by split, training first and evaluation after it, whatever their order."""
    found = sorted({split for split in splits if split}, key=lambda split: (split != "train", split))
    return Layout({name: [row for row, split in enumerate(splits) if split == name] for name in found})


def _leave_out(layout: Layout, reason: str, rows: list[int]) -> None:
    if rows:
        layout.left_out[reason] = rows
