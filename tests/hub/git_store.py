"""A bare git repository in pure Python: loose objects and refs, as much of git as the Hub's commits need.

Every id is git's own, so `git --git-dir DIR log -p` and `git fsck` understand what the test server wrote.

Objects never change and appear by rename; a ref changes by rename. A server that is killed leaves either the old state
or the new one. Nothing is fsynced: a power cut is not a case for tests.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias


ObjectKind: TypeAlias = Literal["blob", "tree", "commit"]

FILE_MODE = "100644"
FOLDER_MODE = "40000"
FULL_ID = re.compile(r"[0-9a-f]{40}")
SHORT_ID = re.compile(r"[0-9a-f]{7,39}")
# What `git check-ref-format` refuses: leading dots and dashes, "..", "@{", ".lock", blanks, wildcards.
BAD_REF_NAME = re.compile(r"^[-./]|[/.]$|\.\.|//|/\.|@\{|\.lock(/|$)|[\x00-\x20\x7f~^:?*\[\\]|^@$|^$")


class RefConflict(Exception):
    """A ref cannot be created: its name is another ref's folder, or the other way round."""


@dataclass(frozen=True)
class TreeEntry:
    """A file or folder in a snapshot; `path` is relative to the snapshot's root."""

    path: str
    kind: Literal["blob", "tree"]
    oid: str


@dataclass(frozen=True)
class Commit:
    oid: str
    tree: str
    parent: str | None
    author: str
    seconds: int
    message: str

    @property
    def title(self) -> str:
        return self.message.split("\n", 1)[0]

    @property
    def description(self) -> str:
        return self.message.partition("\n")[2].strip()

    @property
    def date(self) -> str:
        return iso_date(self.seconds)


