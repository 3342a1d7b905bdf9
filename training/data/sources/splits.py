"""Where datasets come from: the Hub, folders, files, URLs and built-ins, all opened through `datasets`."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ...config.flags import DataArguments
from .built_in import BUILT_INS, streamed
from .downloads import local_file
from .image_folder import image_splits
from .local_files import DATA_KINDS, LocalData, data_files, find_local_data


EVAL_SPLITS = ("test", "validation", "valid")
FILE_SUFFIXES = {Path(f"file{kind}").suffix for kind in DATA_KINDS}
TEXT_ENCODING = "utf-8-sig"  # UTF-8; a byte order mark at its start is no text
FILTERED_AT_A_TIME = 32  # examples of a stream: 5 times faster than one by one


def load_splits(name: str, args: DataArguments, wanted: Literal["images", "text"] = "images") -> dict[str, Any]:
    """Opens every split of a dataset, whatever its form.

    Args:
        name: A built-in dataset, a folder, a file or the URL of one, or the id of a dataset on the Hub.
        args: Configuration, revision, and whether to stream.
        wanted: What to read from a folder that holds several things.

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

    local = _find_local(name, args, wanted)
    if local is None:
        options = {"revision": args.dataset_revision, "streaming": args.streaming}
        return _opened(name, args, lambda: datasets.load_dataset(name, args.dataset_config_name, **options))
    local.report()
    return _opened(name, args, lambda: _load_local(local, args.streaming))


