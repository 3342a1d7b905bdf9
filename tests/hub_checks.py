"""Pushes and pulls against the test Hub, run in one process by test_hub.py.

    python -m tests.hub_checks HUB_ROOT HUB_URL RUNS_FOLDER SCRATCH_FOLDER

Writes one JSON line a check: its name and, if it failed, the traceback.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

import hfgen
from hfgen import hub as hub_module
from hfgen.cli import main as command_line
from hfgen.hub import HubError, download, fetch_checkpoint, fetch_model, pull, push_folder, redact
from hfgen.model_folder import LoadError, check_folder

from .hub.fixture import HubProcess


@dataclass
class Place:
    """What a check works with.

    Attributes:
        name: of its own repository, without the owner.
        folder: a copy of a run, to change.
        log: what was logged in the check so far.
    """

    hub: HubProcess
    api: HfApi
    name: str
    folder: Path
    log: io.StringIO

    @property
    def repo(self) -> str:
        return f"alice/{self.name}"

    def titles(self) -> list[str]:
        return [commit.title for commit in self.api.list_repo_commits(self.repo)]

    def files(self) -> set[str]:
        return set(self.api.list_repo_files(self.repo)) - {".gitattributes"}

    def change_weights(self, by: float = 1.0) -> None:
        path = self.folder / "model.safetensors"
        weights = {name: tensor + by for name, tensor in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})

    def assert_every_commit_loads(self) -> None:
        """Every state the repository was ever in is empty or a whole model."""
        for commit in self.api.list_repo_commits(self.repo):
            files = self.api.list_repo_files(self.repo, revision=commit.commit_id)
            if "config.json" in files:
                check_folder(download(self.repo, commit.commit_id))
            else:
                assert not any(name.endswith((".safetensors", ".py")) for name in files), files


@contextlib.contextmanager
def refused(error: type[Exception], *texts: str) -> Iterator[None]:
    try:
        yield
    except error as caught:
        for text in texts:
            assert text in str(caught), f"expected {text!r} in {caught}"
    else:
        raise AssertionError(f"expected {error.__name__}, nothing was raised")


# Pushing


def check_push_is_one_commit_and_again_none(place: Place) -> None:
    pushed = push_folder(place.folder, place.name)
    assert pushed.repo_id == place.repo and pushed.is_new and pushed.left_out == ["checkpoints/"]
    assert place.titles() == ["Upload with hfgen", "initial commit"]
    again = push_folder(place.folder, place.repo)
    assert not again.is_new and again.commit == pushed.commit and len(place.titles()) == 2
    card, notebook = (
        Path(place.api.hf_hub_download(place.repo, name)).read_text() for name in ("README.md", "notebook.ipynb")
    )
    assert f'repo = "{place.repo}"' in card and f'"repo = \\"{place.repo}\\"\\n"' in notebook
    assert f"/#fileId=https://huggingface.co/{place.repo}/blob/main/notebook.ipynb)" in card


def check_what_does_not_belong_stays_behind(place: Place) -> None:
    expected = {path.relative_to(place.folder).as_posix() for path in place.folder.rglob("*")
                if path.is_file() and "checkpoints" not in path.parts}  # fmt: skip
    for name in ("optimizer.bin", "training_args.pt", ".env", ".staging/config.json", "logs/events.out.tfevents.1",
                 "vae/events.out.tfevents.2", "vae/hparams.yml", "wandb/x.json",
                 "__pycache__/modeling_vae.pyc"):  # fmt: skip
        (place.folder / name).parent.mkdir(exist_ok=True)
        (place.folder / name).write_text("x")
    (place.folder / "notes.md").write_text("Mine.\n")
    push_folder(place.folder, place.repo)
    assert place.files() == expected | {"notes.md"}


def check_an_earlier_model_is_replaced_and_other_files_stay(place: Place) -> None:
    push_folder(place.folder, place.repo)
    place.api.upload_file(path_or_fileobj=b"by hand", path_in_repo="LICENSE", repo_id=place.repo)
    model = hfgen.VAEModel.from_pretrained(place.folder)
    (place.folder / "model.safetensors").unlink()
    (place.folder / "samples" / "step-000001.png").unlink()
    model.save_pretrained(place.folder, max_shard_size="4KB")
    push_folder(place.folder, place.repo)
    assert "model.safetensors" not in place.files() and "samples/step-000001.png" not in place.files()
    assert "model.safetensors.index.json" in place.files() and "LICENSE" in place.files()
    place.assert_every_commit_loads()


def check_a_token_in_a_file_is_not_pushed(place: Place) -> None:
    (place.folder / "notes.txt").write_text(f"login with {place.hub.tokens['bob']}")
    with refused(HubError, "notes.txt (notes.txt in the repository) holds an access token"):
        push_folder(place.folder, place.repo)
    assert not place.api.repo_exists(place.repo)


def check_a_folder_that_would_not_load_is_not_pushed(place: Place) -> None:
    (place.folder / "model.safetensors").write_bytes(b"x" * 100)
    with refused(LoadError, "damaged"):
        push_folder(place.folder, place.repo)
    assert not place.api.repo_exists(place.repo)


def check_private_and_branch(place: Place) -> None:
    push_folder(place.folder, place.repo, private=True, revision="wide")
    assert place.api.model_info(place.repo).private
    assert not place.api.file_exists(place.repo, "config.json")
    assert place.api.file_exists(place.repo, "config.json", revision="wide")
    place.api.update_repo_settings(place.repo, visibility="public")
    with refused(HubError, "must be private, got a public repository"):
        push_folder(place.folder, place.repo, private=True)


def check_transformers_own_push_loads_too(place: Place) -> None:
    model = hfgen.VAEModel.from_pretrained(place.folder)
    model.register_for_auto_class("AutoModel")
    model.push_to_hub(place.repo)
    check_folder(fetch_model(place.repo))


# Faults

PASSING_FAULTS: dict[str, list[tuple[str, dict]]] = {
    "rate_limit": [("status", {"path": "/commit/", "method": "POST", "status": 429, "retry_after": 1})],
    "error_500": [("status", {"path": "/commit/", "method": "POST", "status": 500})],
    "error_503_everywhere": [("status", {"path": path, "method": "POST", "status": 503})
                             for path in ("/repos/create", "/preupload/", "/commit/")],
    "answer_of_the_commit_is_lost": [("drop_response", {"path": "/commit/", "method": "POST"})],
    "connection_breaks_in_the_commit": [("drop_upload", {"path": "/commit/", "method": "POST", "body_bytes": 500})],
    "connection_breaks_in_the_weights": [("drop_upload", {"method": "PUT", "body_bytes": 1000, "reset": True})],
    "slow": [("slow", {"method": "PUT|POST", "seconds": 0.3, "bytes_per_second": 200_000, "times": 4})],
    "parent_moved_412": [("parent_moved", {"path": "/commit/", "method": "POST"})],
    "parent_moved_409": [("parent_moved", {"path": "/commit/", "method": "POST", "status": 409})],
    "another_writer_is_faster": [("foreign_commit", {"path": "/commit/", "method": "POST"})],
}  # fmt: skip


def pushes_through(name: str) -> Callable[[Place], None]:
    def check(place: Place) -> None:
        push_folder(place.folder, place.repo, message="first")
        place.change_weights()
        for kind, rule in PASSING_FAULTS[name]:
            place.hub.inject(kind, **rule)  # type: ignore[arg-type]
        push_folder(place.folder, place.repo, message="second")
        titles = place.titles()
        foreign = ["Foreign commit"] * ("parent_moved" in name or "another" in name)
        assert titles == ["second", *foreign, "first", "initial commit"], titles
        place.assert_every_commit_loads()

    return check


def check_lasting_error_is_reported_with_the_command(place: Place) -> None:
    push_folder(place.folder, place.repo, message="first")
    place.change_weights()
    place.hub.inject("status", path="/commit/", method="POST", status=503, times=None)
    command = f"hfgen push {place.folder} {place.repo} --private"
    with refused(HubError, "status 503", "your files are intact", f"hfgen push {place.folder} {place.repo}"):
        with_two_attempts(place)
    assert place.titles() == ["first", "initial commit"]
    place.assert_every_commit_loads()
    place.hub.clear_faults()
    assert command_line(command.split()[1:-1]) == 0
    assert len(place.titles()) == 3


def check_expired_token_is_reported_and_not_shown(place: Place) -> None:
    place.hub.inject("expired_token", times=None)
    with refused(HubError, "hf auth login", "HF_TOKEN"):
        push_folder(place.folder, place.repo)
    place.hub.clear_faults()
    push_folder(place.folder, place.repo, message="first")
    place.change_weights()
    place.hub.inject("expired_token", path="/commit/", times=None)
    with refused(HubError, "hf auth login"):
        push_folder(place.folder, place.repo)
    assert place.titles() == ["first", "initial commit"]


def check_no_network_is_reported(place: Place) -> None:
    place.hub.inject("drop_response", times=None)
    with _patched_waits(), refused(HubError, "could not be reached", "hfgen push"):
        with_two_attempts(place)


def with_two_attempts(place: Place) -> None:
    with mock.patch.object(hub_module, "ATTEMPTS", 2):
        push_folder(place.folder, place.repo)


@contextlib.contextmanager
def _patched_waits() -> Iterator[None]:
    """The client's own waits between attempts, shortened."""
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    try:
        yield
    finally:
        time.sleep = sleep


