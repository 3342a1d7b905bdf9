"""Where datasets come from: the Hub, folders, files and two built-ins, all opened through `datasets`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config.flags import DataArguments
from .built_in import BUILT_INS, _streamed


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py"}
TABLE_SUFFIXES = {".parquet", ".arrow", ".jsonl", ".json", ".csv"}
EVAL_SPLITS = ("test", "validation", "valid")
FILTERED_AT_A_TIME = 32  # examples of a stream: 5 times faster than one by one


def load_splits(name: str, args: DataArguments) -> dict[str, Any]:
    """Every split of a dataset, whatever form it has.

    Args:
        name: `digits`, `python-docs`, a folder, a text file, or the id of a dataset on the Hub.
        args: configuration, revision, and whether to stream.

    Raises:
        ValueError: it is not there, cannot be reached or cannot be read.
    """
    name = _local_copy_of(name, args)
    built_in = BUILT_INS.get(name)
    if built_in is not None:
        return built_in(args.streaming)
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    path = Path(name)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved_to_disk(name, args)
    loader, options = _how_to_load(name, args.streaming)
    problem = _why_unreachable(name, args)
    try:
        with _offline_if(problem is not None):
            loaded = datasets.load_dataset(
                loader, args.dataset_config_name, revision=args.dataset_revision, streaming=args.streaming, **options
            )
    except (DatasetNotFoundError, FileNotFoundError, HFValidationError) as error:
        if path.exists():
            raise ValueError(
                f"--dataset_name {name} holds no data that is understood: expected images, text files, or a dataset "
                f"of {', '.join(sorted(TABLE_SUFFIXES))} files. ({one_line(error)})"
            ) from error
        raise ValueError(
            f"There is no dataset {name!r}: no such local folder or file, and none of that name can be seen on the "
            "Hub. Check the spelling of --dataset_name and --dataset_revision, log in (hf auth login) for a private "
            f"dataset, or use the built-ins digits and python-docs. ({one_line(error)})"
        ) from error
    except (ConnectionError, OfflineModeIsEnabled, TimeoutError) as error:
        raise ValueError(
            f"The Hub cannot be reached to load the dataset {name!r}, no copy is in the cache, and no local folder or "
            "file has that name. Check the network, give a local folder to --dataset_name, or use the built-ins "
            f"digits and python-docs. ({problem or one_line(error)})"
        ) from error
    except DatasetGenerationError as error:
        raise ValueError(f"The dataset {name!r} cannot be read: {one_line(error.__cause__ or error)}") from error
    except (ValueError, RuntimeError, TypeError, OSError) as error:
        raise ValueError(
            f"The dataset {name!r} cannot be loaded: {one_line(error)} Check --dataset_name and --dataset_config_name."
        ) from error
    return dict(loaded)


def find_text_files(name: str, args: DataArguments) -> list[Path] | None:
    """The files of a dataset that is a local text file or a folder of them, in the order of its documents; else None.

    In [`load_splits`], one row holds a whole file, which is read into memory and must be smaller than 2 GB.

    Raises:
        ValueError: a name that can only be a local path is not there, or is nothing that is understood.
    """
    import datasets

    name = _local_copy_of(name, args)
    path = Path(name)
    if name in BUILT_INS or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return None
    loader, options = _how_to_load(name, streaming=False)
    if loader != "text" or "data_files" not in options:
        return None
    try:
        found = datasets.load_dataset_builder(loader, args.dataset_config_name, **options).config.data_files
    except (ValueError, OSError):
        return None  # load_splits fails alike, and says why
    return [Path(file) for file in found["train"]]


def find_split(splits: dict[str, Any], name: str, flag: str) -> Any:
    """The split of that name.

    Raises:
        ValueError: there is none; `flag` says which flag asked for it.
    """
    if name not in splits:
        raise ValueError(f"There is no split {name!r}; the dataset has {', '.join(splits)}. Give {flag}.")
    return splits[name]


def find_eval_split(splits: dict[str, Any], args: DataArguments) -> str | None:
    """The name of the split to measure on; None if the dataset has none and a part of train_split is to be held out.

    Raises:
        ValueError: the one that --eval_split asks for is not there.
    """
    if args.eval_split is not None:
        find_split(splits, args.eval_split, "another --eval_split")
        return args.eval_split
    return next((name for name in EVAL_SPLITS if name in splits and name != args.train_split), None)


def hold_out(train: Any, column: str, split: str) -> tuple[Any, Any, str]:
    """(the rest, a tenth to measure on, what that is called).

    Which examples are held out depends on nothing but the dataset, so that runs with other seeds can be compared.
    Those of a stream are chosen by a hash of their content: no other rule holds however shards are dealt out.

    Raises:
        ValueError: there are too few examples.
    """
    name = f"10 % of {split}"
    if not hasattr(train, "train_test_split"):
        kept, held_out = (
            train.filter(_HeldOut(column, wanted), batched=True, batch_size=FILTERED_AT_A_TIME)
            for wanted in (False, True)
        )
        return kept, held_out, name
    if len(train) < 2:
        raise ValueError(f"The split {split!r} has {len(train)} example(s): too few to train and measure on.")
    parts = train.train_test_split(test_size=max(1, len(train) // 10), seed=0)
    return parts["train"], parts["test"], name


def limited(dataset: Any, count: int | None) -> Any:
    """The first `count` examples; all when None."""
    if count is None:
        return dataset
    return dataset.select(range(min(count, len(dataset)))) if hasattr(dataset, "select") else dataset.take(count)


def first_example(dataset: Any, name: str) -> dict[str, Any]:
    """The first example.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    try:
        return next(iter(dataset))
    except StopIteration:
        raise ValueError(f"{name} has no examples. Check --train_split, --eval_split and the dataset.") from None
    except Exception as error:
        raise ValueError(f"The first example of {name} cannot be read: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The error's text as the part of a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300] + (" ..." if len(text) > 300 else "")


class _HeldOut:
    """Which examples are of a tenth that their content decides; or are not, with wanted=False."""

    def __init__(self, column: str, wanted: bool):
        self.column, self.wanted = column, wanted

    def __call__(self, examples: dict[str, list]) -> list[bool]:
        return [self._is_held_out(value) == self.wanted for value in examples[self.column]]

    def _is_held_out(self, value: Any) -> bool:
        if isinstance(value, dict):  # an image file: its content, or the end of its path, which no machine changes
            value = value["bytes"] or "/".join(re.split(r"[/\\]", value["path"] or "")[-2:])
        content = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=8).digest()[0] < 26  # of 256: a tenth


