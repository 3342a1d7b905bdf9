"""The latents of every image of a dataset, in a Parquet file: what `hfgen embed` does.

Rows are read, encoded and written a few at a time, so the dataset may be larger than the memory. The file appears
under its name only once it is whole.

A column of the file is `latents`, lists of a fixed number of float32: what pandas, DuckDB and vector databases take
for a vector. Latents that form a grid are flattened; their shape is in the metadata of the file, beside the model:
`json.loads(pyarrow.parquet.read_schema(file).metadata[b"hfgen"])["latent_shape"]`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...embedding import LATENTS, Embedder
from ...image_datasets import image_column, open_dataset


ROW_GROUP_BYTES = 32 * 2**20
FILE_NAME, SPLIT = "file_name", "split"


def embed(
    data: Sequence[str],
    output: Path,
    embedder: Embedder,
    *,
    split: str | None = None,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
    streaming: bool = False,
    keep_images: bool = False,
    overwrite: bool = False,
    provenance: dict[str, Any] | None = None,
) -> int:
    """Writes the latents of every image of a dataset, beside its other columns, to a Parquet file.

    Several splits follow each other, and a column `split` names them. If each image is a file of its own, a column
    `file_name` has its path.

    Args:
        data: the id of a dataset on the Hub; a folder of images, tables, or that `Dataset.save_to_disk` wrote; or
            files of images or tables.
        output: the file, whose name ends in .parquet.
        embedder: encodes the images. Its image_column and label_column name columns of the dataset.
        split: a split or a slice of one, such as train[:1000]; all splits if None.
        dataset_config_name: configuration of a dataset on the Hub.
        dataset_revision: branch, tag or commit of a dataset on the Hub.
        streaming: read a dataset of the Hub as it is needed, without a copy on the disk.
        keep_images: keep the column of images, with their encoded bytes.
        overwrite: replace an existing file.
        provenance: what the metadata of the file says besides the shape of the latents.

    Returns:
        the number of rows.

    Raises:
        ValueError: the dataset, a split or a column is missing, or an image or label cannot be used. Nothing was
            written.
    """
    if output.suffix != ".parquet":
        raise ValueError(f"OUT must end in .parquet, got {str(output)!r}. Name the file to write, after DATA.")
    if not output.parent.is_dir():
        raise ValueError(f"OUT must be in a folder that exists, got {str(output)!r}. Create {output.parent} first.")
    if output.exists() and not overwrite:
        raise ValueError(f"OUT must be a new file, got {str(output)!r}, which exists. Use --overwrite to replace it.")
    splits = open_dataset(data, split, dataset_config_name, dataset_revision, streaming)
    tables = EmbeddedTables(splits, embedder, keep_images, provenance or {})
    return _write(tables, output)


def _write(tables: EmbeddedTables, output: Path) -> int:
    """Writes the tables in groups of rows of about `ROW_GROUP_BYTES`; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = output.with_name(f".{output.name}.part")
    rows, pending = 0, []
    try:
        with pq.ParquetWriter(temporary, tables.schema) as writer:
            for table in tables:
                rows += len(table)
                pending.append(table)
                if sum(part.nbytes for part in pending) >= ROW_GROUP_BYTES:
                    writer.write_table(pa.concat_tables(pending))
                    pending = []
            if pending:
                writer.write_table(pa.concat_tables(pending))
        if not rows:
            raise ValueError("DATA must have images, got no rows. Check the dataset and --split.")
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


