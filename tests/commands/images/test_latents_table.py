"""The command `hfgen embed`: what the file holds, and that there is a whole one or none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, List, Value, load_dataset
from PIL.Image import Image as Picture
from PIL.Image import fromarray

from hfgen import AutoencoderConfig, AutoencoderModel, Embedder, VAEConfig, VAEModel
from hfgen.cli import main
from hfgen.commands.images import latents_table


STAGES: dict[str, Any] = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    AutoencoderModel(AutoencoderConfig(**STAGES)).save_pretrained(folder)
    return folder


def pictures(count: int, seed: int = 0) -> list[Picture]:
    return [fromarray(image) for image in np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)]


def save_images(folder: Path, count: int = 3) -> list[Path]:
    files = [folder / name / f"{number}.png" for name in ("cat", "dog") for number in range(count)]
    for file, image in zip(files, pictures(len(files))):
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    return files


def save_splits(folder: Path) -> DatasetDict:
    """Two splits in Parquet files, and columns besides the images."""
    animals = ClassLabel(names=["cat", "dog"])
    features = Features({"id": Value("int16"), "image": Image(), "label": animals, "boxes": List(Value("int32"))})
    splits = {}
    for split, count in (("train", 7), ("test", 4)):
        numbers = list(range(count))
        columns = {
            "id": numbers, "image": pictures(count, seed=count), "label": [number % 2 for number in numbers],
            "boxes": [[1] * number for number in numbers],
        }  # fmt: skip
        splits[split] = Dataset.from_dict(columns, features=features)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        splits[split].to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return DatasetDict(splits)


def read(file: Path) -> Dataset:
    return load_dataset("parquet", data_files=str(file), split="train")


def latents_of(model: Path, images: list[Any]) -> np.ndarray:
    return Embedder(model).encode(images)


def assert_latents(rows: Dataset, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(rows["latents"]), expected, rtol=1e-4, atol=1e-5)


def test_a_folder_of_images_by_file_and_class(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = save_images(tmp_path / "images")
    output = tmp_path / "out.parquet"

    assert main(["embed", str(model), str(tmp_path / "images"), str(output), "--batch_size", "4"]) == 0

    rows = read(output)
    assert rows.features == {
        "label": ClassLabel(names=["cat", "dog"]), "file_name": Value("string"),
        "latents": List(Value("float32"), length=3),
    }  # fmt: skip
    assert sorted(rows["file_name"]) == [str(file) for file in files]
    assert [rows.features["label"].int2str(label) for label in rows["label"]] == [
        Path(name).parent.name for name in rows["file_name"]
    ]
    assert_latents(rows, latents_of(model, rows["file_name"]))
    assert capsys.readouterr().out == f"Wrote {output}: 6 images, 3 numbers each.\n"


def test_files_of_images(tmp_path: Path, model: Path) -> None:
    files = save_images(tmp_path / "images")[::-2]
    output = tmp_path / "out.parquet"

    assert main(["embed", str(model), *map(str, files), str(output)]) == 0

    rows = read(output)
    assert list(rows["file_name"]) == [str(file) for file in files]
    assert_latents(rows, latents_of(model, files))


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_all_splits_with_their_other_columns(tmp_path: Path, model: Path, streaming: list[str]) -> None:
    splits = save_splits(tmp_path / "data")
    output = tmp_path / "out.parquet"

    assert main(["embed", str(model), str(tmp_path / "data"), str(output), "--batch_size", "3", *streaming]) == 0

    rows = read(output)
    kept = {name: feature for name, feature in splits["train"].features.items() if name != "image"}
    assert rows.features == {**kept, "split": Value("string"), "latents": List(Value("float32"), length=3)}
    for name, split in splits.items():
        part = rows.filter(lambda found, name=name: found == name, input_columns="split")
        assert part.select_columns(list(kept))[:] == split.select_columns(list(kept))[:]
        assert_latents(part, latents_of(model, split["image"]))


def test_a_slice_of_a_split_and_its_images(tmp_path: Path, model: Path) -> None:
    splits = save_splits(tmp_path / "data")
    output = tmp_path / "out.parquet"
    words = ["embed", str(model), str(tmp_path / "data"), str(output), "--split", "train[2:5]", "--keep_images"]

    assert main(words) == 0

    rows = read(output)
    assert rows.column_names == ["id", "image", "label", "boxes", "latents"] and list(rows["id"]) == [2, 3, 4]
    for found, image in zip(rows["image"], splits["train"][2:5]["image"]):
        assert np.array_equal(np.asarray(found), np.asarray(image))
    assert_latents(rows, latents_of(model, rows["image"]))


def test_kept_images_do_not_depend_on_the_files(tmp_path: Path, model: Path) -> None:
    files = save_images(tmp_path / "images")
    expected = latents_of(model, files)
    output = tmp_path / "out.parquet"
    assert main(["embed", str(model), *map(str, files), str(output), "--keep_images"]) == 0
    for file in files:
        file.unlink()

    assert_latents(read(output), latents_of(model, read(output)["image"]))
    assert_latents(read(output), expected)


def test_a_dataset_saved_to_disk(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = save_splits(tmp_path / "data")
    splits.save_to_disk(tmp_path / "saved")
    output = tmp_path / "out.parquet"
    words = ["embed", str(model), str(tmp_path / "saved"), str(output), "--split"]

    assert main([*words, "test"]) == 0

    assert_latents(read(output), latents_of(model, splits["test"]["image"]))
    assert main([*words, "dev", "--overwrite"]) == 1
    assert "--split must be a split of the dataset (train, test), got 'dev'." in capsys.readouterr().err


def test_the_metadata_says_what_the_latents_are(tmp_path: Path) -> None:
    files = save_images(tmp_path / "images")
    torch.manual_seed(0)
    AutoencoderModel(AutoencoderConfig(**STAGES, latent_type="spatial")).save_pretrained(tmp_path / "model")
    output = tmp_path / "out.parquet"

    assert main(["embed", str(tmp_path / "model"), *map(str, files), str(output)]) == 0

    about = json.loads(pq.read_schema(output).metadata[b"hfgen"])
    assert about == {"model": str(tmp_path / "model"), "revision": None, "latent_shape": [3, 2, 2]}
    assert np.array(read(output)["latents"]).shape == (6, 12)


def test_a_conditional_model_gets_classes_by_their_names(tmp_path: Path) -> None:
    """The dataset numbers them in another order than the model."""
    splits = save_splits(tmp_path / "data")
    torch.manual_seed(0)
    config = VAEConfig(**STAGES, likelihood="gaussian", id2label={0: "dog", 1: "cat"})
    VAEModel(config).save_pretrained(tmp_path / "model")
    words = ["embed", str(tmp_path / "model"), str(tmp_path / "data"), str(tmp_path / "out.parquet")]

    assert main([*words, "--split", "train"]) == 0

    names = ["cat", "dog", "cat", "dog", "cat", "dog", "cat"]
    expected = Embedder(tmp_path / "model").encode(splits["train"]["image"], names)
    assert_latents(read(tmp_path / "out.parquet"), expected)


def test_a_corrupt_image_is_named_and_nothing_is_written(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = save_images(tmp_path / "images")
    files[4].write_bytes(files[4].read_bytes()[:40])
    (tmp_path / "out").mkdir()
    words = ["embed", str(model), *map(str, files), str(tmp_path / "out" / "a.parquet"), "--batch_size", "2"]

    assert main(words) == 1

    error = capsys.readouterr().err
    assert f"DATA, split train, row 4 ({files[4]}): image must be readable, got corrupt or unknown data" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interruption_leaves_the_old_file(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, output = save_images(tmp_path / "images"), tmp_path / "out" / "a.parquet"
    output.parent.mkdir()
    output.write_text("old")
    calls = []

    def interrupted(self: Embedder, images: list[Any], labels: Any = None) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.zeros((len(images), 3), np.float32)

    monkeypatch.setattr(Embedder, "encode", interrupted)
    words = ["embed", str(model), *map(str, files), str(output), "--batch_size", "2", "--overwrite"]
    assert main(words) == 130
    assert output.read_text() == "old" and list(output.parent.iterdir()) == [output]
    assert calls == [2, 2]


def test_rows_are_read_as_they_are_needed(model: Path) -> None:
    read_rows = []

    def rows() -> Iterator[dict[str, Any]]:
        for number, image in enumerate(pictures(100)):
            read_rows.append(number)
            yield {"image": image}

    stream = IterableDataset.from_generator(rows, features=Features({"image": Image()}))
    tables = latents_table.EmbeddedTables({"train": stream}, Embedder(model, batch_size=5), False, {})
    first = next(iter(tables))

    assert len(first) == 5 and max(read_rows) < 10


def test_a_file_of_several_row_groups_is_the_same(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_splits(tmp_path / "data")
    words = ["embed", str(model), str(tmp_path / "data"), "--batch_size", "3"]
    assert main([*words, str(tmp_path / "one.parquet")]) == 0
    monkeypatch.setattr(latents_table, "ROW_GROUP_BYTES", 1)
    assert main([*words, str(tmp_path / "many.parquet")]) == 0

    one, many = pq.ParquetFile(tmp_path / "one.parquet"), pq.ParquetFile(tmp_path / "many.parquet")
    assert one.num_row_groups == 1 and many.num_row_groups == 5  # 7 rows, and 4, three at a time
    assert one.read() == many.read()


def test_embedding_again_replaces_the_latents(tmp_path: Path, model: Path) -> None:
    save_splits(tmp_path / "data")
    once, twice = tmp_path / "once.parquet", tmp_path / "twice.parquet"
    torch.manual_seed(1)
    AutoencoderModel(AutoencoderConfig(**STAGES)).save_pretrained(tmp_path / "other")

    assert main(["embed", str(model), str(tmp_path / "data"), str(once), "--keep_images"]) == 0
    assert main(["embed", str(tmp_path / "other"), str(once), str(twice), "--keep_images"]) == 0

    assert read(twice).column_names == read(once).column_names
    assert_latents(read(twice), latents_of(tmp_path / "other", read(once)["image"]))


def test_a_table_of_paths(tmp_path: Path, model: Path) -> None:
    files = save_images(tmp_path / "images")
    lines = [json.dumps({"file_name": str(file), "animal": file.parent.name}) for file in files]
    (tmp_path / "table.jsonl").write_text("\n".join(lines))
    words = ["embed", str(model), str(tmp_path / "table.jsonl"), str(tmp_path / "out.parquet")]

    assert main([*words, "--image_column", "file_name"]) == 0

    rows = read(tmp_path / "out.parquet")
    assert list(rows["file_name"]) == [str(file) for file in files] and rows["animal"] == ["cat"] * 3 + ["dog"] * 3
    assert_latents(rows, latents_of(model, files))


@pytest.mark.parametrize(
    "data, output, flags, message",
    [
        ("data", "a.png", [], "OUT must end in .parquet, got"),
        ("data", "old.parquet", [], "OUT must be a new file, got"),
        ("data", "no/a.parquet", [], "OUT must be in a folder that exists, got"),
        ("./nowhere", "a.parquet", [], "DATA must exist, got './nowhere'"),
        ("data", "a.parquet", ["--split", "dev"], "dev"),
        ("data", "a.parquet", ["--image_column", "picture"], "--image_column must be one of id, image, label, boxes"),
        ("data", "a.parquet", ["--image_column", "label"], "--image_column must be a column of images, got 'label'"),
        ("texts.jsonl", "a.parquet", [], "DATA must have one column of images, got 0 among text."),
        ("texts.xyz", "a.parquet", [], "DATA must be files of images, or of tables of one kind"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, model: Path, data: str, output: str, flags: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save_splits(tmp_path / "data")
    for name in ("texts.jsonl", "texts.xyz"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "old.parquet").write_text("old")
    name = data if data.startswith(".") else str(tmp_path / data)

    assert main(["embed", str(model), name, str(tmp_path / output), *flags]) == 1

    error = capsys.readouterr().err
    assert "hfgen embed: " in error and message in error
    assert not list(tmp_path.rglob("a.p*")) and (tmp_path / "old.parquet").read_text() == "old"
