"""Pushes of a run: what a snapshot holds, what is skipped, and whole trainings against the test Hub."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hfgen import VAEConfig, VAEModel
from hfgen.hub import HubError, Pushed
from tests.hub.fixture import HubProcess, running_hub
from tests.runs import ROOT, run_commands, save_untrained, training_command
from training.output.hub_push import HubPusher


class FakeHub:
    """Replaces push_files. Pushes wait for `is_open`; each entry of `failures` fails one after that many seconds."""

    def __init__(self) -> None:
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.is_open, self.was_asked = threading.Event(), threading.Event()
        self.is_open.set()
        self.failures: list[float] = []

    def push_files(
        self, files: dict[str, Path], repo_id: str, *, private: bool, message: str, command: str, wait: Callable
    ) -> Pushed:
        self.was_asked.set()
        assert self.is_open.wait(20)
        if self.failures:
            wait(self.failures.pop(0))
            raise HubError("The Hub is down.")
        self.commits.append((message, {name: path.read_bytes() for name, path in files.items()}))
        return Pushed(repo_id, "https://hub", "c" * 40, is_new=True)

    def titles(self) -> list[str]:
        return [message for message, _ in self.commits]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub()
    monkeypatch.setattr("training.output.hub_push.push_files", hub.push_files)
    return hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = VAEConfig(image_size=[8, 8], hidden_channels=[4, 8], hidden_size=16, latent_dim=4)
    save_untrained(VAEModel(config), tmp_path / "run")
    add_checkpoint(tmp_path / "run", 1)
    return tmp_path / "run"


def add_checkpoint(folder: Path, step: int) -> Path:
    path = folder / "checkpoints" / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / f"{step}").write_text("")
    return path


def wait_for_push() -> None:
    """Waits for the end of a background push: the next one would be skipped."""
    for thread in threading.enumerate():
        if thread.name == "push to the Hub":
            thread.join(20)


@pytest.mark.parametrize(
    ("strategy", "checkpoints"),
    [
        ("end", [set()]),
        ("every_save", [set(), set()]),
        ("checkpoint", [{"last-checkpoint/1"}, {"last-checkpoint/2"}]),
        ("all_checkpoints", [{"checkpoints/step-000001/1"},
                             {"checkpoints/step-000001/1", "checkpoints/step-000002/2"}]),
    ],
)  # fmt: skip
def test_strategy_decides_what_is_pushed_when(
    strategy: Any, checkpoints: list[set[str]], fake: FakeHub, folder: Path, capsys: Any
) -> None:
    model = {path.name for path in folder.iterdir() if path.is_file()}
    pusher = HubPusher(folder, strategy=strategy)
    pusher.push(1)
    wait_for_push()
    add_checkpoint(folder, 2)
    assert pusher.push_at_end()
    assert fake.titles() == ["Training in progress, step 1", "End of training"][-len(checkpoints) :]
    assert [set(files) for _, files in fake.commits] == [model | names for names in checkpoints]
    assert "Published: https://hub" in capsys.readouterr().out and not (folder / ".push").exists()


def test_push_is_a_snapshot_and_others_are_skipped_meanwhile(fake: FakeHub, folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    (folder / "metrics.jsonl").write_text("earlier\n")
    pusher = HubPusher(folder, strategy="every_save")
    fake.is_open.clear()
    pusher.push(1)
    assert fake.was_asked.wait(20)
    (folder / "metrics.jsonl").write_text("later\n")
    (folder / "new").write_bytes(before[:-4] + b"\x00\x00\x80\x3f")
    (folder / "new").rename(folder / "model.safetensors")
    started = time.perf_counter()
    pusher.push(2)
    assert time.perf_counter() - started < 2, "the training waited for the Hub"
    fake.is_open.set()
    assert pusher.push_at_end()
    assert fake.titles() == ["Training in progress, step 1", "End of training"]
    first, last = (files for _, files in fake.commits)
    assert first["model.safetensors"] == before and first["metrics.jsonl"] == b"earlier\n"
    assert last["model.safetensors"] != before and last["metrics.jsonl"] == b"later\n"


def test_no_checkpoint_is_lost_to_skipped_or_failed_pushes(fake: FakeHub, folder: Path) -> None:
    """Though --checkpoints_total_limit deletes it before any push holds it."""
    pusher = HubPusher(folder, strategy="all_checkpoints")
    fake.failures = [0]
    pusher.push(1)
    wait_for_push()
    shutil.rmtree(folder / "checkpoints" / "step-000001")
    fake.is_open.clear()
    for step in (2, 3, 4):  # 2 is under way, 3 and 4 are skipped
        saved = add_checkpoint(folder, step)
        pusher.push(step)
        shutil.rmtree(saved)
    fake.is_open.set()
    assert pusher.push_at_end()
    steps = [{name[-1] for name in files if name.startswith("checkpoints/")} for _, files in fake.commits]
    assert steps == [{"1", "2"}, {"3", "4"}]


def test_failed_push_is_logged_and_the_end_does_not_wait_for_its_next_attempt(
    fake: FakeHub, folder: Path, caplog: Any
) -> None:
    pusher = HubPusher(folder, strategy="every_save")
    fake.failures = [60]
    pusher.push(1)
    started = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        assert pusher.push_at_end()
    assert time.perf_counter() - started < 10 and fake.titles() == ["End of training"]
    assert "Step 1 is not published; the next push holds it. The training has ended." in caplog.text


@pytest.mark.parametrize("error", [HubError("the Hub is down. Run: hfgen push"), KeyboardInterrupt()])
def test_unpublished_end_tells_the_command(
    error: Any, fake: FakeHub, folder: Path, monkeypatch: Any, capsys: Any
) -> None:
    def fail(*_: Any, command: str, **__: Any) -> None:
        assert command == f"hfgen push {folder} alice/run --private --checkpoints last"
        raise error

    monkeypatch.setattr("training.output.hub_push.push_files", fail)
    assert not HubPusher(folder, "alice/run", private=True, strategy="checkpoint").push_at_end()
    told = capsys.readouterr().err
    assert f"finished and saved in {folder}" in told and "hfgen push" in told and not (folder / ".push").exists()


def test_folder_that_would_not_load_is_not_pushed(fake: FakeHub, folder: Path, caplog: Any, capsys: Any) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    pusher = HubPusher(folder, strategy="every_save")
    with caplog.at_level(logging.WARNING):
        pusher.push(1)
    assert "Step 1 is not pushed" in caplog.text and "damaged" in caplog.text
    assert not pusher.push_at_end() and fake.commits == [] and "damaged" in capsys.readouterr().err


def test_stopped_run_does_not_wait_for_its_push(fake: FakeHub, folder: Path) -> None:
    pusher = HubPusher(folder, strategy="every_save")
    fake.is_open.clear()
    pusher.push(1)
    fake.was_asked.wait(20)
    pusher.cancel()
    assert not (folder / ".push").exists()
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "push to the Hub")
    fake.is_open.set()
    wait_for_push()


def test_invalid_repository_name_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(ValueError, match="--hub_model_id must be a valid repository name, got a/b/c"):
        HubPusher(folder, "a/b/c")


# Whole trainings


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with running_hub(tmp_path_factory.mktemp("hub")) as process:
        process.env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        yield process


def titles(hub: HubProcess, repo_id: str) -> list[str]:
    """The titles of a repository's commits, newest first."""
    code = "import json; from huggingface_hub import HfApi; print(json.dumps([c.title for c in "
    return json.loads(hub.run_python(f"{code}HfApi().list_repo_commits('{repo_id}')]))").stdout)