def check_messages_hold_nothing_secret(place: Place) -> None:
    token = place.hub.token
    redacted = redact(f"PUT http://x/y?signature=abc&z=1 failed, Bearer {token} and {place.hub.tokens['bob']}")
    assert redacted == "PUT http://x/y?... failed, Bearer <token> and <token>", redacted
    place.hub.inject("drop_upload", method="PUT", body_bytes=1000)
    push_folder(place.folder, place.repo)
    assert "thrown while requesting PUT" in place.log.getvalue()
    assert "?..." in place.log.getvalue() and "signature" not in place.log.getvalue().lower()


# Pulling


def check_pull_is_a_checked_copy(place: Place) -> None:
    pushed = push_folder(place.folder, place.repo)
    place.change_weights()
    push_folder(place.folder, place.repo, checkpoints="last")
    home = place.folder.parent
    folder = pull(place.repo, home / "new", revision=pushed.commit)
    expected = {"config.json", "model.safetensors", "modeling_vae.py", "image_model.py"}
    assert {path.name for path in folder.iterdir()} >= expected
    assert not (folder / ".cache").exists() and not (folder / "last-checkpoint").exists()
    newest = pull(place.repo, home / "newest")
    assert (newest / "model.safetensors").read_bytes() == (place.folder / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() != (newest / "model.safetensors").read_bytes()
    with refused(HubError, "new or empty folder"):
        pull(place.repo, home / "new")
    with refused(HubError, "no revision 'nope'"):
        pull(place.repo, home / "other", revision="nope")
    with refused(HubError, "There is no alice/nope"):
        pull("alice/nope", home / "other")
    assert sorted(path.name for path in home.iterdir()) == ["new", "newest", place.folder.name]


def check_pull_goes_on_after_a_broken_download(place: Place) -> None:
    push_folder(place.folder, place.repo)
    place.hub.inject("drop_response", method="GET", path="/objects/|/resolve/", body_bytes=2000)
    with _patched_waits():
        folder = pull(place.repo, place.folder.parent / "new")
    assert (folder / "model.safetensors").read_bytes() == (place.folder / "model.safetensors").read_bytes()


def check_unsafe_and_damaged_repositories_are_refused(place: Place) -> None:
    weights = (place.folder / "model.safetensors").read_bytes()
    config = json.loads((place.folder / "config.json").read_text())
    operations: dict[str, tuple[dict[str, Any], str]] = {
        "pickle": ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "pytorch_model.bin"),
        "empty": ({"model.safetensors": None}, "holds no weights"),
        "truncated": ({"model.safetensors": weights[:-1000]}, "damaged or incomplete"),
        "corrupt": ({"model.safetensors": b"\xff" * 8 + weights[8:]}, "damaged or incomplete"),
        "other_config": ({"config.json": {**config, "latent_dim": 9}}, "do not belong together"),
        "other_depth": ({"config.json": {**config, "num_residual_blocks": 2}}, "do not belong together"),
        "other_class": ({"config.json": {**config, "architectures": ["GANModel"]}}, "contradicts itself"),
        "newer_type": ({"config.json": {**config, "model_type": "hfgen_vae_2"}}, "does not know"),
        "bad_value": ({"config.json": {**config, "latent_dim": -1}}, "latent_dim"),
        "no_code": ({"modeling_vae.py": None}, "modeling_vae.py is missing"),
        "no_shared_code": ({"image_model.py": None}, "image_model.py is missing, although modeling_vae.py needs it"),
    }
    for name, (changes, text) in operations.items():
        repo = f"{place.repo}-{name}"
        folder = Path(shutil.copytree(place.folder, place.folder.parent / name))
        for file, content in changes.items():
            if content is None:
                (folder / file).unlink()
            else:
                (folder / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        place.api.create_repo(repo)
        place.api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=["checkpoints/*"])
        shutil.rmtree(folder)
        with refused(LoadError, text):
            fetch_model(repo)
        with refused(LoadError, text):
            pull(repo, folder)
        assert not folder.exists() and not list(folder.parent.glob(".*.pull"))
    push_folder(place.folder, place.repo)
    with refused(LoadError, "must be 'hfgen_gan', got 'hfgen_vae'"):
        fetch_model(place.repo, model_type="hfgen_gan")