def _local_copy_of(name: str, args: DataArguments) -> str:
    """What --dataset_path names, where that exists; else the name."""
    exists = args.dataset_path is not None and Path(args.dataset_path).exists()
    return str(args.dataset_path) if exists else name


def _how_to_load(name: str, streaming: bool) -> tuple[str, dict[str, Any]]:
    """Loader and options of `load_dataset`: text files and folders of images have loaders of their own."""
    path = Path(name)
    # One document a file; a stream must not hold a whole file, and takes paragraphs.
    text_options = {"sample_by": "paragraph" if streaming else "document"}
    if path.is_file():
        if path.suffix.lower() in TEXT_SUFFIXES:
            return "text", {"data_files": {"train": str(path)}, **text_options}
        raise ValueError(
            f"--dataset_name {name} is a file whose kind is not known: expected one of "
            f"{', '.join(sorted(TEXT_SUFFIXES))}, a folder, or the name of a dataset."
        )
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        if not files:
            raise ValueError(f"--dataset_name {name} is an empty folder: expected images, text files or a dataset.")
        suffixes = {file.suffix.lower() for file in files}
        if suffixes & IMAGE_SUFFIXES and not suffixes & {".parquet", ".arrow"}:  # the others may hold metadata
            return "imagefolder", {"data_dir": str(path)}
        if suffixes & TEXT_SUFFIXES and not suffixes & TABLE_SUFFIXES:
            kind = ".txt" if ".txt" in suffixes else min(suffixes & TEXT_SUFFIXES)
            return "text", {"data_dir": str(path), "data_files": f"**/*{kind}", **text_options}
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix.lower() in TEXT_SUFFIXES:
        raise ValueError(f"There is no folder or file {name}. Check the spelling of --dataset_name.")
    return name, {}


def _why_unreachable(name: str, args: DataArguments) -> str | None:
    """Asks the Hub once, as `datasets` would for 20 s, whether it can be reached; None if it can or need not be."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if Path(name).exists() or constants.HF_HUB_OFFLINE:
        return None
    try:
        HfApi().dataset_info(name, revision=args.dataset_revision, timeout=10)
    except (HfHubHTTPError, ValueError):
        return None  # it was reached, or the name is impossible: load_dataset finds the same, and says it better
    except Exception as error:
        return one_line(error)
    return None


@contextmanager
def _offline_if(condition: bool) -> Iterator[None]:
    """Inside, nobody tries to reach the Hub: `datasets` looks in its cache only."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if condition:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _saved_to_disk(name: str, args: DataArguments) -> dict[str, Any]:
    """A folder that `Dataset.save_to_disk` wrote."""
    import datasets

    try:
        loaded = datasets.load_from_disk(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"The dataset {name!r} cannot be read: {one_line(error)}") from error
    splits = dict(loaded) if isinstance(loaded, dict) else {args.train_split: loaded}
    return _streamed(splits) if args.streaming else splits
