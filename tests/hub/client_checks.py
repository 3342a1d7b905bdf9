"""What `huggingface_hub` can do with the test Hub: checks of the real client, run in one process by test_server.py.

    python -m tests.hub.client_checks HUB_ROOT HUB_URL SCRATCH_FOLDER

Writes one JSON line a check: its name and, if it failed, the traceback.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    HfFileSystem,
    ModelCard,
    ModelCardData,
    RepoFile,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .fixture import HubProcess


Operation: TypeAlias = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete

WEIGHTS = bytes(range(256)) * 2000


@contextmanager
def refused(error: type[Exception], status: int | None = None, text: str = "") -> Iterator[None]:
    """The block must raise exactly this class of error, with this status and text."""
    try:
        yield
    except error as caught:
        assert type(caught) is error, f"expected exactly {error.__name__}, got {type(caught).__name__}: {caught}"
        if status is not None:
            assert isinstance(caught, HfHubHTTPError)
            assert caught.response.status_code == status, f"expected {status}, got {caught}"
        assert text in str(caught), f"expected {text!r} in {caught}"
    else:
        raise AssertionError(f"expected {error.__name__}, nothing was raised")


def paths(api: HfApi, repo_id: str, revision: str | None = None) -> set[str]:
    return set(api.list_repo_files(repo_id, revision=revision)) - {".gitattributes"}


def titles(api: HfApi, repo_id: str, revision: str | None = None) -> list[str]:
    return [commit.title for commit in api.list_repo_commits(repo_id, revision=revision)]


def content(repo_id: str, filename: str, revision: str | None = None, repo_type: str | None = None) -> bytes:
    return Path(hf_hub_download(repo_id, filename, revision=revision, repo_type=repo_type)).read_bytes()


def model_folder(folder: Path) -> Path:
    """A folder like a trained model's: small text, weights, an image, something below."""
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "samples" / "grid.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00" + os.urandom(500))
    (folder / "notes.txt").write_text("größer\n")
    return folder