def check_newest_training_state_is_fetched(place: Place) -> None:
    first = push_folder(place.folder, place.repo, checkpoints="last")
    saved = place.folder / "checkpoints/step-000002"
    shutil.copytree(saved, place.folder / "checkpoints/step-000010")
    (place.folder / "checkpoints/step-000010/new.json").write_text("{}")
    push_folder(place.folder, place.repo, checkpoints="last")
    assert not any("checkpoints/" in name for name in place.files()) and "last-checkpoint/new.json" in place.files()
    fetched = fetch_checkpoint(f"{place.repo}@{first.commit}")
    assert {path.name for path in fetched.iterdir()} == {path.name for path in saved.iterdir()}
    push_folder(place.folder, f"{place.repo}-all", checkpoints="all")
    assert fetch_checkpoint(f"{place.repo}-all").name == "step-000010"
    with refused(HubError, "no training state", "--hub_strategy checkpoint"):
        fetch_checkpoint(f"{place.repo}@{place.api.list_repo_commits(place.repo)[-1].commit_id}")


# The command


def check_command_line(place: Place) -> None:
    written, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(errors):
        assert command_line(["card", str(place.folder), "--repo", place.repo]) == 0
        assert command_line(["push", str(place.folder), place.repo]) == 0
        assert command_line(["push", str(place.folder), place.repo]) == 0
        assert command_line(["push", str(place.folder), place.repo, "--json"]) == 0
        assert command_line(["check", place.repo]) == 0
        assert command_line(["pull", place.repo, str(place.folder.parent / "copy")]) == 0
        assert command_line(["sample", place.repo, str(place.folder.parent / "grid.png")]) == 0
        assert command_line(["push", str(place.folder / "nowhere"), place.repo]) == 1
        assert command_line(["push", str(place.folder), "bob/not-mine"]) == 1
        assert command_line(["pull", "alice/nope"]) == 1
    assert "is now at commit" in written.getvalue() and "already held everything" in written.getvalue()
    (pushed,) = (json.loads(line) for line in written.getvalue().splitlines() if line.startswith("{"))
    assert pushed["repo_id"] == place.repo and not pushed["is_new"] and len(pushed["commit"]) == 40
    assert (place.folder.parent / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert "FOLDER must be a folder" in errors.getvalue() and "no write access" in errors.getvalue()
    assert "Traceback" not in errors.getvalue()


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}
CHECKS.pop("folder")
CHECKS |= {f"push_passes_{name}": pushes_through(name) for name in PASSING_FAULTS}