class EmbeddedTables:
    """The rows of a dataset with their latents, as pyarrow tables of a batch each.

    Args:
        splits: name -> `datasets.Dataset` or `IterableDataset`; all have the same columns.
        embedder: encodes the images.
        keep_images: whether the column of images stays.
        provenance: for the metadata.

    Attributes:
        schema: of every table.

    Raises:
        ValueError: splits differ in their columns, or one that is needed is missing.
    """

    def __init__(self, splits: dict[str, Any], embedder: Embedder, keep_images: bool, provenance: dict[str, Any]):
        import datasets

        self._embedder, self._keeps_images = embedder, keep_images
        self._features = _common_features(splits)
        self._column = image_column(self._features, embedder.image_column)
        if embedder.is_conditional and embedder.label_column not in self._features:
            raise ValueError(
                f"--label_column must be a column of the dataset ({', '.join(self._features)}), got "
                f"{embedder.label_column!r}. This model encodes images given their classes."
            )
        try:
            undecoded = datasets.Image(decode=False)
            self._splits = {name: rows.cast_column(self._column, undecoded) for name, rows in splits.items()}
        except (TypeError, ValueError, NotImplementedError):
            raise ValueError(
                f"--image_column must be a column of images, got {self._column!r}, which holds "
                f"{self._features[self._column]}."
            ) from None
        self._has_files = any(_is_file(row[self._column]) for rows in self._splits.values() for row in _first(rows))
        self.schema = self._build_schema(provenance)

    def _build_schema(self, provenance: dict[str, Any]) -> Any:
        import datasets

        columns = dict(self._features)
        if self._keeps_images:
            columns[self._column] = datasets.Image()
        else:
            del columns[self._column]
        if self._has_files:
            columns.setdefault(FILE_NAME, datasets.Value("string"))
        if len(self._splits) > 1:
            columns.setdefault(SPLIT, datasets.Value("string"))
        columns.pop(LATENTS, None)
        columns[LATENTS] = self._embedder.feature()
        schema = datasets.Features(columns).arrow_schema
        about = json.dumps({**provenance, "latent_shape": list(self._embedder.latent_shape)})
        return schema.with_metadata({**(schema.metadata or {}), b"hfgen": about.encode()})

    def __iter__(self) -> Iterator[Any]:
        total = sum(len(rows) for rows in self._splits.values()) if _has_length(self._splits) else None
        with tqdm(total=total, unit=" images", disable=None) as bar:
            for name, rows in self._splits.items():
                done = 0
                for table in rows.with_format("arrow").iter(batch_size=self._embedder.batch_size):
                    yield self._embed(table, name, done)
                    done += len(table)
                    bar.update(len(table))

    def _embed(self, table: Any, split: str, first_row: int) -> Any:
        """Adds the latents to some rows, and arranges the columns."""
        import datasets
        import pyarrow as pa

        stored = table.column(self._column).to_pylist()
        images = [_fetched(image) for image in stored]
        latents = self._encode(images, self._labels(table), f"split {split}", first_row)
        columns = {name: table.column(name) for name in table.column_names if name != self._column}
        if self._keeps_images:
            columns[self._column] = datasets.Image().embed_storage(table.column(self._column).combine_chunks())
        for name, values in ((FILE_NAME, [image["path"] for image in stored]), (SPLIT, [split] * len(stored))):
            if name in self.schema.names and name not in columns:
                columns[name] = pa.array(values, pa.string())
        columns[LATENTS] = pa.FixedSizeListArray.from_arrays(pa.array(latents.ravel()), latents.shape[1])
        arrays = [_cast(columns[field.name], field.type) for field in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _labels(self, table: Any) -> list[Any] | None:
        """The classes of some rows for a conditional model: their names, if the dataset has names."""
        if not self._embedder.is_conditional:
            return None
        column = self._embedder.label_column
        labels, feature = table.column(column).to_pylist(), self._features[column]
        return [feature.int2str(label) for label in labels] if getattr(feature, "names", None) else labels

    def _encode(self, images: list[Any], labels: list[Any] | None, where: str, first_row: int) -> Any:
        try:
            return self._embedder.encode(images, labels)
        except ValueError:
            for row, image in enumerate(images, first_row):  # whose fault is it?
                try:
                    self._embedder.pixel_values([image])
                except ValueError as error:
                    path = f" ({image['path']})" if isinstance(image, dict) and image.get("path") else ""
                    text = str(error).removeprefix("images, position 0: ")
                    raise ValueError(f"DATA, {where}, row {row}{path}: image {text}") from None
            raise


def _common_features(splits: dict[str, Any]) -> Any:
    """The columns of all splits and their types."""
    (first, features), *others = [(name, rows.features) for name, rows in splits.items()]
    if features is None:
        raise ValueError("DATA must tell its columns, and this stream does not. Leave out --streaming.")
    for name, other in others:
        if other != features:
            raise ValueError(
                f"All splits must have the same columns, got {', '.join(features)} in {first} and "
                f"{', '.join(other or ())} in {name}, or columns of other types. Choose one with --split."
            )
    return features


def _first(rows: Any) -> list[dict[str, Any]]:
    return [row for _, row in zip(range(1), rows)]


def _has_length(splits: dict[str, Any]) -> bool:
    return all(hasattr(rows, "__len__") for rows in splits.values())


def _is_file(image: Any) -> bool:
    """Whether an encoded image is a file of its own, and not a value of a table."""
    return isinstance(image, dict) and image.get("bytes") is None and bool(image.get("path"))


def _fetched(image: Any) -> Any:
    """An encoded image; one that lies elsewhere is read by `datasets`, which knows how."""
    if _is_file(image) and "://" in image["path"]:
        import datasets

        return datasets.Image().decode_example(image)
    return image


def _cast(column: Any, to: Any) -> Any:
    return column if column.type == to else column.cast(to)
