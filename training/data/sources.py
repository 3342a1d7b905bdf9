"""Where datasets come from: the Hub, folders, files, URLs and built-ins, all opened through `datasets`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config.flags import DataArguments
from .built_in import BUILT_INS, streamed
from .downloads import local_file


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py"}
TABLE_SUFFIXES = {".parquet", ".arrow", ".jsonl", ".json", ".csv"}
EVAL_SPLITS = ("test", "validation", "valid")
FILTERED_AT_A_TIME = 32  # examples of a stream: 5 times faster than one by one


def load_splits(name: str, args: DataArguments) -> dict[str, Any]:
    """Opens every split of a dataset, whatever its form.

    Args:
        name: A built-in dataset, a folder, a text file, the URL of a file, or the id of a dataset on the Hub.
        args: Configuration, revision, and whether to stream.

    Returns:
        By name, a `datasets.Dataset` each, or an `IterableDataset` of a stream.

    Raises:
        ValueError: The dataset is missing, unreachable or unreadable.
    """
    name = _local_copy_of(name, args)
    path = Path(name)
    if name in BUILT_INS:
        return BUILT_INS[name](args)
    if _is_saved_to_disk(path):
        return _load_saved_to_disk(name, args)
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    loader, options = _how_to_load(name, args.streaming)
    options |= {"revision": args.dataset_revision, "streaming": args.streaming}
    try:
        with _offline_if_unreachable(name, args) as unreachable:
            return dict(datasets.load_dataset(loader, args.dataset_config_name, **options))
    except (DatasetNotFoundError, FileNotFoundError, HFValidationError) as error:
        if path.exists():
            raise ValueError(
                f"--dataset_name must hold images, text files, or {', '.join(sorted(TABLE_SUFFIXES))} files of a "
                f"dataset, got {name}. ({one_line(error)})"
            ) from error
        raise ValueError(
            f"There is no dataset {name!r}: no local folder or file has that name, and none is visible on the Hub. "
            "Check the spelling of --dataset_name and --dataset_revision, log in (hf auth login) for a private "
            f"dataset, or use the built-ins digits and python-docs. ({one_line(error)})"
        ) from error
    except (ConnectionError, OfflineModeIsEnabled, TimeoutError) as error:
        raise ValueError(
            f"The Hub cannot be reached to load the dataset {name!r}, no copy is in the cache, and no local folder or "
            "file has that name. Check the network, give a local folder to --dataset_name, or use the built-ins "
            f"digits and python-docs. ({unreachable or one_line(error)})"
        ) from error
    except DatasetGenerationError as error:
        raise ValueError(f"The dataset {name!r} cannot be read: {one_line(error.__cause__ or error)}") from error
    except (ValueError, RuntimeError, TypeError, OSError) as error:
        raise ValueError(
            f"The dataset {name!r} cannot be loaded: {one_line(error)} Check --dataset_name and --dataset_config_name."
        ) from error


def find_text_files(name: str, args: DataArguments) -> list[Path] | None:
    """The files of a local text file or a folder of them, in the order of the documents; None for other datasets.

    Read piece by piece they may have any size, whereas `load_splits` reads each file as one row.

    Raises:
        ValueError: A name that can only be a local path does not exist, or is not a dataset.
    """
    import datasets

    name = _local_copy_of(name, args)
    if name in BUILT_INS or _is_saved_to_disk(Path(name)):
        return None
    loader, options = _how_to_load(name, streaming=False)
    if loader != "text" or "data_files" not in options:
        return None
    try:
        found = datasets.load_dataset_builder(loader, args.dataset_config_name, **options).config.data_files
    except (ValueError, OSError):
        return None  # load_splits fails too, and explains why
    return [Path(file) for file in found["train"]]


def find_split(splits: dict[str, Any], name: str, flag: str) -> Any:
    """The split of that name.

    Raises:
        ValueError: There is none; `flag` asked for it.
    """
    if name not in splits:
        raise ValueError(f"{flag} must be a split of the dataset ({', '.join(splits)}), got {name!r}.")
    return splits[name]


def find_eval_split(splits: dict[str, Any], args: DataArguments) -> str | None:
    """The name of the split to evaluate on; None if the dataset has none, so that part of train_split is held out.

    Raises:
        ValueError: The dataset lacks the one that --eval_split asks for.
    """
    if args.eval_split is not None:
        find_split(splits, args.eval_split, "--eval_split")
        return args.eval_split
    return next((name for name in EVAL_SPLITS if name in splits and name != args.train_split), None)


def hold_out(train: Any, column: str, split: str) -> tuple[Any, Any, str]:
    """Returns (the rest, a tenth to evaluate on, what that tenth is called).

    Which examples are held out depends only on the dataset, so that runs with different seeds are comparable. In a
    stream a hash of their content decides: any other rule would depend on how the shards are divided.

    Raises:
        ValueError: There are too few examples.
    """
    name = f"10 % of {split}"
    if not hasattr(train, "train_test_split"):
        kept, held_out = (
            train.filter(_HeldOut(column, wanted), batched=True, batch_size=FILTERED_AT_A_TIME)
            for wanted in (False, True)
        )
        return kept, held_out, name
    if len(train) < 2:
        raise ValueError(
            f"The split {split!r} must have at least 2 examples to hold one out, got {len(train)}. Use more data."
        )
    parts = train.train_test_split(test_size=max(1, len(train) // 10), seed=0)
    return parts["train"], parts["test"], name


def limited(dataset: Any, count: int | None) -> Any:
    """The first `count` examples; None for all."""
    if count is None:
        return dataset
    return dataset.select(range(min(count, len(dataset)))) if hasattr(dataset, "select") else dataset.take(count)


def first_example(dataset: Any, name: str) -> dict[str, Any]:
    """The first example.

    Raises:
        ValueError: There is none, or it cannot be read.
    """
    try:
        return next(iter(dataset))
    except StopIteration:
        raise ValueError(f"{name} has no examples. Check --train_split, --eval_split and the dataset.") from None
    except Exception as error:
        raise ValueError(f"The first example of {name} cannot be read: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The error message on one line, shortened to 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300] + (" ..." if len(text) > 300 else "")


class _HeldOut:
    """Filter for the tenth of the examples that their content chooses, or for the others if not `wanted`."""

    def __init__(self, column: str, wanted: bool):
        self.column, self.wanted = column, wanted

    def __call__(self, examples: dict[str, list]) -> list[bool]:
        return [self._is_held_out(value) == self.wanted for value in examples[self.column]]

    def _is_held_out(self, value: Any) -> bool:
        if isinstance(value, dict):  # an image: its content, or the end of its path, the same on every machine
            value = value["bytes"] or "/".join(re.split(r"[/\\]", value["path"] or "")[-2:])
        content = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=8).digest()[0] < 26  # of 256: a tenth


def _local_copy_of(name: str, args: DataArguments) -> str:
    """--dataset_path if it exists, else what was downloaded from a URL, else the name."""
    exists = args.dataset_path is not None and Path(args.dataset_path).exists()
    return local_file(str(args.dataset_path) if exists else name, args.dataset_sha256, args.dataset_mirror)


def _how_to_load(name: str, streaming: bool) -> tuple[str, dict[str, Any]]:
    """Loader and options for `load_dataset`: text files and folders of images have loaders of their own."""
    path = Path(name)
    # One document per file; a stream reads paragraphs, as it must not hold a whole file.
    text_options = {"sample_by": "paragraph" if streaming else "document"}
    if path.is_file():
        if path.suffix.lower() in TEXT_SUFFIXES:
            return "text", {"data_files": {"train": str(path)}, **text_options}
        raise ValueError(
            f"--dataset_name must be a folder, the name of a dataset or a {', '.join(sorted(TEXT_SUFFIXES))} file, "
            f"got {name}. Convert it, or give the folder of the dataset."
        )
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        if not files:
            raise ValueError(f"--dataset_name must hold images, text files or a dataset, got the empty folder {name}.")
        suffixes = {file.suffix.lower() for file in files}
        if suffixes & IMAGE_SUFFIXES and not suffixes & {".parquet", ".arrow"}:  # other tables may be metadata
            return "imagefolder", {"data_dir": str(path)}
        if suffixes & TEXT_SUFFIXES and not suffixes & TABLE_SUFFIXES:
            kind = ".txt" if ".txt" in suffixes else min(suffixes & TEXT_SUFFIXES)
            return "text", {"data_dir": str(path), "data_files": f"**/*{kind}", **text_options}
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix.lower() in TEXT_SUFFIXES:
        raise ValueError(f"--dataset_name must exist, got {name}, which is no folder or file. Check its spelling.")
    return name, {}


@contextmanager
def _offline_if_unreachable(name: str, args: DataArguments) -> Iterator[str | None]:
    """If the Hub cannot be reached, yields the reason and lets `datasets` look in its cache only.

    Otherwise it would retry for 20 s before it does so, or fails; no argument of `load_dataset` changes that
    (`DownloadConfig.max_retries` is not used for it), and the client reads its variables only when it is imported.
    """
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    reason, before = None, (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    if not (Path(name).exists() or constants.HF_HUB_OFFLINE):
        try:
            HfApi().dataset_info(name, revision=args.dataset_revision, timeout=10)
        except (HfHubHTTPError, ValueError):
            pass  # it was reached, or the name is impossible: load_dataset explains it better
        except Exception as error:
            reason = one_line(error)
    try:
        if reason is not None:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        yield reason
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _is_saved_to_disk(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _load_saved_to_disk(name: str, args: DataArguments) -> dict[str, Any]:
    """A folder that `Dataset.save_to_disk` wrote."""
    import datasets

    try:
        loaded = datasets.load_from_disk(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"The dataset {name!r} cannot be read: {one_line(error)}") from error
    splits = dict(loaded) if isinstance(loaded, dict) else {args.train_split: loaded}
    return streamed(splits) if args.streaming else splits
