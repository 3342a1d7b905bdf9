"""The built-in datasets: two need no network, one is downloaded when it is first used."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from ...config.flags import DataArguments


SHARD_EXAMPLES = 10_000


def streamed(splits: dict[str, Any]) -> dict[str, Any]:
    """Splits as streams, in enough shards that a reader gets to any place without reading much before it."""
    shards = {name: max(1, min(len(split), max(8, len(split) // SHARD_EXAMPLES))) for name, split in splits.items()}
    return {name: split.to_iterable_dataset(num_shards=shards[name]) for name, split in splits.items()}


def _digits(args: DataArguments) -> dict[str, Any]:
    """scikit-learn's 1,797 images of handwritten digits, 8 x 8 in 17 gray levels; the last 297 are the test split.

    As in the usual split of this dataset, other people wrote those.
    """
    import datasets
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )

    def part(rows: slice) -> datasets.Dataset:
        # As files in a format that needs no encoder: to write 1,797 PNG takes as long as many steps of training.
        files = [{"bytes": b"P5 8 8 255\n" + image.tobytes(), "path": None} for image in images[rows]]
        columns = {"image": files, "label": digits.target[rows].tolist()}
        return datasets.Dataset.from_dict(columns, features=features)

    splits = {"train": part(slice(0, 1500)), "test": part(slice(1500, None))}
    return streamed(splits) if args.streaming else splits


def _python_docs(args: DataArguments) -> dict[str, Any]:
    """The language reference that ships inside CPython (pydoc_data/topics), about 465,000 characters of English.

    One document; a stream has one per topic.
    """
    import datasets

    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise ValueError(
            "python-docs needs Python's language reference (pydoc_data), which is not installed. Install it, or give "
            "a text file to --dataset_name."
        )
    # Parsed, not imported: the file is one dictionary literal, and nothing in it needs to run.
    tree = ast.parse(path.read_text(encoding="utf-8"))
    topics: dict[str, str] = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    documents = [topics[key] for key in sorted(topics)]
    if args.streaming:
        return streamed({"train": datasets.Dataset.from_dict({"text": documents})})
    return {"train": datasets.Dataset.from_dict({"text": ["\n\n".join(documents)]})}


def _binarized_mnist(args: DataArguments) -> dict[str, Any]:
    from .binarized_mnist import load_binarized_mnist

    splits = load_binarized_mnist(args.dataset_mirror)
    return streamed(splits) if args.streaming else splits


BUILT_INS = {"digits": _digits, "python-docs": _python_docs, "binarized-mnist": _binarized_mnist}