def run_checks(hub: HubProcess, runs: Path, scratch: Path) -> None:
    torch.set_num_threads(1)
    # Waits are tested by their number, not by their length.
    hub_module.random.uniform = lambda low, high: 0.1  # type: ignore[assignment]
    for name, check in CHECKS.items():
        log = io.StringIO()
        handler = logging.StreamHandler(log)
        loggers = [logging.getLogger(), logging.getLogger("huggingface_hub")]
        for logger in loggers:
            logger.addHandler(handler)
        logging.getLogger().setLevel(logging.INFO)
        folder = scratch / name / f"run-{name}"
        shutil.copytree(runs / "vae", folder)
        if name == "command_line" or name.startswith(("push_is", "what")):
            command_line(["card", str(folder)])
        started = time.perf_counter()
        outcome: dict[str, object] = {"name": name, "error": None}
        try:
            check(Place(hub, HfApi(), name.replace("_", "-"), folder, log))
        except Exception:
            outcome["error"] = traceback.format_exc() + log.getvalue()
        hub.clear_faults()
        for logger in loggers:
            logger.removeHandler(handler)
        print("check: " + json.dumps(outcome | {"seconds": round(time.perf_counter() - started, 2)}), flush=True)
        print(log.getvalue(), file=sys.stderr)


if __name__ == "__main__":
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    run_checks(HubProcess.connect(Path(sys.argv[1]), sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
