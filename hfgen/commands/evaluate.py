"""`hfgen evaluate MODEL_OR_FOLDER DATASET`"""

from __future__ import annotations

import argparse
import importlib.util
import json

from .arguments import add_json, add_revision


HELP = "measure generated images beside real ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="MODEL_OR_FOLDER", help="a GAN or VAE, or a folder of images")
    parser.add_argument("dataset", metavar="DATASET",
                        help="the real images: dataset on the Hub, folder or file, or a built-in one")  # fmt: skip
    parser.add_argument("--count", type=_at_least_two, default=10_000,
                        help="largest number of images to compare (default: 10000)")  # fmt: skip
    parser.add_argument("--split", metavar="NAME",
                        help="split of DATASET to compare with (default: test or validation)")  # fmt: skip
    parser.add_argument("--train_split", metavar="NAME", default="train",
                        help="split of DATASET that the classifier learns from (default: train)")  # fmt: skip
    parser.add_argument("--image_column", metavar="COLUMN", help="column of images (default: the only one)")
    parser.add_argument("--label_column", metavar="COLUMN", help="column of classes (default: label, if there is one)")
    parser.add_argument("--dataset_config_name", metavar="NAME", help="configuration of a dataset on the Hub")
    parser.add_argument("--dataset_revision", metavar="REVISION", help="branch, tag or commit of DATASET")
    add_revision(parser, "MODEL")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measures generated images beside the real ones of a dataset: classifier FID and KID, precision, recall, density,
    coverage, classes, copies of training images, and whether a fresh network can tell them apart. The classifier is
    trained on DATASET once, in some seconds, and kept. The images are drawn by a model of hfgen, or are the files of a
    folder. The exit status is 1 if something could not be measured."""
    from .images.quality import describe
    from .machine.installation import import_training

    missing = [name for name in ("accelerate", "datasets", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be installed to evaluate. Run: pip install 'hfgen[training]'")
    dataset = import_training("config.flags").DataArguments(
        dataset_name=arguments.dataset, eval_split=arguments.split, train_split=arguments.train_split,
        image_column=arguments.image_column, label_column=arguments.label_column,
        dataset_config_name=arguments.dataset_config_name, dataset_revision=arguments.dataset_revision,
    )  # fmt: skip
    work = import_training("evaluate_images")
    found = work.evaluate_images(arguments.source, dataset, arguments.count, arguments.revision).to_json()
    print(json.dumps(found, indent=2) if arguments.json else describe(found))
    return 1 if found["metrics_missing"] else 0


def _at_least_two(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, got {value}")
    return value
