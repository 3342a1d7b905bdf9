"""Tables in the cache of `datasets`, where later runs and the other processes of a run find them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import pyarrow as pa
from datasets.fingerprint import Hasher

from .splits import one_line


def cached_dataset(tables: Callable[[], Iterator[pa.Table]], fingerprint: list[Any], name: str) -> Any:
    """The dataset of some tables, memory-mapped from the cache of `datasets`; `tables` is called if it is not there.

    `datasets` locks a fingerprint: one process writes, the others wait and then map the same file, which is renamed
    into place when it is complete. A lock rather than a barrier, because a barrier would time out while one process
    reads for half an hour, and a process that joins late would wait forever.

    Args:
        tables: Yields tables of the same schema, one row each.
        fingerprint: Everything that they depend on, in strings and numbers.
        name: What errors call the text.

    Raises:
        ValueError: The text cannot be read, or the disk is full.
    """
    try:
        builder = _Tables(tables, Hasher.hash(fingerprint))
        builder.download_and_prepare()
        return builder.as_dataset("train")
    except (datasets.exceptions.DatasetGenerationError, OSError) as error:
        cause, cache = error.__cause__ or error, datasets.config.HF_DATASETS_CACHE
        if isinstance(cause, ValueError):
            raise cause from None  # its message says what to do
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ValueError(
                f"The disk filled up while the tokens of {name} were written to {cache}; no partial file was kept. "
                "They need 2 to 4 bytes each. Free some space, set HF_DATASETS_CACHE to a folder on a larger disk, or "
                f"hold them in memory with --in_memory. ({one_line(cause)})"
            ) from error
        raise ValueError(
            f"The tokens of {name} cannot be written to {cache}: {one_line(cause)} Check the folder, set "
            "HF_DATASETS_CACHE to another one, or hold them in memory with --in_memory."
        ) from error


class _Tables(datasets.ArrowBasedBuilder):
    """Writes tables to the cache. (`Dataset.from_generator` would take 17 times as long for rows of a million ids.)"""

    def __init__(self, tables: Callable[[], Iterator[pa.Table]], key: str):
        self.tables = tables
        # A row per record batch: by default `datasets` holds 1,000 rows before it writes them.
        super().__init__(dataset_name="hfgen-text", config_id=key, writer_batch_size=1)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("train", {})]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        yield from enumerate(self.tables())