def iso_date(seconds: float) -> str:
    """The Hub's format of a moment: 2024-01-31T12:00:00.000Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def blob_id(content: bytes) -> str:
    return hashlib.sha1(_framed("blob", content)).hexdigest()


def is_valid_ref_name(name: str) -> bool:
    return BAD_REF_NAME.search(name) is None


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _framed(kind: ObjectKind, content: bytes) -> bytes:
    return b"%s %d\0%s" % (kind.encode(), len(content), content)


class GitStore:
    """Objects and refs of one repository. Two writers of one ref must hold a lock of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path) -> GitStore:
        for name in ("objects", "refs/heads", "refs/tags"):
            (folder / name).mkdir(parents=True)
        (folder / "HEAD").write_text("ref: refs/heads/main\n")
        (folder / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")
        return cls(folder)

    # Objects

    def write(self, kind: ObjectKind, content: bytes) -> str:
        framed = _framed(kind, content)
        oid = hashlib.sha1(framed).hexdigest()
        path = self._object_path(oid)
        if not path.exists():
            write_atomically(path, zlib.compress(framed, 1))
        return oid

    def read(self, kind: ObjectKind, oid: str) -> bytes:
        found, _, content = zlib.decompress(self._object_path(oid).read_bytes()).partition(b"\0")
        if not found.startswith(kind.encode() + b" "):
            raise ValueError(f"object {oid} should be a {kind}, it is a {found.decode()}")
        return content

    def peek(self, oid: str, limit: int) -> tuple[int, bytes]:
        """The size of an object and its first bytes, without unpacking the rest."""
        with self._object_path(oid).open("rb") as file:
            start = zlib.decompressobj().decompress(file.read(limit + 128), limit + 32)
        header, _, content = start.partition(b"\0")
        return int(header.split()[1]), content[:limit]

    def is_commit(self, oid: str) -> bool:
        path = self._object_path(oid)
        return path.exists() and zlib.decompress(path.read_bytes()).startswith(b"commit ")

    def _object_path(self, oid: str) -> Path:
        return self.folder / "objects" / oid[:2] / oid[2:]

    # Trees

    def write_tree(self, files: Mapping[str, str]) -> str:
        """Writes a snapshot of {path: blob id} and returns its tree id. No path may be file and folder at once."""
        blobs = {path: oid for path, oid in files.items() if "/" not in path}
        folders: dict[str, dict[str, str]] = {}
        for path, oid in files.items():
            folder, slash, rest = path.partition("/")
            if slash:
                folders.setdefault(folder, {})[rest] = oid
        entries = [(name, FILE_MODE, oid) for name, oid in blobs.items()]
        entries += [(name, FOLDER_MODE, self.write_tree(inner)) for name, inner in folders.items()]
        # git sorts a folder as if its name ended with a slash.
        entries.sort(key=lambda entry: (entry[0] + "/" if entry[1] == FOLDER_MODE else entry[0]).encode())
        packed = b"".join(f"{mode} {name}".encode() + b"\0" + bytes.fromhex(oid) for name, mode, oid in entries)
        return self.write("tree", packed)

    def walk(self, tree: str, prefix: str = "", recursive: bool = True) -> Iterator[TreeEntry]:
        """Entries of a snapshot, a folder before what is in it."""
        packed = self.read("tree", tree)
        while packed:
            header, _, rest = packed.partition(b"\0")
            mode, _, name = header.decode().partition(" ")
            oid, packed = rest[:20].hex(), rest[20:]
            is_folder = mode == FOLDER_MODE
            yield TreeEntry(prefix + name, "tree" if is_folder else "blob", oid)
            if is_folder and recursive:
                yield from self.walk(oid, prefix + name + "/")

    def files(self, tree: str) -> dict[str, str]:
        return {entry.path: entry.oid for entry in self.walk(tree) if entry.kind == "blob"}

    # Commits

    def write_commit(self, tree: str, parent: str | None, author: str, seconds: int, message: str) -> str:
        name = re.sub(r"[<>\n]", "", author)
        who = f"{name} <{name}@users.invalid> {seconds} +0000"
        lines = [f"tree {tree}"]
        lines += [f"parent {parent}"] if parent else []
        lines += [f"author {who}", f"committer {who}", "", message.replace("\0", "").strip() + "\n"]
        return self.write("commit", "\n".join(lines).encode())

    def read_commit(self, oid: str) -> Commit:
        header, _, message = self.read("commit", oid).decode().partition("\n\n")
        fields = dict(line.split(" ", 1) for line in header.split("\n"))
        author, _, when = fields["author"].partition(" <")
        seconds = int(when.split("> ")[1].split()[0])
        return Commit(oid, fields["tree"], fields.get("parent"), author, seconds, message.removesuffix("\n"))

    def history(self, oid: str) -> Iterator[Commit]:
        """A commit, then its ancestors."""
        following: str | None = oid
        while following:
            commit = self.read_commit(following)
            yield commit
            following = commit.parent

    # Refs

    def ref(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text().strip() if path.is_file() else None

    def refs(self, prefix: str) -> dict[str, str]:
        """{short name: commit id} of the refs below a prefix such as "refs/heads"."""
        folder = self.folder / prefix
        found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        return {path.relative_to(folder).as_posix(): path.read_text().strip() for path in found}

    def set_ref(self, name: str, oid: str) -> None:
        try:
            write_atomically(self.folder / name, f"{oid}\n".encode())
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise RefConflict(name) from error

    def delete_ref(self, name: str) -> None:
        path = self.folder / name
        path.unlink()
        # An empty folder `refs/heads/a` would stand in the way of a branch `a`.
        while path.parent.parent.name != "refs" and path.parent.name != "refs" and not any(path.parent.iterdir()):
            path = path.parent
            path.rmdir()

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag, a full ref name or a commit id (also shortened) means."""
        candidates = [f"refs/heads/{revision}", f"refs/tags/{revision}"]
        candidates += [revision] if revision.startswith("refs/") else []
        for name in candidates:
            if is_valid_ref_name(name) and (oid := self.ref(name)):
                return oid
        if FULL_ID.fullmatch(revision):
            return revision if self.is_commit(revision) else None
        if SHORT_ID.fullmatch(revision):
            folder = self.folder / "objects" / revision[:2]
            full = [revision[:2] + path.name for path in folder.glob(revision[2:] + "*")]
            commits = [oid for oid in full if self.is_commit(oid)]
            return commits[0] if len(commits) == 1 else None
        return None
