"""`hfgen embed MODEL DATA... OUT.parquet`"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_json, add_model, positive, print_result


HELP = "write the latents of images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "folder or repository of an Auto-Encoder, VAE or Ladder VAE")
    parser.add_argument("data", metavar="DATA", nargs="+",
                        help="dataset on the Hub, folder of images or tables, or files of either")  # fmt: skip
    parser.add_argument("output", metavar="OUT.parquet", type=Path, help="file to write")
    parser.add_argument("--split", help="split or slice of one, such as train[:1000] (default: all)")
    parser.add_argument("--batch_size", type=positive, default=256, help="images encoded at once (default: 256)")
    parser.add_argument("--keep_images", action="store_true", help="keep the column of images, too")
    parser.add_argument("--image_column", metavar="COLUMN", help="column of images (default: the only one)")
    parser.add_argument("--label_column", metavar="COLUMN", default="label",
                        help="column of classes, for a conditional model (default: label)")  # fmt: skip
    parser.add_argument("--dataset_config_name", metavar="NAME", help="configuration of a dataset on the Hub")
    parser.add_argument("--dataset_revision", metavar="REVISION", help="branch, tag or commit of a dataset on the Hub")
    parser.add_argument("--streaming", action="store_true", help="read from the Hub without a copy on the disk")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.parquet if it exists")
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes the latents of every image of a dataset to a Parquet file: a column `latents` beside the other columns of
    the dataset. It runs hfgen's own code, never the code that comes with the model. Python's `hfgen.Embedder` does the
    same inside `datasets.map`."""
    from ..embedding import Embedder
    from .images.latents_table import embed

    embedder = Embedder(
        arguments.model, image_column=arguments.image_column, label_column=arguments.label_column,
        batch_size=arguments.batch_size, revision=arguments.revision,
    )  # fmt: skip
    rows = embed(
        arguments.data, arguments.output, embedder, split=arguments.split,
        dataset_config_name=arguments.dataset_config_name, dataset_revision=arguments.dataset_revision,
        streaming=arguments.streaming, keep_images=arguments.keep_images, overwrite=arguments.overwrite,
        provenance={"model": arguments.model, "revision": arguments.revision},
    )  # fmt: skip
    words = f"Wrote {arguments.output}: {rows:,} images, {embedder.num_latents} numbers each."
    shape = list(embedder.latent_shape)
    print_result(arguments, words, output=str(arguments.output), images=rows, latent_shape=shape)
