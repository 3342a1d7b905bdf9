"""The git repository in pure Python, judged by git itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .git_patterns import DEFAULT_ATTRIBUTES, is_ignored, is_lfs_path, lfs_line
from .git_store import GitStore, RefConflict, blob_id, is_valid_ref_name


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is the reference here")

PATHS = [
    "a.txt",
    "a-b/x",
    "a/x.log",
    "a/deep/x.log",
    "a.b/c",
    "äöü/ß.txt",
    "keep.log",
    "build/keep.log",
    "x.safetensors",
]


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> str:
    result = subprocess.run(["git", *arguments], cwd=folder, input=stdin, capture_output=True, check=False)
    assert result.returncode in (0, 1), result.stderr.decode()
    return result.stdout.decode()


@needs_git
def test_git_reads_what_the_store_wrote(tmp_path: Path) -> None:
    store = GitStore.create(tmp_path / "repo")
    files = {path: store.write("blob", path.encode()) for path in PATHS}
    first = store.write_commit(store.write_tree(files), None, "alice", 1_700_000_000, "First\n\nWhy.")
    tree = store.write_tree(files | {"a.txt": store.write("blob", b"new")})
    second = store.write_commit(tree, first, "bob <x>", 1_700_000_001, "Second")
    store.set_ref("refs/heads/main", second)
    store.set_ref("refs/tags/v1", first)
    assert git(store.folder, "fsck", "--full", "--strict") == ""
    assert git(store.folder, "log", "--format=%H %an %s|%b", "main").split("\n")[:2] == [
        f"{second} bob x Second|",
        f"{first} alice First|Why.",
    ]
    listed = git(store.folder, "-c", "core.quotePath=false", "ls-tree", "-r", "--name-only", "main").splitlines()
    assert listed == [entry.path for entry in store.walk(tree) if entry.kind == "blob"]
    assert git(store.folder, "show", "v1:äöü/ß.txt") == "äöü/ß.txt"
    assert git(tmp_path, "hash-object", "--stdin", stdin=b"hello").strip() == blob_id(b"hello")


@pytest.mark.parametrize(
    "name", ["main", "feature/x", "v1.0", "a@b", "-x", "a..b", "a b", "a/", "a.lock", "a//b", ".a", "a~1"]
)
@needs_git
def test_ref_names_are_those_of_git(tmp_path: Path, name: str) -> None:
    result = subprocess.run(
        ["git", "check-ref-format", "--branch", name], cwd=tmp_path, capture_output=True, check=False
    )
    assert is_valid_ref_name(name) == (result.returncode == 0)


def test_branch_cannot_be_another_branchs_folder(tmp_path: Path) -> None:
    store = GitStore.create(tmp_path / "repo")
    oid = store.write_commit(store.write_tree({}), None, "alice", 0, "Empty")
    store.set_ref("refs/heads/a/b", oid)
    for name in ("refs/heads/a", "refs/heads/a/b/c"):
        with pytest.raises(RefConflict):
            store.set_ref(name, oid)
    store.delete_ref("refs/heads/a/b")
    store.set_ref("refs/heads/a", oid)
    assert store.refs("refs/heads") == {"a": oid}


@pytest.mark.parametrize(
    "ignore_file",
    [
        "*.log", "*.log\n!keep.log", "build/", "/a/*.log", "a/**/x.log", "**/deep/", "a", "!a.txt\n*.txt", "# a.txt\n",
        "build/\n!build/keep.log", "[a-b]*", "?.txt", "deep",
    ],
)  # fmt: skip
@needs_git
def test_ignored_paths_are_those_of_git(tmp_path: Path, ignore_file: str) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text(ignore_file)
    quoted = git(tmp_path, "-c", "core.quotePath=false", "check-ignore", "--stdin", stdin="\n".join(PATHS).encode())
    assert [path for path in PATHS if is_ignored(path, ignore_file)] == quoted.splitlines()


@needs_git
def test_lfs_paths_are_those_of_git(tmp_path: Path) -> None:
    paths = [*PATHS, "a/b.bin", "saved_model/v/1/x", "x.tar.gz", "events.tfevents.1", "my file.dat", "sub/my file.dat"]
    attributes = DEFAULT_ATTRIBUTES + lfs_line("my file.dat") + "# *.txt filter=lfs\n"
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitattributes").write_text(attributes)
    answers = git(tmp_path, "check-attr", "-z", "--stdin", "filter", stdin="\0".join(paths).encode()).split("\0")
    expected = {path: value == "lfs" for path, value in zip(answers[::3], answers[2::3], strict=False)}
    assert {path: is_lfs_path(path, attributes) for path in paths} == expected