def check_create_repository(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    created = api.create_repo("created")
    assert (created.repo_id, created.repo_type, str(created)) == ("alice/created", "model", f"{hub.url}/alice/created")
    assert api.create_repo("alice/created", exist_ok=True) == created
    with refused(HfHubHTTPError, 409):
        api.create_repo("alice/created")
    with refused(HfHubHTTPError, 403):
        api.create_repo("bob/not-mine")
    assert api.create_repo("acme/shared").repo_id == "acme/shared"
    assert paths(api, "alice/created") == set()
    assert titles(api, "alice/created") == ["initial commit"]
    assert api.repo_exists("alice/created") and not api.repo_exists("alice/never")


def check_who_am_i(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    me = api.whoami()
    assert me["name"] == "alice" and me["auth"]["accessToken"]["role"] == "write"
    assert [org["name"] for org in me["orgs"]] == ["acme"]
    assert api.whoami(token=hub.tokens["alice-read"])["auth"]["accessToken"]["role"] == "read"
    with refused(HfHubHTTPError, 401):
        api.whoami(token="hf_wrong")


def check_upload_file_and_download(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/files")
    weights = scratch / "weights.safetensors"
    weights.write_bytes(WEIGHTS)
    api.upload_file(repo_id="alice/files", path_or_fileobj=b"{}", path_in_repo="sub folder/config.json")
    info = api.upload_file(
        repo_id="alice/files",
        path_or_fileobj=weights,
        path_in_repo="model.safetensors",
        commit_message="Add weights",
        commit_description="After two steps.",
    )
    assert content("alice/files", "model.safetensors") == WEIGHTS
    assert content("alice/files", "sub folder/config.json") == b"{}"
    assert api.file_exists("alice/files", "model.safetensors")
    assert not api.file_exists("alice/files", "missing.json")
    last = api.list_repo_commits("alice/files")[0]
    assert (last.commit_id, last.title, last.message) == (info.oid, "Add weights", "After two steps.")
    assert last.authors == ["alice"]
    with refused(RemoteEntryNotFoundError, 404):
        hf_hub_download("alice/files", "missing.json")


def check_file_metadata(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    """Small files are known by their git id, large ones by their SHA-256 and served by another origin."""
    api.create_repo("alice/metadata")
    additions = [CommitOperationAdd("a.txt", b"hello\n"), CommitOperationAdd("b.bin", WEIGHTS)]
    oid = api.create_commit("alice/metadata", additions, commit_message="Both").oid
    small = get_hf_file_metadata(hf_hub_url("alice/metadata", "a.txt"))
    # What `git hash-object` says of "hello\n".
    assert (small.etag, small.size, small.commit_hash) == ("ce013625030ba8dba906f756967f9e9ca394464a", 6, oid)
    large = get_hf_file_metadata(hf_hub_url("alice/metadata", "b.bin"), token=hub.token)
    assert (large.etag, large.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert large.commit_hash == oid and not large.location.startswith(hub.url)
    (file,) = api.get_paths_info("alice/metadata", "b.bin")
    assert isinstance(file, RepoFile) and file.lfs is not None
    assert (file.size, file.lfs.sha256, file.lfs.pointer_size) == (len(WEIGHTS), large.etag, 131)
    sibling = {item.rfilename: item for item in api.model_info("alice/metadata", files_metadata=True).siblings or []}
    assert sibling["a.txt"].blob_id == small.etag and sibling["b.bin"].size == len(WEIGHTS)


def check_upload_folder_twice_makes_one_commit(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/folder")
    folder = model_folder(scratch / "model")
    first = api.upload_folder(repo_id="alice/folder", folder_path=folder)
    assert api.upload_folder(repo_id="alice/folder", folder_path=folder).oid == first.oid
    assert len(titles(api, "alice/folder")) == 2
    assert paths(api, "alice/folder") == {"config.json", "model.safetensors", "samples/grid.png", "notes.txt"}
    hub.clear_requests()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    second = api.upload_folder(repo_id="alice/folder", folder_path=folder, delete_patterns="samples/*")
    assert second.oid != first.oid and len(titles(api, "alice/folder")) == 3
    assert not hub.requests("PUT"), "unchanged weights were sent again"
    (folder / "samples" / "grid.png").unlink()
    api.upload_folder(repo_id="alice/folder", folder_path=folder, delete_patterns="samples/*")
    assert paths(api, "alice/folder") == {"config.json", "model.safetensors", "notes.txt"}


def check_files_go_to_lfs_by_name_content_or_size(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/lfs")
    added = {
        "tiny.safetensors": b"text",
        "image.png": b"\x00\x01",
        "big.txt": b"a" * (10 * 2**20 + 1),
        "a b.dat": b"\xff",
    }
    regular = {"small.txt": b"text", "empty.bin": b"", "umlaut.md": ("ä" * 600).encode()}
    additions = [CommitOperationAdd(name, data) for name, data in (added | regular).items()]
    api.create_commit("alice/lfs", additions, commit_message="Mixed")
    in_lfs = {item.path for item in api.list_repo_tree("alice/lfs") if isinstance(item, RepoFile) and item.lfs}
    assert in_lfs == set(added)
    attributes = content("alice/lfs", ".gitattributes").decode()
    assert "image.png filter=lfs" in attributes and "big.txt filter=lfs" in attributes
    assert "a[[:space:]]b.dat filter=lfs" in attributes and "tiny.safetensors" not in attributes
    assert all(content("alice/lfs", name) == data for name, data in (added | regular).items())


def check_gitignore(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/ignore")
    folder = scratch / "ignore"
    for name in ("checkpoints/step-1/a.txt", "keep.log", "b.log", "deep/c.tmp", "d.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("# never\ncheckpoints/\n*.log\n!keep.log\n/deep/*.tmp\n")
    api.upload_folder(repo_id="alice/ignore", folder_path=folder)
    assert paths(api, "alice/ignore") == {".gitignore", "keep.log", "d.txt"}


def check_delete_and_copy(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/edit")
    api.upload_folder(repo_id="alice/edit", folder_path=model_folder(scratch / "edit"))
    api.delete_file("notes.txt", "alice/edit")
    api.delete_folder("samples", "alice/edit")
    assert paths(api, "alice/edit") == {"config.json", "model.safetensors"}
    with refused(RemoteEntryNotFoundError, 404, "A file with this name doesn't exist"):
        api.delete_file("notes.txt", "alice/edit")
    operations: list[Operation] = [
        CommitOperationCopy("model.safetensors", "old/model.safetensors"),
        CommitOperationCopy("config.json", "old/config.json"),
        CommitOperationAdd("config.json", b'{"model_type": "gpt2"}'),
        CommitOperationDelete("model.safetensors"),
    ]
    api.create_commit("alice/edit", operations, commit_message="Move the old ones")
    assert paths(api, "alice/edit") == {"config.json", "old/model.safetensors", "old/config.json"}
    assert content("alice/edit", "old/model.safetensors") == WEIGHTS
    assert content("alice/edit", "old/config.json") == b'{"model_type": "bert"}'
    api.delete_files("alice/edit", ["old/*"])
    assert paths(api, "alice/edit") == {"config.json"}


def check_branches_and_tags(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/refs")
    first = api.upload_file(repo_id="alice/refs", path_or_fileobj=b"1", path_in_repo="a.txt").oid
    api.create_tag("alice/refs", tag="v1", tag_message="The first")
    api.create_branch("alice/refs", branch="feature/x")
    api.create_branch("alice/refs", branch="feature/x", exist_ok=True)
    with refused(HfHubHTTPError, 409):
        api.create_branch("alice/refs", branch="feature/x")
    with refused(HfHubHTTPError, 409):
        api.create_tag("alice/refs", tag="v1")
    api.create_tag("alice/refs", tag="v1", exist_ok=True)
    second = api.upload_file(
        repo_id="alice/refs", path_or_fileobj=b"2", path_in_repo="a.txt", revision="feature/x"
    ).oid
    for revision, expected in (("main", b"1"), ("v1", b"1"), ("feature/x", b"2"), (first, b"1"), (second[:8], b"2")):
        assert content("alice/refs", "a.txt", revision=revision) == expected, revision
    refs = api.list_repo_refs("alice/refs", include_pull_requests=True)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": first, "feature/x": second}
    assert [(tag.name, tag.ref, tag.target_commit) for tag in refs.tags] == [("v1", "refs/tags/v1", first)]
    api.create_branch("alice/refs", branch="from-tag", revision="v1")
    api.delete_branch("alice/refs", branch="feature/x")
    api.create_branch("alice/refs", branch="feature")
    api.delete_tag("alice/refs", tag="v1")
    with refused(RevisionNotFoundError, 404):
        hf_hub_download("alice/refs", "a.txt", revision="v1")
    with refused(RevisionNotFoundError, 404):
        api.upload_file(repo_id="alice/refs", path_or_fileobj=b"", path_in_repo="x", revision="nowhere")
    with refused(RevisionNotFoundError, 404):
        api.delete_tag("alice/refs", tag="v1")
    with refused(HfHubHTTPError, 403):
        api.delete_branch("alice/refs", branch="main")
    with refused(BadRequestError, 400):
        api.create_branch("alice/refs", branch="refs/pr/7")
    assert api.revision_exists("alice/refs", "from-tag") and not api.revision_exists("alice/refs", "v1")


def check_history(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    """Ten commits take several pages; an old one can still be read; squashing leaves one."""
    api.create_repo("alice/history")
    oids = [
        api.upload_file(
            repo_id="alice/history", path_or_fileobj=str(n).encode(), path_in_repo="n.txt", commit_message=f"{n}"
        ).oid
        for n in range(10)
    ]
    listed = api.list_repo_commits("alice/history")
    assert [commit.commit_id for commit in listed[:-1]] == oids[::-1]
    assert content("alice/history", "n.txt", revision=oids[3]) == b"3"
    (entry,) = [item for item in api.list_repo_tree("alice/history", expand=True) if item.path == "n.txt"]
    assert isinstance(entry, RepoFile) and entry.last_commit is not None and entry.last_commit.oid == oids[-1]
    api.super_squash_history("alice/history", commit_message="All of it")
    assert titles(api, "alice/history") == ["All of it"]
    assert content("alice/history", "n.txt") == b"9"


def check_large_listing(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/many")
    names = {f"part-{n % 3}/deep/{n:02}.txt" for n in range(30)}
    hub.clear_requests()
    api.create_commit("alice/many", [CommitOperationAdd(name, name.encode()) for name in names], commit_message="Many")
    assert paths(api, "alice/many") == names
    listed = list(api.list_repo_tree("alice/many", recursive=True))
    assert {item.path for item in listed if isinstance(item, RepoFile)} == names | {".gitattributes"}
    assert len(hub.requests("GET", "/tree/")) > 5
    assert [item.path for item in api.list_repo_tree("alice/many", "part-1/deep")] == sorted(
        name for name in names if name.startswith("part-1/")
    )
    with refused(RemoteEntryNotFoundError, 404):
        list(api.list_repo_tree("alice/many", "part-9"))
    infos = api.get_paths_info("alice/many", ["part-1", "part-1/deep/01.txt", "missing"], expand=True)
    assert [info.path for info in infos] == ["part-1", "part-1/deep/01.txt"]


def check_snapshot_download(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/snapshot")
    folder = model_folder(scratch / "snapshot")
    first = api.upload_folder(repo_id="alice/snapshot", folder_path=folder).oid
    (folder / "notes.txt").write_text("second")
    api.upload_folder(repo_id="alice/snapshot", folder_path=folder)
    latest = Path(snapshot_download("alice/snapshot"))
    assert (latest / "notes.txt").read_text() == "second"
    assert (latest / "samples" / "grid.png").read_bytes() == (folder / "samples" / "grid.png").read_bytes()
    pinned = Path(snapshot_download("alice/snapshot", revision=first))
    assert pinned.name == first and (pinned / "notes.txt").read_text() == "größer\n"
    assert (pinned / "model.safetensors").resolve() == (latest / "model.safetensors").resolve()
    hub.clear_requests()
    assert Path(snapshot_download("alice/snapshot")) == latest
    assert not hub.requests("GET", "/resolve/"), "a cached snapshot was downloaded again"
    some = Path(snapshot_download("alice/snapshot", local_dir=scratch / "some", allow_patterns="*.txt"))
    assert [path.name for path in some.iterdir() if path.is_file()] == ["notes.txt"]
    checked = api.verify_repo_checksums("alice/snapshot", cache_dir=None)
    assert not checked.mismatches and not checked.missing_paths


def check_interrupted_download_resumes(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/resume")
    # The client keeps what it has in pieces of 10 MiB.
    piece = 10 * 2**20
    weights = WEIGHTS * 24
    api.upload_file(repo_id="alice/resume", path_or_fileobj=weights, path_in_repo="model.safetensors")
    hub.inject("drop_response", method="GET", path="^/models/alice/resume/", body_bytes=piece + 100_000)
    hub.clear_requests()
    assert content("alice/resume", "model.safetensors") == weights
    answers = [(get.range, get.status, get.response_bytes) for get in hub.requests("GET", "^/models/alice/resume/")]
    assert answers == [(None, 200, piece + 100_000), (f"bytes={piece}-", 206, len(weights) - piece)]


def check_file_system(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/fs")
    files = HfFileSystem()
    files.pipe_file("alice/fs/data/weights.bin", WEIGHTS)
    with files.open("alice/fs/data/a.txt", "w") as file:
        file.write("line one\nline two\n")
    assert set(files.find("alice/fs/data")) == {"alice/fs/data/a.txt", "alice/fs/data/weights.bin"}
    assert set(files.ls("alice/fs", detail=False)) == {"alice/fs/.gitattributes", "alice/fs/data"}  # type: ignore[arg-type]
    assert files.glob("alice/fs/**/*.txt") == ["alice/fs/data/a.txt"]
    assert files.read_text("alice/fs/data/a.txt") == "line one\nline two\n"
    with files.open("alice/fs/data/weights.bin", block_size=1000) as file:
        file.seek(100_000)
        assert file.read(500) == WEIGHTS[100_000:100_500]
    assert any(request.range and request.status == 206 for request in hub.requests("GET"))
    assert files.info("alice/fs/data/weights.bin")["size"] == len(WEIGHTS)
    files.get_file("alice/fs/data/weights.bin", str(scratch / "weights.bin"))
    assert (scratch / "weights.bin").read_bytes() == WEIGHTS
    files.rm("alice/fs/data/a.txt")
    assert not files.exists("alice/fs/data/a.txt") and files.exists("alice/fs/data/weights.bin")
    assert not files.exists("alice/never/a.txt")


def check_safetensors_metadata(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    api.create_repo("alice/tensors")
    data = struct.pack("<Q", len(header)) + header + bytes(24)
    api.upload_file(repo_id="alice/tensors", path_or_fileobj=data, path_in_repo="model.safetensors")
    assert api.get_safetensors_metadata("alice/tensors").parameter_count == {"F32": 6}


def check_model_card(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/card")
    result = EvalResult(
        task_type="image-generation",
        dataset_type="mnist",
        dataset_name="MNIST",
        metric_type="elbo",
        metric_value=-95.5,
    )
    data = ModelCardData(
        license="apache-2.0", library_name="hfgen", tags=["vae"], model_name="card", eval_results=[result],
        datasets=["ylecun/mnist"], pipeline_tag="unconditional-image-generation",
    )  # fmt: skip
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# A card\n")
    card.validate()
    card.push_to_hub("alice/card")
    loaded = ModelCard.load("alice/card")
    assert loaded.data.eval_results[0].metric_value == -95.5 and loaded.data.tags == ["vae"]
    info = api.model_info("alice/card")
    assert info.pipeline_tag == "unconditional-image-generation" and info.library_name == "hfgen"
    assert {"vae", "hfgen", "license:apache-2.0", "dataset:ylecun/mnist"} <= set(info.tags or [])
    for bad in ("license: [", "- a list", "model-index: 3", "model-index:\n- name: x\n  results:\n  - task: {}"):
        with refused(ValueError, text="Invalid metadata in README.md"):
            api.upload_file(
                repo_id="alice/card", path_or_fileobj=f"---\n{bad}\n---\n".encode(), path_in_repo="README.md"
            )
    assert ModelCard.load("alice/card").data.tags == ["vae"]


def check_private_repository(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    """A stranger is told 401 and another user 404; both are "no such repository" to the client."""
    api.create_repo("alice/private", private=True)
    api.upload_file(repo_id="alice/private", path_or_fileobj=b"{}", path_in_repo="config.json")
    bob, reader, stranger = hub.tokens["bob"], hub.tokens["alice-read"], False
    for token, status in ((bob, 404), (stranger, 401)):
        with refused(RepositoryNotFoundError, status):
            api.model_info("alice/private", token=token)
        with refused(RepositoryNotFoundError, status):
            hf_hub_download("alice/private", "config.json", token=token)
        with refused(RepositoryNotFoundError, status):
            api.model_info("alice/never", token=token)
    assert api.model_info("alice/private").private
    assert hf_hub_download("alice/private", "config.json", token=reader)
    assert not api.repo_exists("alice/private", token=bob)
    with refused(HfHubHTTPError, 403):
        api.upload_file(repo_id="alice/private", path_or_fileobj=b"", path_in_repo="x", token=reader)
    with refused(HfHubHTTPError, 403):
        api.delete_repo("alice/private", token=reader)
    listed = [model.id for model in api.list_models(author="alice", token=bob)]
    assert "alice/private" not in listed and "alice/private" in [model.id for model in api.list_models(author="alice")]
    api.update_repo_settings("alice/private", private=False)
    assert not api.model_info("alice/private", token=stranger).private
    with refused(HfHubHTTPError, 403):
        api.upload_file(repo_id="alice/private", path_or_fileobj=b"", path_in_repo="x", token=bob)
    with refused(HfHubHTTPError, 401, "Invalid credentials"):
        api.model_info("alice/private", token="hf_expired")


def check_organisation_repository(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("acme/model", private=True)
    assert api.model_info("acme/model", token=hub.tokens["bob"]).author == "acme"
    api.auth_check("acme/model", token=hub.tokens["bob"])
    api.auth_check("acme/model", write=True)
    with refused(HfHubHTTPError, 403):
        api.auth_check("acme/model", token=hub.tokens["bob"], write=True)


def check_gated_repository(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/gated")
    api.upload_file(repo_id="alice/gated", path_or_fileobj=b"{}", path_in_repo="config.json")
    api.update_repo_settings("alice/gated", gated="manual")
    assert api.model_info("alice/gated", token=hub.tokens["bob"]).gated == "manual"
    for token, status in ((hub.tokens["bob"], 403), (False, 401)):
        with refused(GatedRepoError, status):
            hf_hub_download("alice/gated", "config.json", token=token)
    assert content("alice/gated", "config.json") == b"{}"


def check_list_models(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    for number in range(8):
        api.create_repo(f"alice/listed-{number}")
    card = ModelCard("---\ntags:\n- rare-tag\n---\n")
    card.push_to_hub("alice/listed-3")
    found = [model.id for model in api.list_models(search="listed-", author="alice")]
    assert sorted(found) == [f"alice/listed-{number}" for number in range(8)]
    assert len(list(api.list_models(search="listed-", limit=5))) == 5
    assert [model.id for model in api.list_models(filter="rare-tag")] == ["alice/listed-3"]
    assert {repo.id for repo in api.list_user_repos()} >= set(found)
    assert api.model_info("alice/listed-3", expand=["sha", "likes"]).sha


def check_move_and_delete(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/before")
    api.upload_file(repo_id="alice/before", path_or_fileobj=WEIGHTS, path_in_repo="model.safetensors")
    api.move_repo("alice/before", "acme/after")
    assert content("acme/after", "model.safetensors") == WEIGHTS
    assert api.model_info("alice/before").id == "acme/after"
    assert content("alice/before", "model.safetensors") == WEIGHTS
    api.delete_repo("acme/after")
    with refused(RepositoryNotFoundError, 404):
        api.model_info("acme/after")
    with refused(RepositoryNotFoundError, 404):
        api.delete_repo("acme/after")
    api.delete_repo("acme/after", missing_ok=True)


def check_datasets_and_spaces(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/data", repo_type="dataset")
    api.upload_file(repo_id="alice/data", repo_type="dataset", path_or_fileobj=b"a\n", path_in_repo="train.csv")
    assert api.dataset_info("alice/data").id == "alice/data"
    assert content("alice/data", "train.csv", repo_type="dataset") == b"a\n"
    assert HfFileSystem().read_text("datasets/alice/data/train.csv") == "a\n"
    with refused(RepositoryNotFoundError, 404):
        api.model_info("alice/data")
    api.create_repo("alice/demo", repo_type="space", space_sdk="static")
    assert api.repo_info("alice/demo", repo_type="space").id == "alice/demo"


def check_parent_commit(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/parent")
    start = api.model_info("alice/parent").sha
    add = [CommitOperationAdd("a.txt", b"1")]
    first = api.create_commit("alice/parent", add, commit_message="First", parent_commit=start).oid
    with refused(HfHubHTTPError, 412, "A commit has happened since"):
        api.create_commit(
            "alice/parent", [CommitOperationAdd("b.txt", b"")], commit_message="Stale", parent_commit=start
        )
    api.create_commit("alice/parent", [CommitOperationAdd("c.txt", b"")], commit_message="Next", parent_commit=first)
    assert paths(api, "alice/parent") == {"a.txt", "c.txt"}


def check_pull_request_ref(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/pr")
    info = api.upload_file(repo_id="alice/pr", path_or_fileobj=b"1", path_in_repo="a.txt", create_pr=True)
    assert (info.pr_revision, info.pr_num) == ("refs/pr/1", 1)
    assert paths(api, "alice/pr") == set() and paths(api, "alice/pr", "refs/pr/1") == {"a.txt"}
    api.upload_file(repo_id="alice/pr", path_or_fileobj=b"2", path_in_repo="a.txt", revision="refs/pr/1")
    assert content("alice/pr", "a.txt", revision="refs/pr/1") == b"2"


def check_commit_is_whole_or_nothing(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/whole")
    before = api.model_info("alice/whole").sha
    with refused(RemoteEntryNotFoundError, 404):
        operations: list[Operation] = [CommitOperationAdd("a.txt", b"1"), CommitOperationDelete("never.txt")]
        api.create_commit("alice/whole", operations, commit_message="Half wrong")
    for bad in ("a//b", "x/.git/config"):
        operation = CommitOperationAdd("placeholder", b"1")
        operation.path_in_repo = bad
        with refused(BadRequestError, 400):
            api.create_commit("alice/whole", [operation], commit_message="Bad path")
    conflict = [CommitOperationAdd("a", b"1"), CommitOperationAdd("a/b", b"2")]
    with refused(BadRequestError, 400):
        api.create_commit("alice/whole", conflict, commit_message="File and folder")
    assert api.model_info("alice/whole").sha == before


def check_two_writers_at_once(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("acme/busy")

    def write(name: str) -> str:
        return api.upload_file(repo_id="acme/busy", path_or_fileobj=WEIGHTS + name.encode(), path_in_repo=name).oid

    with ThreadPoolExecutor(4) as pool:
        oids = set(pool.map(write, [f"{writer}-{n}.bin" for n in range(4) for writer in "ab"]))
    commits = api.list_repo_commits("acme/busy")
    assert {commit.commit_id for commit in commits[:-1]} == oids and len(oids) == 8
    assert len(paths(api, "acme/busy")) == 8
    assert all(content("acme/busy", name) == WEIGHTS + name.encode() for name in paths(api, "acme/busy"))


def check_rate_limit_is_waited_for(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/limited")
    hub.inject("status", path="/alice/limited/preupload/", status=429, retry_after=1)
    started = time.monotonic()
    api.upload_file(repo_id="alice/limited", path_or_fileobj=b"1", path_in_repo="a.txt")
    # The client adds a second to what it was told.
    assert time.monotonic() - started >= 2
    assert [request.status for request in hub.requests("POST", "/alice/limited/preupload/")] == [429, 200]


def check_dropped_upload_is_sent_again(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    api.create_repo("alice/dropped")
    hub.inject("drop_upload", method="PUT", path="^/models/alice/dropped/", body_bytes=100_000)
    api.upload_file(repo_id="alice/dropped", path_or_fileobj=WEIGHTS, path_in_repo="model.safetensors")
    puts = hub.requests("PUT", "^/models/alice/dropped/")
    assert [put.status for put in puts] == [0, 200] and puts[0].request_bytes < len(WEIGHTS)
    assert content("alice/dropped", "model.safetensors") == WEIGHTS


def check_failed_commits(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    """`create_commit` does not repeat a commit that failed: the caller sees each of these."""
    api.create_repo("alice/failing")

    def push() -> str:
        return api.upload_file(repo_id="alice/failing", path_or_fileobj=b"1", path_in_repo="a.txt").oid

    for status in (500, 503):
        hub.inject("status", path="/alice/failing/commit/", status=status)
        with refused(HfHubHTTPError, status):
            push()
    hub.inject("expired_token", path="/alice/failing/commit/", user="alice")
    with refused(HfHubHTTPError, 401, "Invalid credentials in Authorization header"):
        push()
    assert titles(api, "alice/failing") == ["initial commit"]
    for status in (412, 409):
        hub.inject("parent_moved", path="/alice/failing/commit/", status=status)
        with refused(HfHubHTTPError, status, "A commit has happened since"):
            push()
    assert titles(api, "alice/failing") == ["Foreign commit", "Foreign commit", "initial commit"]
    hub.inject("foreign_commit", path="/alice/failing/commit/")
    push()
    assert len(paths(api, "alice/failing")) == 4


def check_lost_answer_of_a_commit(api: HfApi, hub: HubProcess, scratch: Path) -> None:
    """The commit landed, only the answer did not: to push again must be harmless."""
    api.create_repo("alice/lost")

    def push() -> None:
        api.upload_file(repo_id="alice/lost", path_or_fileobj=b"1", path_in_repo="a.txt")

    hub.inject("drop_response", path="/alice/lost/commit/")
    try:
        push()
    except Exception as error:
        # The class is that of whichever HTTP library the client uses.
        assert "disconnected" in str(error), error
    else:
        raise AssertionError("the answer should have been lost")
    assert paths(api, "alice/lost") == {"a.txt"}
    push()
    assert len(titles(api, "alice/lost")) == 2


CHECKS: dict[str, Callable[[HfApi, HubProcess, Path], None]] = {
    name.removeprefix("check_"): function for name, function in list(globals().items()) if name.startswith("check_")
}


def main() -> None:
    root, url, scratch = sys.argv[1:]
    hub = HubProcess.connect(Path(root), url)
    for name, check in CHECKS.items():
        folder = Path(scratch) / name
        folder.mkdir(parents=True)
        started = time.monotonic()
        try:
            check(HfApi(), hub, folder)
            problem = ""
        except Exception:
            # The next check must run, whatever is wrong with this one.
            problem = traceback.format_exc()
        seconds = round(time.monotonic() - started, 2)
        print(json.dumps({"name": name, "problem": problem, "seconds": seconds}), flush=True)
        hub.clear_faults()


if __name__ == "__main__":
    main()
