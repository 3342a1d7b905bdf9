"""The URL of a data file of any kind is read as the file itself is."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable

import datasets
import pytest

from ..file_server import running_server
from ..tiny_data import encoded, images_of, picture, text_of


DOCUMENTS = [f"Document {number} says something." for number in range(60)]
TEXT = "\n\n".join(DOCUMENTS).encode()


def parquet() -> bytes:
    buffer = io.BytesIO()
    datasets.Dataset.from_dict({"text": DOCUMENTS}).to_parquet(buffer)
    return buffer.getvalue()


def zipped(files: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


KINDS: dict[str, Callable[[], bytes]] = {
    "a.txt": lambda: TEXT,
    "test.TXT": lambda: TEXT,
    "a.md": lambda: TEXT,
    "a.txt.gz": lambda: gzip.compress(TEXT),
    "validation.jsonl": lambda: "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS).encode(),
    "test.csv": lambda: "\n".join(["text", *DOCUMENTS, ""]).encode(),
    "train-00000.parquet": parquet,
    "a.zip": lambda: zipped({f"texts/{number}.txt": text for number, text in enumerate(DOCUMENTS)}),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_text_by_its_url(name: str, streaming: bool) -> None:
    with running_server({f"/h/x%20y/{name}": KINDS[name]()}) as server:
        data = text_of(f"https://h/x%20y/{name}", dataset_mirror=server.url, streaming=streaming)
    assert "says something." in data.tokenizer.decode(data.eval_tokens[:].tolist())


def test_zipped_folders_of_images_by_their_url() -> None:
    pictures = {f"p/{name}/{i}.png": encoded(picture(i)) for name in ("cat", "dog") for i in range(30)}
    with running_server({"/h/p.zip": zipped(pictures)}) as server:
        data = images_of("https://h/p.zip", dataset_mirror=server.url)
    assert data.label_names == ["cat", "dog"] and len(data.eval_pixels) == 6