def publishing(output_dir: Path, repo_id: str, strategy: str, *flags: str) -> list[str]:
    pushing = ["--push_to_hub", "--hub_model_id", repo_id, "--hub_strategy", strategy]
    return training_command("vae", output_dir, *pushing, *flags)


def test_a_run_publishes_itself_and_goes_on_from_the_hub(hub: HubProcess, tmp_path: Path) -> None:
    """With the training state in the repository, another machine makes the next steps, as if it had never stopped."""
    assert "alice/run" in run_commands([publishing(tmp_path / "run", "alice/run", "checkpoint")], hub.env)
    assert titles(hub, "alice/run") == ["End of training", "Training in progress, step 1", "initial commit"]
    longer = ["--max_train_steps", "3"]
    flags = {
        "resumed": ["--resume_from_checkpoint", "alice/run"],
        "run": [],
        "tuned": ["--model_name_or_path", "alice/run"],
    }
    run_commands([training_command("vae", tmp_path / name, *longer, *more) for name, more in flags.items()], hub.env)
    expected = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert (tmp_path / "resumed" / "model.safetensors").read_bytes() == expected
    assert (tmp_path / "tuned" / "results.json").is_file()


@pytest.mark.slow
def test_a_training_publishes_through_passing_faults(hub: HubProcess, tmp_path: Path) -> None:
    hub.inject("status", path="/repos/create", status=503)
    hub.inject("status", path="/commit/", status=429, retry_after=1)
    hub.inject("parent_moved", path="/commit/")
    hub.inject("drop_upload", method="PUT", body_bytes=1000)
    hub.run([sys.executable, *publishing(tmp_path / "run", "alice/faults", "every_save")], cwd=ROOT)
    hub.clear_faults()
    assert titles(hub, "alice/faults")[0] == "End of training" and "Foreign commit" in titles(hub, "alice/faults")


@pytest.mark.slow
def test_a_training_ends_well_without_the_hub(hub: HubProcess, tmp_path: Path) -> None:
    hub.inject("expired_token", path="/repos/create", times=None)
    command = publishing(tmp_path / "run", "alice/expired", "every_save")
    result = hub.run([sys.executable, *command], cwd=ROOT, check=False)
    hub.clear_faults()
    assert (tmp_path / "run" / "results.json").is_file() and (tmp_path / "run" / "model.safetensors").is_file()
    assert result.returncode == 1 and f"hfgen push {tmp_path / 'run'} alice/expired" in result.stderr
    assert "Traceback" not in result.stderr and hub.token not in result.stdout + result.stderr