def _opened(name: str, args: DataArguments, load: Callable[[], Any]) -> dict[str, Any]:
    """What `load` returns, with what it may raise in words."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        with _offline_if_unreachable(name, args) as unreachable:
            return dict(load())
    except (DatasetNotFoundError, FileNotFoundError, HFValidationError) as error:
        if Path(name).exists():
            raise ValueError(
                f"--dataset_name must hold images, text files, or {', '.join(DATA_KINDS)} files of a dataset, got "
                f"{name}. ({one_line(error)})"
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


def _load_local(local: LocalData, streaming: bool) -> dict[str, Any]:
    """The splits of local files."""
    import datasets

    if local.type == "images":
        splits = image_splits(local)
        return streamed(splits) if streaming else splits
    files = {split: data_files(paths) for split, paths in local.splits().items()}
    if local.type == "tables":
        options = local.options or {}
        return datasets.load_dataset(local.loader, data_files=files, streaming=streaming, **options)
    # One document per file; a stream reads paragraphs, as it must not hold a whole file.
    sample_by = "paragraph" if streaming else "document"
    return datasets.load_dataset(
        "text", data_files=files, streaming=streaming, sample_by=sample_by, encoding=TEXT_ENCODING
    )


def find_text_files(name: str, args: DataArguments) -> dict[str, list[Path]] | None:
    """By split, the files of a local text file or a folder of them, in the order of the documents.

    Read piece by piece they may have any size, whereas `load_splits` reads each file as one row.

    Returns:
        None for datasets that are no text files.

    Raises:
        ValueError: A name that can only be a local path does not exist, or is not a dataset.
    """
    name = _local_copy_of(name, args)
    if name in BUILT_INS or _is_saved_to_disk(Path(name)):
        return None
    local = _find_local(name, args, "text")
    if local is None or local.type != "text":
        return None
    local.report()
    return local.splits()


def find_split(splits: dict[str, Any], name: str, flag: str) -> Any:
    """The split of that name, or the part of one that a slice names as in `datasets`: `train[:80%]`.

    A slice counts examples, and of a single text file characters.

    Raises:
        ValueError: There is none, it cannot be sliced, or the slice is empty; `flag` asked for it.
    """
    if name in splits:
        return splits[name]
    if "[" not in name and "+" not in name:
        raise ValueError(f"{flag} must be a split of the dataset ({', '.join(splits)}), got {name!r}.")
    return _sliced(splits, name, flag)


def _sliced(splits: dict[str, Any], name: str, flag: str) -> Any:
    import datasets

    if not all(hasattr(split, "select") for split in splits.values()):
        raise ValueError(
            f"{flag} must be a whole split of a stream ({', '.join(splits)}), got {name!r}. Leave out --streaming, or "
            "limit the examples with --max_train_samples and --max_eval_samples."
        )
    try:
        instruction = datasets.ReadInstruction.from_spec(name)
        slices = instruction.to_absolute({split: _num_parts(rows) for split, rows in splits.items()})
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"{flag} must be a split of the dataset ({', '.join(splits)}) or a slice of one, such as train[:80%], got "
            f"{name!r}. ({one_line(error)})"
        ) from error
    if not any(part.to > part.from_ for part in slices):
        raise ValueError(f"{flag} must name at least one example, got {name!r}, which is empty. Use a larger slice.")
    parts = [_part(splits[part.splitname], part.from_, part.to) for part in slices]
    if len(parts) == 1:
        return parts[0]
    return parts[0].joined(parts[1:]) if hasattr(parts[0], "joined") else datasets.concatenate_datasets(parts)


def _num_parts(rows: Any) -> int:
    """What a slice counts: rows, or what text files say."""
    return rows.num_parts if hasattr(rows, "num_parts") else len(rows)


def _part(rows: Any, start: int, stop: int) -> Any:
    return rows.part(start, stop) if hasattr(rows, "part") else rows.select(range(start, stop))


def find_eval_split(splits: dict[str, Any], args: DataArguments) -> str | None:
    """The name of the split to evaluate on; None if the dataset has none, so that part of train_split is held out.

    Raises:
        ValueError: The dataset lacks the one that --eval_split asks for.
    """
    if args.eval_split is not None:
        find_split(splits, args.eval_split, "--eval_split")
        return args.eval_split
    train_splits = re.split(r"[+\[]", args.train_split)
    return next((name for name in EVAL_SPLITS if name in splits and name not in train_splits), None)


def hold_out(train: Any, column: str, split: str, part: int = 0, fewest: int = 1) -> tuple[Any, Any, str]:
    """Returns (the rest, a tenth that is not trained on, what that tenth is called).

    Which examples are held out depends only on the dataset, so that runs with different seeds are comparable. In a
    stream a hash of their content decides: any other rule would depend on how the shards are divided.

    Args:
        train: Examples.
        column: Of a stream, what the hash is of.
        split: What the examples are called.
        part: Another number holds out other examples of a stream, so that a tenth can be taken of what is left.
        fewest: Examples to hold out at least, if they are not streamed.

    Raises:
        ValueError: There are not twice as many as are to be held out.
    """
    name = f"10 % of {split}"
    if not hasattr(train, "train_test_split"):
        return (*(filtered(train, _HeldOut(column, wanted, part)) for wanted in (False, True)), name)
    if len(train) < 2 * fewest:
        raise ValueError(
            f"The split {split!r} must have at least {2 * fewest} examples to hold {'one' if fewest == 1 else fewest} "
            f"out, got {len(train)}. Use more data."
        )
    parts = train.train_test_split(test_size=max(fewest, len(train) // 10), seed=0)
    return parts["train"], parts["test"], name


def filtered(stream: Any, keeps: Callable[[dict[str, list]], list[bool]]) -> Any:
    """The examples of a stream for which `keeps` is true; it gets the columns of some examples at a time."""
    return stream.filter(keeps, batched=True, batch_size=FILTERED_AT_A_TIME)


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

    def __init__(self, column: str, wanted: bool, part: int):
        self.column, self.wanted, self.part = column, wanted, part

    def __call__(self, examples: dict[str, list]) -> list[bool]:
        return [self._is_held_out(value) == self.wanted for value in examples[self.column]]

    def _is_held_out(self, value: Any) -> bool:
        if isinstance(value, dict):  # an image: its content, or the end of its path, the same on every machine
            value = value["bytes"] or "/".join(re.split(r"[/\\]", value["path"] or "")[-2:])
        content = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=8).digest()[self.part] < 26  # of 256: a tenth


def _local_copy_of(name: str, args: DataArguments) -> str:
    """--dataset_path if it exists, else what was downloaded from a URL, else the name; `~` is the home folder."""
    copy = None if args.dataset_path is None else Path(args.dataset_path).expanduser()
    if copy is not None and copy.exists():
        name = str(copy)
    elif name.startswith("~"):
        name = str(Path(name).expanduser())
    return local_file(name, args.dataset_sha256, args.dataset_mirror)


def _find_local(name: str, args: DataArguments, wanted: Literal["images", "text"]) -> LocalData | None:
    """The files of a local dataset; None for one on the Hub, or one that `datasets` knows better how to read.

    Raises:
        ValueError: A name that can only be a local path does not exist, or is not a dataset.
    """
    path = Path(name)
    local = find_local_data(path, wanted)
    if local is not None and local.type == "tables" and (args.dataset_config_name or _describes_its_files(path)):
        if glob.has_magic(str(path.resolve())):  # datasets would take it for a pattern
            raise ValueError(
                "--dataset_name must have none of the characters * ? [ ] in its path if a README.md or "
                f"--dataset_config_name says which files to read, got {path.resolve()}. Rename the folder."
            )
        return None
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix.lower() in FILE_SUFFIXES
    if local is None and looks_local and not path.exists():
        raise ValueError(f"--dataset_name must exist, got {name}, which is no folder or file. Check its spelling.")
    return local


def _describes_its_files(folder: Path) -> bool:
    """Whether the card of a dataset says which files belong to which split, or what their columns are."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    front_matter = re.match(r"---\n.*?\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    return bool(front_matter and re.search(r"^(configs|dataset_info):", front_matter[0], re.MULTILINE))


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
