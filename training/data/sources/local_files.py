"""Finds the files of local datasets, and which kind of data they hold: a single file or a folder of any usual kind.

`datasets` has its own rules for local paths: it does not follow symbolic links, treats `[`, `*` and `?` as patterns,
and silently skips files that it does not expect. So hfgen lists the files itself, and names each one to `datasets`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hfgen.image_processing import IMAGE_SUFFIXES

from .layout import Layout, Place, find_splits


logger = logging.getLogger(__name__)
UNREADABLE_IMAGE_KINDS = {".heic", ".heif", ".jxl", ".svg", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
TEXT_KINDS = {kind + end for kind in (".txt", ".md", ".rst", ".py") for end in ("", ".gz")}
TABLE_LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    **{
        kind + end: loader
        for kind, loader in {
            ".jsonl": ("json", {}),
            ".ndjson": ("json", {}),
            ".json": ("json", {}),
            ".csv": ("csv", {}),
            ".tsv": ("csv", {"sep": "\t"}),
        }.items()
        for end in ("", ".gz")
    },
}
BINARY_TABLES = {"parquet", "arrow"}  # loaders of files that nobody writes by hand: where there are any, they are it
METADATA_NAMES = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}  # of a folder of images
NOT_DATA = {"README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
DATA_KINDS = sorted({*TEXT_KINDS, *TABLE_LOADERS, ".zip"})  # a file of which is a dataset by itself
DataType = Literal["images", "text", "tables"]


@dataclass(frozen=True)
class DataFile:
    """A file of a dataset.

    Attributes:
        path: To open it.
        place: The folders from the dataset's own folder down, a zip archive being one of them, and its name.
    """

    path: Path
    place: Place

    @cached_property
    def kind(self) -> str:
        """The suffix in lower case, with that before `.gz`; "" if there is none."""
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


@dataclass(frozen=True)
class LocalData:
    """Files that make up a dataset.

    Attributes:
        type: What they hold.
        files: Those to read.
        layout: The splits that they are in.
        loader, options: For `datasets.load_dataset`, if they are tables.
        metadata: Tables about images, by their names.
        notes: Sentences about what is left out.
    """

    type: DataType
    files: list[DataFile]
    layout: Layout
    loader: str = ""
    options: dict[str, Any] | None = None
    metadata: Sequence[DataFile] = ()
    notes: Sequence[str] = ()

    def splits(self) -> dict[str, list[Path]]:
        """The paths in each split."""
        return {split: [self.files[row].path for row in rows] for split, rows in self.layout.splits.items()}

    def report(self) -> None:
        """Logs what is left out."""
        for note in self.notes:
            logger.warning("%s", note)


def find_local_data(path: Path, wanted: Literal["images", "text"]) -> LocalData | None:
    """The files of a local dataset, and what they hold; None if there are none that hfgen can tell apart.

    Args:
        path: A file or a folder, or one that does not exist.
        wanted: What to read from a folder that holds several things.

    Raises:
        ValueError: The folder is empty, the file is of another kind, or one of them cannot be read.
    """
    try:
        if path.is_file():
            return _single_file(path, wanted)
        if path.is_dir():
            return _of_folder(path, wanted, list_files(path), str(path))
    except OSError as error:
        raise ValueError(f"--dataset_name {path} cannot be read: {error}. Check its files and permissions.") from error
    return None


def data_files(paths: Sequence[Path]) -> Any:
    """Paths for the `data_files` of `datasets`, which takes them as they are, and reads them again if they change."""
    from datasets.data_files import DataFilesList

    stats = [path.stat() for path in paths]
    changes = [(str(stat.st_mtime_ns), str(stat.st_size)) for stat in stats]
    return DataFilesList([str(path.absolute()) for path in paths], changes)


def list_files(folder: Path) -> list[DataFile]:
    """All files of a folder that are not hidden, by their places. Links are followed, zip archives opened.

    Raises:
        OSError: A folder cannot be read.
        ValueError: An archive cannot be read.
    """
    return sorted(_walk(folder, (), frozenset()), key=lambda file: "/".join(file.place))


def _walk(folder: Path, place: Place, above: frozenset[str]) -> Iterator[DataFile]:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder that it is in
    for path in folder.iterdir():
        name, is_folder = path.name, path.is_dir()
        if name.startswith(".") or (is_folder and name.startswith("__")):  # .cache, ._x.png, __MACOSX
            continue
        if is_folder:
            yield from _walk(path, (*place, name), above | {real})
        elif path.suffix.lower() == ".zip":
            yield from _walk(_extracted(path), (*place, path.stem), above | {real})
        else:
            yield DataFile(path, (*place, name))


def _extracted(archive: Path) -> Path:
    """The folder with the content of a zip archive, in the cache of `datasets`: extracted once."""
    import datasets
    from filelock import FileLock

    stat = archive.stat()
    key = hashlib.sha256(os.fsencode(f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}")).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hfgen-archives" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            logger.info("Extracting %s to %s.", archive, folder)
            partial = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=folder.parent))
            try:
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(partial)
                partial.rename(folder)
            except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
                raise ValueError(
                    f"The archive {archive} cannot be extracted: {error}. Extract it by hand, and give the folder."
                ) from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _single_file(path: Path, wanted: Literal["images", "text"]) -> LocalData | None:
    file = DataFile(path, (path.name,))
    if file.kind == ".zip":
        return _of_folder(path, wanted, list_files(_extracted(path)), str(path))
    if file.kind in TEXT_KINDS:
        return LocalData("text", [file], _training_only(1))
    if file.kind in TABLE_LOADERS:
        loader, options = TABLE_LOADERS[file.kind]
        return LocalData("tables", [file], _training_only(1), loader, options)
    raise ValueError(
        f"--dataset_name must be a folder, the name of a dataset or a {', '.join(DATA_KINDS)} file, got {path}. "
        "Convert it, or give the folder of the dataset."
    )


def _training_only(count: int) -> Layout:
    return Layout({"train": list(range(count))}, folders=[()] * count)


def _of_folder(path: Path, wanted: Literal["images", "text"], files: list[DataFile], name: str) -> LocalData | None:
    if not files:
        raise ValueError(f"--dataset_name must hold images, text files or a dataset, got the empty folder {name}.")
    broken = {file for file in files if file.path.is_symlink() and not file.path.exists()}
    files = [file for file in files if file not in broken]
    taken = _taken(files, wanted)
    unreadable = [file for file in files if file.kind in UNREADABLE_IMAGE_KINDS]
    if unreadable and not taken:
        raise ValueError(
            f"--dataset_name must hold images that Pillow can read, got {_kinds(unreadable)} in {name}. Convert them "
            "to .png or .jpg."
        )
    if not taken:
        return None
    kind = taken[0].kind
    data_type: DataType = "images" if kind in IMAGE_SUFFIXES else "text" if kind in TEXT_KINDS else "tables"
    metadata: list[DataFile] = []
    if data_type == "images":
        metadata = [file for file in files if file.path.name.lower() in METADATA_NAMES]
    layout = find_splits([file.place for file in taken], data_type)
    links = f"{_count(len(broken), 'link')} of {name} {_were(len(broken))} left out because no file is there."
    notes = [
        *([links] if broken else []),
        *_other_kinds(files, [*taken, *metadata], data_type, name),
        *_left_out(taken, layout, data_type, name),
    ]
    loader, options = TABLE_LOADERS[kind] if data_type == "tables" else ("", None)
    return LocalData(data_type, taken, layout, loader, options, metadata, notes)


def _taken(files: list[DataFile], wanted: Literal["images", "text"]) -> list[DataFile]:
    """Those to read of a folder that may hold several things."""
    images = [file for file in files if file.kind in IMAGE_SUFFIXES]
    texts = [file for file in files if file.kind in TEXT_KINDS]
    tables = [file for file in files if file.kind in TABLE_LOADERS and file.path.name not in NOT_DATA]
    tables = _largest([[file for file in tables if TABLE_LOADERS[file.kind] == loader] for loader in _loaders(tables)])
    if tables and TABLE_LOADERS[tables[0].kind][0] in BINARY_TABLES:
        return tables
    documents = [file for file in texts if file.path.name not in NOT_DATA]  # a README is about what it lies beside
    if wanted == "images":
        return images or tables or documents
    if tables and _size(tables) >= _size(documents):
        return tables
    return texts or images


def _loaders(tables: list[DataFile]) -> list[tuple[str, dict[str, Any]]]:
    """The loaders of some tables, each once; those of binary tables alone if there are any."""
    loaders = [loader for loader in TABLE_LOADERS.values() if any(TABLE_LOADERS[f.kind] == loader for f in tables)]
    once = [loader for number, loader in enumerate(loaders) if loader not in loaders[:number]]
    return [loader for loader in once if loader[0] in BINARY_TABLES] or once


def _largest(groups: list[list[DataFile]]) -> list[DataFile]:
    """The group with the most bytes; the first of several."""
    return max(groups, key=_size, default=[])


def _size(files: list[DataFile]) -> int:
    return sum(file.path.stat().st_size for file in files)


def _other_kinds(files: list[DataFile], read: list[DataFile], data_type: DataType, name: str) -> Iterator[str]:
    paths = {file.path for file in read}
    others = [file for file in files if file.path not in paths]
    if data_type == "images":
        unreadable = [file for file in others if file.kind in UNREADABLE_IMAGE_KINDS]
        others = [file for file in others if file.kind not in UNREADABLE_IMAGE_KINDS]
        if unreadable:
            images = len(unreadable) + sum(file.kind in IMAGE_SUFFIXES for file in read)
            yield (
                f"{len(unreadable):,} of {images:,} images, {_kinds(unreadable)}, {_were(len(unreadable))} left out "
                "because Pillow cannot read them. Convert them to .png or .jpg."
            )
    if others:
        what = "images" if data_type == "images" else " and ".join(sorted({file.kind for file in read})) + " files"
        yield f"{_kinds(others)} {_were(len(others))} left out because only the {what} of {name} are read."


def _kinds(files: list[DataFile]) -> str:
    kinds = Counter(file.kind or file.path.name for file in files)
    return ", ".join(f"{_count(count, 'file')} of kind {kind}" for kind, count in sorted(kinds.items()))


def _left_out(files: list[DataFile], layout: Layout, data_type: DataType, name: str) -> Iterator[str]:
    noun = "images" if data_type == "images" else "files"
    for reason, rows in layout.left_out.items():
        yield f"{len(rows):,} of {len(files):,} {noun} of {name} {_were(len(rows))} left out because {reason}."


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _were(count: int) -> str:
    return "were" if count != 1 else "was"
