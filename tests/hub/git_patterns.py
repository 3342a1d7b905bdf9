"""Which paths the patterns of .gitattributes and .gitignore mean, and which files the Hub keeps outside git."""

from __future__ import annotations

import re


LFS_ATTRIBUTES = "filter=lfs diff=lfs merge=lfs -text"
# A new repository's .gitattributes: kinds of file that are large or binary in practice.
LARGE_FILE_PATTERNS = """
*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot
*.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz
*.zip *.zst *tfevents*
"""
DEFAULT_ATTRIBUTES = "".join(f"{pattern} {LFS_ATTRIBUTES}\n" for pattern in LARGE_FILE_PATTERNS.split())
WILDCARDS = re.compile(r"\*\*/|/\*\*$|\*|\?|\[!?[^\]]+\]")


def lfs_patterns(attributes: str) -> list[str]:
    """Patterns of a .gitattributes that send a file to LFS."""
    lines = (line.split() for line in attributes.splitlines() if not line.startswith("#"))
    return [words[0].replace("[[:space:]]", " ") for words in lines if "filter=lfs" in words[1:]]


def lfs_line(path: str) -> str:
    """The line of .gitattributes that sends this one file to LFS."""
    return f"{path.replace(' ', '[[:space:]]')} {LFS_ATTRIBUTES}\n"


def is_lfs_path(path: str, attributes: str) -> bool:
    return any(matches(path, pattern) for pattern in lfs_patterns(attributes))


def is_ignored(path: str, ignore_file: str) -> bool:
    """Whether a .gitignore excludes a file or a folder above it: from an excluded folder nothing is taken back."""
    lines = [line.strip() for line in ignore_file.splitlines() if line.strip() and not line.startswith("#")]
    folders = [path[:index] for index, letter in enumerate(path) if letter == "/"]
    return any(_is_excluded(folder, lines, is_folder=True) for folder in folders) or _is_excluded(path, lines)


def _is_excluded(path: str, lines: list[str], is_folder: bool = False) -> bool:
    """The last line that matches decides."""
    excluded = False
    for line in lines:
        pattern = line.removeprefix("!")
        if pattern.endswith("/") and not is_folder:
            continue
        if matches(path, pattern.removesuffix("/")):
            excluded = not line.startswith("!")
    return excluded


def matches(path: str, pattern: str) -> bool:
    """git's rule: a pattern without a slash means a name at any depth, one with a slash a path from the root."""
    subject = path if "/" in pattern else path.rsplit("/", 1)[-1]
    return re.fullmatch(_as_expression(_bytewise(pattern.removeprefix("/"))), _bytewise(subject)) is not None


def _bytewise(text: str) -> str:
    """A character for every byte: to git, `?` is one byte."""
    return text.encode().decode("latin-1")


def _as_expression(pattern: str) -> str:
    expression, end = "", 0
    for found in WILDCARDS.finditer(pattern):
        expression += re.escape(pattern[end : found.start()]) + _wildcard(found.group())
        end = found.end()
    return expression + re.escape(pattern[end:])


def _wildcard(token: str) -> str:
    if token.startswith("["):
        return token.replace("[!", "[^")
    return {"**/": "(?:.*/)?", "/**": "/.*", "*": "[^/]*", "?": "[^/]"}[token]
