"""One run at a time in an output folder, whatever became of the one before."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hfgen.hub import select_files
from tests.runs import TWO, Run, differences, everything, metrics, shared_run, start, train, wait_until
from training.output import run_folder
from training.output.run_folder import LOCK, FolderLock, prepare_output_dir


ENDLESS = ("--max_train_steps", 10**6, "--logging_steps", 1)


def stop(run: Run) -> None:
    for process in run.processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
    assert run.wait().code == 0, run.output


@pytest.mark.parametrize("processes", [1, 2])
def test_second_run_is_refused_and_the_first_one_goes_on(processes: int, tmp_path: Path) -> None:
    folder, flags = tmp_path / "run", [*(TWO if processes == 2 else []), *ENDLESS]
    first = start("vae", folder, *flags, processes=processes)
    wait_until(lambda: (folder / "metrics.jsonl").is_file() and len(metrics(folder)) > 2)
    for changed in ([], ["--overwrite_output_dir"]):
        second = train("vae", folder, *flags, *changed, processes=processes)
        assert second.code == 1 and "Traceback" not in second.output
        assert f"is in use by another run (process {first.processes[0].pid} on " in second.output, second.output
    assert LOCK not in select_files(folder, "all")[0]
    stop(first)
    steps = [line["step"] for line in metrics(folder) if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert not (folder / LOCK).exists()


def test_of_two_runs_that_start_at_once_one_is_refused(tmp_path: Path) -> None:
    runs = [start("vae", tmp_path / "run", *ENDLESS) for _ in range(2)]
    wait_until(lambda: not all(run.processes[0].is_alive() for run in runs))
    refused, going = sorted(runs, key=lambda run: run.processes[0].is_alive())
    assert refused.wait().code == 1 and "another run" in refused.output and "Traceback" not in refused.output
    stop(going)


def test_killed_run_leaves_a_folder_that_is_not_locked(tmp_path: Path) -> None:
    """Even if it is killed when the folder holds nothing but the lock."""
    (tmp_path / LOCK).write_text("process 1 on mars")
    assert train("vae", tmp_path).code == 0
    assert differences(everything(shared_run("vae").folder), everything(tmp_path)) == []
    assert not (tmp_path / LOCK).exists()


def hold_with_a_worker(folder: Path, worker: multiprocessing.Queue) -> None:
    lock = FolderLock(folder)
    lock.acquire()
    child = os.fork()
    if child:
        worker.put(child)
    time.sleep(60)
    assert lock.is_acquired


def test_worker_that_outlives_its_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    holder = context.Process(target=hold_with_a_worker, args=(tmp_path, queue))
    holder.start()
    worker = queue.get(timeout=30)
    try:
        with pytest.raises(ValueError, match=rf"in use by another run \(process {holder.pid} on "):
            FolderLock(tmp_path).acquire()
        holder.kill()
        holder.join()
        lock = FolderLock(tmp_path)
        lock.acquire()
        assert lock.is_acquired and f"process {os.getpid()} on " in (tmp_path / LOCK).read_text()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_lock_on_a_file_that_its_last_holder_deleted_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder deletes the file between the moments when another run opens and locks it."""
    original, calls = run_folder.fcntl.lockf, 0

    def lockf(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / LOCK).unlink()
        original(*args)

    monkeypatch.setattr(run_folder.fcntl, "lockf", lockf)
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert calls == 2 and lock.is_acquired and f"process {os.getpid()} on " in (tmp_path / LOCK).read_text()
    del lock
    assert not (tmp_path / LOCK).exists()


def test_folder_that_another_run_filled_in_the_meantime_is_refused(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="was empty when this run started"):
        prepare_output_dir(tmp_path, True, lock)
    assert (tmp_path / "checkpoints").is_dir()


def test_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "lockf", refuse)
    prepare_output_dir(tmp_path, False, FolderLock(tmp_path))
    assert "cannot be locked" in caplog.text and [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
