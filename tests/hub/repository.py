"""Hub repositories on disk: a bare git repository each, its LFS objects beside it, and a record of who may see it.

ROOT/models/alice/mnist/repo.json      RepoRecord
                        objects/ refs/ the git repository
                        lfs/objects/   large files by sha256, in the layout of git-lfs
ROOT/renamed.json                      old names
ROOT/tmp/                              uploads under way; swept when the server starts
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from . import git_patterns
from .card_metadata import check_card
from .git_store import Commit, GitStore, RefConflict, is_valid_ref_name, write_atomically
from .http_messages import CHUNK, BodySource, HubError


RepoKind: TypeAlias = Literal["models", "datasets", "spaces"]
Gated: TypeAlias = Literal["auto", "manual", False]

MAIN = "refs/heads/main"
# Larger files must go through LFS. The client reads regular files into memory whole.
LARGEST_REGULAR_FILE = 10 * 1024 * 1024
POINTER_LIMIT = 512
POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n")
SHA256 = re.compile(r"[0-9a-f]{64}")
REPO_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


@dataclass(frozen=True)
class LfsPointer:
    sha256: str
    size: int

    @property
    def content(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @classmethod
    def parse(cls, content: bytes) -> LfsPointer | None:
        found = POINTER.fullmatch(content)
        return cls(found.group(1).decode(), int(found.group(2))) if found else None


@dataclass(frozen=True)
class FileEntry:
    """A file of a snapshot. `size` is that of the file, `blob_size` that of what git holds (for LFS, the pointer)."""

    path: str
    blob_id: str
    blob_size: int
    lfs: LfsPointer | None

    @property
    def size(self) -> int:
        return self.lfs.size if self.lfs else self.blob_size

    @property
    def etag(self) -> str:
        return self.lfs.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class FolderEntry:
    path: str
    tree_id: str


Entry: TypeAlias = FileEntry | FolderEntry


@dataclass(frozen=True)
class AddBlob:
    path: str
    blob_id: str


@dataclass(frozen=True)
class AddLfs:
    path: str
    sha256: str


@dataclass(frozen=True)
class Delete:
    path: str
    is_folder: bool


Operation: TypeAlias = AddBlob | AddLfs | Delete


@dataclass
class CommitPlan:
    """What a client asks a commit to do. Operations are applied in order."""

    summary: str
    description: str = ""
    parent: str | None = None
    operations: list[Operation] = field(default_factory=list)

    @property
    def message(self) -> str:
        return f"{self.summary}\n\n{self.description}" if self.description else self.summary


@dataclass
class RepoRecord:
    kind: RepoKind
    id: str
    private: bool = False
    gated: Gated = False
    sdk: str | None = None
    created: float = field(default_factory=time.time)
    key: str = field(default_factory=lambda: secrets.token_hex(12))

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]


class HubRepository:
    """One repository. Reading needs no lock; what changes refs or the record takes `lock`."""

    def __init__(self, folder: Path, record: RepoRecord) -> None:
        self.folder = folder
        self.record = record
        self.git = GitStore(folder)
        self.lock = threading.RLock()

    @classmethod
    def create(cls, folder: Path, record: RepoRecord, author: str) -> HubRepository:
        GitStore.create(folder)
        repository = cls(folder, record)
        attributes = repository.git.write("blob", git_patterns.DEFAULT_ATTRIBUTES.encode())
        tree = repository.git.write_tree({".gitattributes": attributes})
        first = repository.git.write_commit(tree, None, author, int(time.time()), "initial commit")
        repository.git.set_ref(MAIN, first)
        # Written last: a folder without a record is no repository.
        repository.save_record()
        return repository

    @classmethod
    def open(cls, folder: Path) -> HubRepository:
        record = RepoRecord(**json.loads((folder / "repo.json").read_text()))
        # The folder decides: a server may have been killed between moving it and writing the record.
        record.id = f"{folder.parent.name}/{folder.name}"
        return cls(folder, record)

    def save_record(self) -> None:
        write_atomically(self.folder / "repo.json", json.dumps(asdict(self.record), indent=2).encode())

    # Snapshots

    def resolve(self, revision: str) -> Commit:
        oid = self.git.resolve(revision)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.git.read_commit(oid)

    def entries(self, commit: Commit, folder: str = "", recursive: bool = True) -> Iterator[Entry]:
        """What is in a folder of a snapshot. Raises EntryNotFound if there is no such folder."""
        tree = commit.tree
        if folder:
            found = self.find(commit, folder)
            if not isinstance(found, FolderEntry):
                raise HubError(404, f"{folder} does not exist on {commit.oid}", code="EntryNotFound")
            tree = found.tree_id
        for entry in self.git.walk(tree, f"{folder}/" if folder else "", recursive):
            if entry.kind == "tree":
                yield FolderEntry(entry.path, entry.oid)
            else:
                yield self._file_entry(entry.path, entry.oid)

    def find(self, commit: Commit, path: str) -> Entry | None:
        """The file or folder at a path. Goes down one folder at a time, without listing the others."""
        tree, done = commit.tree, ""
        names = path.split("/")
        for position, name in enumerate(names):
            here = {entry.path: entry for entry in self.git.walk(tree, recursive=False)}
            entry = here.get(name)
            is_last = position == len(names) - 1
            if entry is None or (entry.kind == "blob" and not is_last):
                return None
            done += name if is_last else f"{name}/"
            if is_last:
                return FolderEntry(done, entry.oid) if entry.kind == "tree" else self._file_entry(done, entry.oid)
            tree = entry.oid
        return None

    def text(self, commit: Commit, path: str) -> str | None:
        """A small text file of a snapshot, or None where it is missing or in LFS."""
        entry = self.find(commit, path)
        if not isinstance(entry, FileEntry) or entry.lfs:
            return None
        return self.git.read("blob", entry.blob_id).decode("utf-8", "replace")

    def last_commits(self, head: Commit) -> dict[str, Commit]:
        """Path to the newest commit that changed it, for every file and folder of a snapshot."""
        current = {entry.path: entry.oid for entry in self.git.walk(head.tree)}
        newest: dict[str, Commit] = {}
        commits = list(self.git.history(head.oid))
        for commit, before in zip(commits, [*commits[1:], None], strict=True):
            earlier = {entry.path: entry.oid for entry in self.git.walk(before.tree)} if before else {}
            changed = (path for path, oid in current.items() if path not in newest and earlier.get(path) != oid)
            newest.update(dict.fromkeys(changed, commit))
        return newest

    def _file_entry(self, path: str, blob_id: str) -> FileEntry:
        size, start = self.git.peek(blob_id, POINTER_LIMIT)
        pointer = LfsPointer.parse(start) if size <= POINTER_LIMIT else None
        return FileEntry(path, blob_id, size, pointer)

    # Commits

    def commit(self, ref: str, plan: CommitPlan, author: str) -> Commit:
        """Puts a commit on a branch, whole or not at all. Like the Hub, it also makes commits that change nothing."""
        with self.lock:
            head_id = self.git.ref(ref)
            if head_id is None:
                raise HubError(404, f"Invalid rev id: {ref.removeprefix('refs/heads/')}", code="RevisionNotFound")
            head = self.git.read_commit(head_id)
            if plan.parent and not head.oid.startswith(plan.parent.lower()):
                raise parent_moved_error()
            tree = self.git.write_tree(self._files_after(head, plan.operations))
            oid = self.git.write_commit(tree, head.oid, author, int(time.time()), plan.message)
            self.git.set_ref(ref, oid)
            return self.git.read_commit(oid)

    def squash(self, branch: str, message: str, author: str) -> None:
        """Replaces a branch's history by one commit with the same files."""
        with self.lock:
            head_id = self.git.ref(f"refs/heads/{branch}")
            if head_id is None:
                raise HubError(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
            tree = self.git.read_commit(head_id).tree
            oid = self.git.write_commit(tree, None, author, int(time.time()), message)
            self.git.set_ref(f"refs/heads/{branch}", oid)

    def _files_after(self, head: Commit, operations: Iterable[Operation]) -> dict[str, str]:
        files = self.git.files(head.tree)
        large: list[str] = []
        for operation in operations:
            if isinstance(operation, Delete):
                _delete(files, operation)
                continue
            _check_path(operation.path)
            if isinstance(operation, AddLfs):
                files[operation.path] = self._pointer_blob(operation)
                large.append(operation.path)
            else:
                files[operation.path] = operation.blob_id
        self._record_large_files(files, large)
        _check_no_file_is_folder(files)
        self._check_card(files, operations)
        return files

    def _pointer_blob(self, operation: AddLfs) -> str:
        size = self.lfs_size(operation.sha256)
        if size is None:
            message = f"an LFS pointer pointed to a file that does not exist; offending file: {operation.path}"
            raise HubError(400, message)
        return self.git.write("blob", LfsPointer(operation.sha256, size).content)

    def _record_large_files(self, files: dict[str, str], paths: list[str]) -> None:
        """Names files in .gitattributes that went to LFS for their size or content, not for their name."""
        blob = files.get(".gitattributes")
        attributes = self.git.read("blob", blob).decode() if blob else ""
        lines = [git_patterns.lfs_line(path) for path in paths if not git_patterns.is_lfs_path(path, attributes)]
        if lines:
            separator = "" if attributes.endswith("\n") or not attributes else "\n"
            files[".gitattributes"] = self.git.write("blob", (attributes + separator + "".join(lines)).encode())

    def _check_card(self, files: dict[str, str], operations: Iterable[Operation]) -> None:
        if any(isinstance(operation, AddBlob) and operation.path == "README.md" for operation in operations):
            report = check_card(self.git.read("blob", files["README.md"]).decode("utf-8", "replace"))
            if report.errors:
                raise HubError(400, f"Invalid metadata in README.md: {'; '.join(report.errors)}")

    # Branches and tags

    def create_ref(self, kind: Literal["heads", "tags"], name: str, oid: str) -> None:
        if not is_valid_ref_name(name) or name.startswith("refs/"):
            raise HubError(400, f"Invalid reference name: {name}")
        with self.lock:
            if self.git.ref(f"refs/{kind}/{name}"):
                raise HubError(409, f"Reference already exists: {name}")
            try:
                self.git.set_ref(f"refs/{kind}/{name}", oid)
            except RefConflict as conflict:
                raise HubError(409, f"Reference {name} is in conflict with another reference") from conflict

    def delete_ref(self, kind: Literal["heads", "tags"], name: str) -> None:
        with self.lock:
            ref = f"refs/{kind}/{name}"
            if ref == MAIN:
                raise HubError(403, "The main branch cannot be deleted")
            if not is_valid_ref_name(name) or self.git.ref(ref) is None:
                raise HubError(404, f"Invalid rev id: {name}", code="RevisionNotFound")
            self.git.delete_ref(ref)

    def open_pull_request(self, commit: Commit) -> int:
        """A new ref refs/pr/N at a commit; only the ref, there are no discussions here."""
        with self.lock:
            number = 1 + max((int(name) for name in self.git.refs("refs/pr")), default=0)
            self.git.set_ref(f"refs/pr/{number}", commit.oid)
            return number

    # Large files

    def lfs_path(self, sha256: str) -> Path:
        return self.folder / "lfs" / "objects" / sha256[:2] / sha256[2:4] / sha256

    def lfs_size(self, sha256: str) -> int | None:
        path = self.lfs_path(sha256)
        return path.stat().st_size if SHA256.fullmatch(sha256) and path.exists() else None

    def store_lfs(self, source: BodySource, sha256: str, size: int, temporary: Path) -> None:
        """Takes in a large file piece by piece; it appears under its name only when size and checksum are right."""
        digest, received = hashlib.sha256(), 0
        try:
            with temporary.open("xb") as file:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    received += len(chunk)
                    file.write(chunk)
            if received != size:
                raise HubError(400, f"the object should have {size} bytes, it has {received}")
            if digest.hexdigest() != sha256:
                raise HubError(400, f"the object's SHA-256 should be {sha256}, it is {digest.hexdigest()}")
            path = self.lfs_path(sha256)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def used_storage(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


class HubStore:
    """All repositories under one folder, and the names they used to have."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.RLock()
        self._temporary = root / "tmp"
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        found = (HubRepository.open(path.parent) for path in sorted(root.glob("*/*/*/repo.json")))
        self._repositories = {(item.record.kind, item.record.id): item for item in found}
        renamed = root / "renamed.json"
        self._renamed: dict[str, str] = json.loads(renamed.read_text()) if renamed.exists() else {}

    def temporary_path(self) -> Path:
        return self._temporary / uuid.uuid4().hex

    def get(self, kind: RepoKind, repo_id: str) -> HubRepository | None:
        return self._repositories.get((kind, repo_id))

    def new_name(self, kind: RepoKind, repo_id: str) -> str | None:
        """Where a repository went that used to be called so."""
        return self._renamed.get(f"{kind}/{repo_id}")

    def all(self, kind: RepoKind | None = None) -> list[HubRepository]:
        return [item for item in list(self._repositories.values()) if kind in (None, item.record.kind)]

    def create(self, record: RepoRecord, author: str) -> HubRepository:
        check_repo_id(record.id)
        with self._lock:
            if self.get(record.kind, record.id):
                raise HubError(409, f"You already created this repo: {record.id}")
            folder = self.root / record.kind / record.id
            # Left by a server that was killed while it created this repository.
            shutil.rmtree(folder, ignore_errors=True)
            repository = HubRepository.create(folder, record, author)
            self._repositories[record.kind, record.id] = repository
            self._set_renamed(f"{record.kind}/{record.id}", None)
            return repository

    def delete(self, repository: HubRepository) -> None:
        with self._lock, repository.lock:
            del self._repositories[repository.record.kind, repository.record.id]
            grave = self.temporary_path()
            repository.folder.rename(grave)
            shutil.rmtree(grave)

    def move(self, repository: HubRepository, new_id: str) -> None:
        check_repo_id(new_id)
        kind, old_id = repository.record.kind, repository.record.id
        with self._lock, repository.lock:
            if self.get(kind, new_id):
                raise HubError(409, f"A repository named {new_id} exists")
            folder = self.root / kind / new_id
            folder.parent.mkdir(parents=True, exist_ok=True)
            repository.folder.rename(folder)
            repository.folder, repository.git = folder, GitStore(folder)
            repository.record.id = new_id
            repository.save_record()
            self._repositories[kind, new_id] = self._repositories.pop((kind, old_id))
            self._set_renamed(f"{kind}/{new_id}", None)
            self._set_renamed(f"{kind}/{old_id}", new_id)

    def _set_renamed(self, old: str, new_id: str | None) -> None:
        if new_id is None:
            self._renamed.pop(old, None)
        else:
            self._renamed[old] = new_id
        write_atomically(self.root / "renamed.json", json.dumps(self._renamed).encode())


def parent_moved_error(status: int = 412) -> HubError:
    """The answer to a commit whose `parentCommit` is no longer the head. The Hub's own status for it is 412."""
    return HubError(status, "A commit has happened since. Please refresh and try again.")


def check_repo_id(repo_id: str) -> None:
    namespace, _, name = repo_id.partition("/")
    if not REPO_NAME.fullmatch(namespace) or not REPO_NAME.fullmatch(name):
        raise HubError(400, f"Invalid repo name: {repo_id}")


def _delete(files: dict[str, str], operation: Delete) -> None:
    folder = operation.path.rstrip("/") + "/"
    doomed = [path for path in files if path.startswith(folder)] if operation.is_folder else [operation.path]
    if not doomed or any(path not in files for path in doomed):
        message = f"A file with this name doesn't exist: {operation.path}"
        raise HubError(404, message, code="EntryNotFound")
    for path in doomed:
        del files[path]


def _check_path(path: str) -> None:
    parts = path.split("/")
    is_hostile = any(part in ("", ".", "..") or part.lower() == ".git" for part in parts)
    if is_hostile or any(ord(letter) < 32 for letter in path):
        raise HubError(400, f"Invalid path in repository: {path!r}")


def _check_no_file_is_folder(files: dict[str, str]) -> None:
    for path in files:
        parts = path.split("/")
        above = ("/".join(parts[:count]) for count in range(1, len(parts)))
        if conflict := next((folder for folder in above if folder in files), None):
            raise HubError(400, f"{conflict} cannot be a file and a folder")
