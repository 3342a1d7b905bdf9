"""Local data as people have it: usual kinds of files, links, odd names, hidden files, archives; nothing is lost."""

from __future__ import annotations

import gzip
import json
import logging
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from tests.training.data.tiny_data import decoded, images_of, picture, take, text_of, values, write_text, write_texts
from training.data.feeds.batches import GlobalBatch


TEXTS = [letter * 40 for letter in "abcdefghij"]


def write_pictures(folder: Path, colors: range, suffix: str = "png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for color in colors:
        picture(color).save(folder / f"{color:03d}.{suffix}", "PNG")
    return folder


def colors_of(name: str | Path, **args: Any) -> tuple[set[int], set[int]]:
    """The colors of the training images and of those to evaluate on."""
    data = images_of(name, **args)
    batches = take(data.train, 30 if args.get("streaming") else 1, GlobalBatch(data.train.num_examples or 4))
    return set(values(torch.cat([batch["pixel_values"] for batch in batches]))), set(values(data.eval_pixels))


def letters_of(name: str | Path, **args: Any) -> tuple[str, str]:
    """The letters of the training and of the evaluation text, each once, in order."""
    data = text_of(name, **args)
    if args.get("streaming"):
        batches = take(data.train, 60, GlobalBatch(8))
        inputs = torch.cat([batch["input_ids"].flatten() for batch in batches]).tolist()
        texts = data.tokenizer.decode(inputs), data.tokenizer.decode(data.eval_tokens[:].tolist())
    else:
        texts = decoded(data)
    found = ["".join(sorted({*text.replace(data.tokenizer.eos_token, "")})) for text in texts]
    return found[0], found[1]


def zipped(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*")):
            opened.write(path, path.relative_to(folder.parent))
    return archive


def gzipped(path: Path) -> Path:
    """The file, compressed, in its place."""
    target = path.with_name(f"{path.name}.gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return target


def write_table(path: Path) -> Path:
    """TEXTS in a file of any kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "number": number} for number, text in enumerate(TEXTS)]
    table = datasets.Dataset.from_list(rows)
    match path.suffix.lower():
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case ".csv":
            table.to_csv(path)
        case ".tsv":
            table.to_csv(path, sep="\t")
        case ".parquet":
            table.to_parquet(path)
        case ".arrow":
            folder = path.parent / "saved"
            table.save_to_disk(folder)
            (folder / "data-00000-of-00001.arrow").rename(path)
            shutil.rmtree(folder)
    return path


# ------------------------------------------------------------------------------------------------- files and folders


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".JSONL", ".CSV"])
def test_one_data_file_of_any_kind_and_a_folder_of_it(tmp_path: Path, kind: str, streaming: bool) -> None:
    file = write_table(tmp_path / "folder" / f"texts{kind}")
    for name in (file, file.parent):
        train, evaluation = letters_of(name, streaming=streaming)
        assert {*train, *evaluation} == {*"abcdefghij"} and evaluation
        assert letters_of("nobody/knows-it", dataset_path=str(name), streaming=streaming) == (train, evaluation)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["gz", "GZ"])
@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_compressed_table(tmp_path: Path, kind: str, suffix: str, streaming: bool) -> None:
    file = gzipped(write_table(tmp_path / f"texts{kind}"))
    train, evaluation = letters_of(file.rename(file.with_suffix(f".{suffix}")), streaming=streaming)
    assert {*train, *evaluation} == {*"abcdefghij"}


@pytest.mark.parametrize("streaming", [False, True])
def test_text_of_all_kinds_in_one_folder(tmp_path: Path, streaming: bool) -> None:
    for letter, name in zip("abcdeg", ["1.txt", "2.md", "3.rst", "4.py", "5.TXT", "README.md"]):
        write_text(tmp_path / "texts" / name, letter * 40)
    gzipped(write_text(tmp_path / "texts" / "6.txt", "f" * 40))
    write_text(tmp_path / "texts" / "7.log", "x" * 400)
    train, evaluation = letters_of(tmp_path / "texts", streaming=streaming)
    assert "".join(sorted({*train, *evaluation})) == "abcdefg"


def test_text_in_compressed_pieces_is_the_text(tmp_path: Path) -> None:
    text = "First line.\n\nSecond: äöü\n" * 9000  # several pieces
    file = gzipped(write_text(tmp_path / "input.txt", text))
    for in_memory in (True, False):
        assert "".join(decoded(text_of(file, in_memory=in_memory))) == text
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"input.txt.gz' cannot be read: .* Repair or remove it"):
        text_of(file)


@pytest.mark.parametrize("streaming", [False, True])
def test_byte_order_mark_is_no_text(tmp_path: Path, streaming: bool) -> None:
    file = tmp_path / "notepad.txt"
    file.write_text("\n\n".join(TEXTS * 3), encoding="utf-8-sig")
    data = text_of(file, streaming=streaming)
    assert "\ufeff" not in data.tokenizer.get_vocab()
    assert "\ufeff" not in "".join(letters_of(file, streaming=streaming))
    for kind in (".jsonl", ".csv", ".json"):
        rows = write_table(tmp_path / f"rows{kind}")
        rows.write_text(rows.read_text(encoding="utf-8"), encoding="utf-8-sig")
        assert {*"".join(letters_of(rows, streaming=streaming))} == {*"abcdefghij"}


def test_text_with_splits_and_a_readme(tmp_path: Path) -> None:
    for name, letter in (("train.txt", "a"), ("valid.txt", "b"), ("test.txt", "c"), ("README.md", "x")):
        write_text(tmp_path / "texts" / name, letter * 40)
    assert letters_of(tmp_path / "texts") == ("a", "c")
    assert letters_of(tmp_path / "texts", eval_split="validation") == ("a", "b")


def test_larger_of_text_and_tables_is_the_data(tmp_path: Path) -> None:
    table = write_table(tmp_path / "texts.jsonl")
    write_text(tmp_path / "README.md", "x" * 10_000)
    write_text(tmp_path / "LICENSE.txt", "y" * 10)
    assert {*"".join(letters_of(tmp_path))} == {*"abcdefghij"}
    write_text(tmp_path / "book.txt", "z" * 10 * table.stat().st_size)
    assert {*"".join(letters_of(tmp_path))} == {*"xyz"}


def test_tables_in_folders_that_name_splits(tmp_path: Path) -> None:
    for split, letter in (("train", "a"), ("validation", "b")):
        (tmp_path / split).mkdir()
        write_texts(tmp_path / split, [letter * 40] * 3, "0000")
    assert letters_of(tmp_path) == ("a", "b")


def test_card_that_describes_its_files_is_followed(tmp_path: Path) -> None:
    write_texts(tmp_path, ["a" * 40] * 3, "one")
    write_texts(tmp_path, ["b" * 40] * 3, "two")
    card = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: two.parquet\n"
    write_text(tmp_path / "README.md", f"---\n{card}---\n")
    assert letters_of(tmp_path) == ("b", "b")
    with pytest.raises(ValueError, match=r"must have none of the characters .* got .*/a\[1\]\. Rename the folder"):
        text_of(shutil.copytree(tmp_path, tmp_path / "a[1]"))


@pytest.mark.parametrize("streaming", [False, True])
def test_archive_is_read_like_the_folder_in_it(tmp_path: Path, streaming: bool) -> None:
    archive = zipped(write_pictures(tmp_path / "pictures" / "cat", range(20)).parent, tmp_path / "pictures.ZIP")
    train, evaluation = colors_of(archive, streaming=streaming)
    assert train | evaluation == set(range(20)) and not train & evaluation
    text = write_text(tmp_path / "texts" / "a.txt", "\n\n".join(TEXTS))
    train_letters, eval_letters = letters_of(zipped(text.parent, tmp_path / "texts.zip"), streaming=streaming)
    assert {*train_letters, *eval_letters} - {"\n"} == {*"abcdefghij"}


def test_archives_of_splits_in_a_folder(tmp_path: Path) -> None:
    for split, colors in (("train", range(9)), ("test", range(100, 103))):
        zipped(write_pictures(tmp_path / "loose" / split, colors), tmp_path / "data" / f"{split}.zip")
    assert colors_of(tmp_path / "data") == (set(range(9)), {100, 101, 102})


def test_changed_archive_is_extracted_again_and_a_broken_one_is_named(tmp_path: Path) -> None:
    archive = zipped(write_pictures(tmp_path / "one", range(10)), tmp_path / "pictures.zip")
    assert set.union(*colors_of(archive)) == set(range(10))
    zipped(write_pictures(tmp_path / "other", range(50, 62)), archive)
    assert set.union(*colors_of(archive)) == set(range(50, 62))
    archive.write_bytes(archive.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"archive .*pictures.zip cannot be extracted: .* by hand"):
        images_of(archive)


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a[1]", "[ab]*", "what?", "ünï cödé", "100% #1", "__a__", "train"])
def test_any_name(tmp_path: Path, name: str, streaming: bool) -> None:
    folder = write_pictures(tmp_path / name, range(60))
    folder.joinpath("000.png").rename(folder / f"{name}.png")
    assert set.union(*colors_of(folder, streaming=streaming)) == set(range(60))
    for file in (
        write_text(tmp_path / "texts" / name / f"{name}.txt", "\n\n".join(TEXTS)),
        write_table(tmp_path / "tables" / name / f"{name}.jsonl"),
    ):
        for path in (file, file.parent):
            train, evaluation = letters_of(path, streaming=streaming)
            assert {*train, *evaluation} - {"\n"} == {*"abcdefghij"}


@pytest.mark.parametrize("streaming", [False, True])
def test_links_to_files_and_folders_are_followed(tmp_path: Path, streaming: bool) -> None:
    pictures = write_pictures(tmp_path / "store" / "pictures", range(20))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "linked").symlink_to(pictures)
    (folder / "linked" / "loop").symlink_to(folder)
    shutil.move(pictures / "000.png", tmp_path / "store" / "first")
    (pictures / "000.png").symlink_to(tmp_path / "store" / "first")
    assert set.union(*colors_of(folder, streaming=streaming)) == set(range(20))
    (tmp_path / "link").symlink_to(write_text(tmp_path / "store" / "a.txt", "\n\n".join(TEXTS)).parent)
    train, evaluation = letters_of(tmp_path / "link", streaming=streaming)
    assert {*train, *evaluation} - {"\n"} == {*"abcdefghij"}
    (tmp_path / "tables").symlink_to(write_table(tmp_path / "store" / "tables" / "a.csv").parent)
    train, evaluation = letters_of(tmp_path / "tables", streaming=streaming)
    assert {*train, *evaluation} == {*"abcdefghij"}


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_text(tmp_path / "books" / "a.txt", "a" * 40)
    assert letters_of("~/books/a.txt") == letters_of("~/books") == ("a", "a")
    assert letters_of("nobody/knows-it", dataset_path="~/books") == ("a", "a")


@pytest.mark.parametrize("streaming", [False, True])
def test_hidden_folder_that_is_named_is_read(tmp_path: Path, streaming: bool) -> None:
    for file in (
        write_text(tmp_path / ".texts" / "a.txt", "\n\n".join(TEXTS)),
        write_table(tmp_path / ".tables" / "a.jsonl"),
    ):
        for path in (file, file.parent):
            assert {*"".join(letters_of(path, streaming=streaming))} - {"\n"} == {*"abcdefghij"}
    folder = write_pictures(tmp_path / ".pictures", range(20))
    assert set.union(*colors_of(folder, streaming=streaming)) == set(range(20))


def test_hidden_files_decide_nothing(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", range(20))
    for name in (".DS_Store", "._000.png", ".cache/x/data.parquet", "__MACOSX/._1.png", ".git/test/a.png"):
        write_text(folder / name, "x")
    assert set.union(*colors_of(folder)) == set(range(20))
    texts = write_text(tmp_path / "texts" / "a.txt", "a" * 40).parent
    for name in (".picture.png", ".table.jsonl", ".b.txt"):
        write_text(texts / name, "x" * 1000)
    assert letters_of(texts) == ("a", "a")
    write_text(tmp_path / "nothing" / ".DS_Store", "x")
    with pytest.raises(ValueError, match="got the empty folder"):
        images_of(tmp_path / "nothing")


# ---------------------------------------------------------------------------------------------------- what to read


def test_text_and_images_are_read_from_the_same_folder(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, range(20))
    write_text(folder / "story.txt", "a" * 4000)
    write_text(folder / "package.json", "{}")
    assert set.union(*colors_of(folder)) == set(range(20))
    assert letters_of(folder) == ("a", "a")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: [write_text(f / f"{n}.heic", "x") for n in range(20)],
         "20 of 40 images, 20 files of kind .heic, were left out because Pillow cannot read them. Convert them"),
        (lambda f: write_text(f / "a.HEIC", "x"), "1 of 21 images, 1 file of kind .heic, was left out because Pillow"),
        (lambda f: write_text(f / "labels.csv", "x"), "1 file of kind .csv was left out because only the images"),
        (lambda f: [write_pictures(f / "train" / "a", range(2)), write_pictures(f / "test" / "a", range(2)),
                    write_pictures(f / "more" / "a", range(16))],
         "16 of 40 images of .* were left out because they lie in more, beside the folders test and train"),
        (lambda f: (f / "gone.png").symlink_to("nowhere"), "1 link of .* was left out because no file is there"),
        (lambda f: write_text(f / "metadata.csv", "name\nx"), "metadata.csv was left out because it has no column"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write: Callable[[Path], Any], message: str
) -> None:
    write_pictures(tmp_path, range(20))
    with caplog.at_level(logging.WARNING):
        images_of(tmp_path)
        assert caplog.messages == []
        write(tmp_path)
        images_of(tmp_path)
    assert any(re.search(message, text) for text in caplog.messages)


def test_images_that_no_one_can_read_are_refused_in_words(tmp_path: Path) -> None:
    write_text(tmp_path / "a.heic", "x")
    with pytest.raises(ValueError, match=r"images that Pillow can read, got 1 file of kind \.heic in .* Convert them"):
        images_of(tmp_path)


@pytest.mark.parametrize("kind", ["JPG", "ppm", "Tiff", "bmp", "webp"])
def test_images_of_usual_kinds(tmp_path: Path, kind: str) -> None:
    for color in range(20):
        picture(color, "RGB").save(
            tmp_path / f"{color}.{kind}", {"Tiff": "TIFF", "JPG": "JPEG"}.get(kind, kind.upper())
        )
    picture(30, "RGB").save(tmp_path / "odd.png")
    data = images_of(tmp_path)
    assert len(data.eval_pixels) + (data.train.num_examples or 0) == 21


def test_text_that_is_left_out_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_text(tmp_path / "a.txt", "a" * 400)
    write_text(tmp_path / "b.pdf", "x")
    with caplog.at_level(logging.WARNING):
        text_of(tmp_path)
    (message,) = caplog.messages
    assert message.startswith("1 file of kind .pdf was left out because only the .txt files of")


# ------------------------------------------------------------------------------------------------- folders of images


def test_images_right_in_train_and_test_have_no_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", range(9))
    write_pictures(tmp_path / "test", range(100, 103))
    assert colors_of(tmp_path) == (set(range(9)), {100, 101, 102})
    data = images_of(tmp_path)
    assert (data.eval_split, data.label_names, data.eval_labels) == ("test", [], None)


def test_splits_among_classes_are_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "bus", "car", "val")):
        write_pictures(tmp_path / name, range(10 * number, 10 * number + 10))
    data = images_of(tmp_path)
    assert data.label_names == ["bus", "car", "train", "val"] and data.eval_split == "10 % of train"
    assert set.union(*colors_of(tmp_path)) == set(range(40))


@pytest.mark.parametrize("streaming", [False, True])
def test_layout_of_anomalies(tmp_path: Path, streaming: bool) -> None:
    write_pictures(tmp_path / "bottle" / "train" / "good", range(40))
    write_pictures(tmp_path / "bottle" / "test" / "good", range(100, 102))
    write_pictures(tmp_path / "bottle" / "test" / "broken", range(110, 113))
    write_pictures(tmp_path / "bottle" / "ground_truth" / "broken", range(210, 213))
    train, evaluation = colors_of(tmp_path / "bottle", streaming=streaming)
    assert train <= set(range(40)) and evaluation == {100, 101, 110, 111, 112}
    data = images_of(tmp_path / "bottle", streaming=streaming)
    assert data.label_names == ["broken", "good"] and data.eval_split == "test"
    assert data.eval_labels is not None and data.eval_labels.tolist() == [0, 0, 0, 1, 1]
    train, evaluation = colors_of(tmp_path, streaming=streaming)
    assert max(train) < 100 and evaluation == {100, 101, 110, 111, 112}


def test_metadata_describes_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path / "train", range(12))
    write_pictures(tmp_path / "test", range(100, 104))
    rows = [(f"train/{color:03d}.png", color % 2) for color in range(10)] + [
        ("test/101.png", 1),
        ("train/gone.png", 0),
    ]
    write_text(tmp_path / "metadata.csv", "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    with caplog.at_level(logging.WARNING):
        data = images_of(tmp_path)
    assert values(data.eval_pixels) == [101] and data.label_names == ["0", "1"]
    (batch,) = take(data.train, 1, GlobalBatch(10))
    assert [value % 2 for value in values(batch["pixel_values"])] == batch["labels"].tolist()
    assert caplog.messages == [
        "1 of 12 rows of the metadata were left out because no image is there.",
        "5 of 16 images were left out because no metadata names them.",
    ]
    write_text(tmp_path / "metadata.csv", "file_name,label\nelsewhere.png,0\n")
    with pytest.raises(ValueError, match=r"file_name of .*metadata.csv names none of the images"):
        images_of(tmp_path)


# ----------------------------------------------------------------------------------------------------------- slices


def test_slices_of_splits(tmp_path: Path) -> None:
    write_texts(tmp_path, TEXTS)
    assert letters_of(tmp_path, train_split="train[:80%]", eval_split="train[80%:]") == ("abcdefgh", "ij")
    assert letters_of(tmp_path, train_split="train[2:4]+train[5:7]", eval_split="train[-1:]") == ("cdfg", "j")
    write_pictures(tmp_path / "pictures", range(20))
    assert colors_of(tmp_path / "pictures", train_split="train[:50%]", eval_split="train[50%:]") == (
        set(range(10)),
        set(range(10, 20)),
    )
    held_out = images_of(tmp_path / "pictures", train_split="train[:50%]")
    assert held_out.eval_split == "10 % of train[:50%]" and len(held_out.eval_pixels) == 1


def test_slices_of_text_files(tmp_path: Path) -> None:
    for letter in "abcde":
        write_text(tmp_path / f"{letter}.txt", letter * 40)
    assert letters_of(tmp_path, train_split="train[:60%]", eval_split="train[60%:]") == ("abc", "de")
    assert letters_of(tmp_path, train_split="train[:1]+train[4:]", eval_split="train[1:2]") == ("ae", "b")


def test_slice_of_one_text_file_is_one_of_its_characters(tmp_path: Path) -> None:
    file = write_text(tmp_path / "book.txt", "".join(TEXTS))
    for in_memory in (True, False):
        flags = {"in_memory": in_memory}
        assert letters_of(file, train_split="train[:80%]", eval_split="train[80%:]", **flags) == ("abcdefgh", "ij")
        assert letters_of(file, train_split="train[40:120]", eval_split="train[-40:]", **flags) == ("bc", "j")
        assert letters_of(file, train_split="train[:50%]", **flags) == ("abcde", "e")
        assert letters_of(file, train_split="train[40:80]", eval_split="train", **flags)[1] == "abcdefghij"
    with pytest.raises(ValueError, match="Slices of a single text file cannot be joined"):
        text_of(file, train_split="train[:50%]+train[60%:]")


def test_whole_splits_are_joined(tmp_path: Path) -> None:
    for split, letter in (("train", "a"), ("test", "b"), ("valid", "c")):
        write_text(tmp_path / f"{split}.txt", letter * 40)
    assert letters_of(tmp_path, train_split="train+validation") == ("ac", "b")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"train_split": "learn[:80%]"}, r"--train_split must be a split .* or a slice of one, such as train\[:80%\]"),
        ({"train_split": "train[:x]"}, r"--train_split must be a split .* or a slice of one"),
        ({"eval_split": "train[:0]"}, "--eval_split must name at least one example, .* is empty"),
        ({"train_split": "train[:50%]", "streaming": True}, "--train_split must be a whole split of a stream"),
    ],
)
def test_slice_that_is_none_is_refused(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_of(write_texts(tmp_path, TEXTS), **flags)
