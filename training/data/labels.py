"""The class labels of images, whatever their form: found, named and numbered."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .sources.layout import in_natural_order
from .sources.splits import one_line


logger = logging.getLogger(__name__)
LABEL_COLUMNS = ("label", "labels", "fine_label")
NO_CLASS = -1
SURELY_CLASSES = 100  # up to this many distinct values are classes, even if few of them occur more than once


@dataclass(frozen=True)
class Labels:
    """A column of labels, and the classes that they name.

    Attributes:
        column: Where they are.
        names: The classes; integers in their order, anything else in natural order (2 before 10).
        index_of: The class of each value.
        needed: Whether a value that is no class is an error.
    """

    column: str
    names: list[str]
    index_of: dict[Any, int]
    needed: bool

    def encode(self, values: Sequence[Any], positions: Sequence[object], name: str) -> Tensor:
        """int64 (values,). NO_CLASS for a value that is no class, unless labels are needed.

        Raises:
            ValueError: A value is not that of a class, and labels are needed; `name` and its position name it.
        """
        classes = [self.index_of.get(value, NO_CLASS) for value in values]
        if self.needed and NO_CLASS in classes:
            first = classes.index(NO_CLASS)
            raise ValueError(
                f"{name}, example {positions[first]}: label must be {self._expected()}, got {values[first]!r}. Use "
                "another split, name another column with --label_column, or train an unconditional model."
            )
        return torch.tensor(classes, dtype=torch.long)

    def _expected(self) -> str:
        values = list(self.index_of)
        if values == list(range(len(values))):
            return f"from 0 to {len(values) - 1}"
        return f"one of {', '.join(map(repr, values[:10]))}{', ...' if len(values) > 10 else ''}"


def find_labels(train: Any, evaluation: Any, wanted: str | None, needed: bool, name: str) -> Labels | None:
    """Finds the classes of a dataset.

    A ClassLabel names them. Otherwise each integer, string or boolean that occurs in the training or the evaluation
    split is a class; empty values, and -1 beside other numbers, are none. A stream is read for them only if labels are
    needed.

    Args:
        train, evaluation: The splits; None for an evaluation split that will be held out.
        wanted: The column of labels. None: label, labels or fine_label.
        needed: Whether the model is conditional. If not, labels that cannot be used are left out, which is logged.
        name: What errors call the data.

    Returns:
        None if there are no labels, or some cannot be used and none is needed.

    Raises:
        ValueError: The column that is wanted is missing or holds no classes, or labels are needed and a split lacks
            the column.
    """
    features = train.features or {}
    if wanted is not None and wanted not in features:
        raise ValueError(f"--label_column must be a column of {name} ({', '.join(features)}), got {wanted!r}.")
    column = wanted or _find_column(features)
    if column is None:
        return None
    if wanted and not _may_be_classes(features[wanted]):
        raise ValueError(
            f"--label_column must be a column of integers, strings, booleans or a ClassLabel, got {wanted!r} of "
            f"{name}, which holds {features[wanted]}."
        )
    found = _read_labels([train] if evaluation is None else [train, evaluation], column, needed, name)
    if isinstance(found, Labels):
        return found
    if needed:
        raise ValueError(
            f"A conditional model (--num_labels) needs a label for each image, but {found}. Name another column with "
            "--label_column, use another dataset, or train an unconditional model (--num_labels 0)."
        )
    logger.warning("The labels are left out because %s.", found)
    return None


def _find_column(features: dict[str, Any]) -> str | None:
    """The column of labels by its usual names: one whose classes are named, or else one that may hold classes."""
    usual = [column for column in LABEL_COLUMNS if column in features]
    usable = [column for column in usual if _may_be_classes(features[column])]
    named = [column for column in usable if getattr(features[column], "names", None)]
    return next(iter([*named, *usable, *usual]), None)


def _may_be_classes(feature: Any) -> bool:
    if getattr(feature, "names", None):
        return True
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "bool", "string", "large_string", "float"))


def _read_labels(splits: list[Any], column: str, needed: bool, name: str) -> Labels | str:
    """The labels, or the reason why there are none to use."""
    if any(column not in (split.features or {}) for split in splits):
        return f"the evaluation split of {name} has no column {column!r}"
    feature = splits[0].features[column]
    if not _may_be_classes(feature):
        return f"the column {column!r} of {name} holds {feature}"
    names = getattr(feature, "names", None)
    named = Labels(column, list(names), {index: index for index in range(len(names))}, needed) if names else None
    is_stream = not hasattr(splits[0], "select")
    if named and (needed or is_stream):
        return named
    if is_stream and not needed:
        return f"those of a stream are read for a conditional model only, and the column {column!r} names no classes"
    values = set().union(*(_values(split, column, name) for split in splits))
    labels = named or _number(values, column, needed)
    if labels is None:
        return f"the numbers in the column {column!r} of {name} are no integers"
    odd = [value for value in values if value not in labels.index_of]
    if odd and not needed:
        return f"some in the column {column!r} of {name} are no class, such as {odd[0]!r}"
    if not labels.names:
        return f"the column {column!r} of {name} has none"
    if not (named or needed) and len(labels.names) > max(SURELY_CLASSES, sum(map(len, splits)) / 2):
        return f"nearly every value in the column {column!r} of {name} is different"
    return labels


def _values(split: Any, column: str, name: str) -> set[Any]:
    """Each value that occurs; NaN becomes None."""
    labels = split.select_columns([column])
    if hasattr(split, "select"):
        found = labels.unique(column)
    else:
        logger.info("Reading the column %r of %s once to find its classes.", column, name)
        try:
            found = {row[column] for row in labels}
        except OSError as error:
            raise ValueError(f"The labels of {name} cannot be read: {one_line(error)}") from error
    return {None if isinstance(value, float) and math.isnan(value) else value for value in found}


def _number(values: set[Any], column: str, needed: bool) -> Labels | None:
    """A class for each value that names one; None if the values are measurements."""
    known = {value for value in values if value is not None and value != ""}
    if any(isinstance(value, float) and not value.is_integer() for value in known):
        return None
    if all(isinstance(value, (int, float)) for value in known):
        if known != {-1, 1}:
            known.discard(-1)  # as on the Hub: no label
        return _with_names({_name(value): value for value in sorted(known)}, column, needed)
    by_name = {_name(value): value for value in known}
    return _with_names({name: by_name[name] for name in in_natural_order(by_name)}, column, needed)


def _with_names(by_name: dict[str, Any], column: str, needed: bool) -> Labels:
    return Labels(column, list(by_name), {value: index for index, value in enumerate(by_name.values())}, needed)


def _name(value: Any) -> str:
    return str(int(value) if isinstance(value, float) else value)
