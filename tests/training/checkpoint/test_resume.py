"""A run that was stopped in any way and started again by the same command equals one that was never stopped."""

from __future__ import annotations

import functools
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.runs import (
    FAMILIES,
    Fault,
    before_calls,
    differences,
    everything,
    metrics,
    resume_command,
    shared_run,
    start,
    streamed,
    train,
)
from tests.training.kill_test import kill_at_every_file_operation, kill_at_random
from training.checkpoint.resume import check_same_run
from training.checkpoint.storage import Checkpoint
from training.config.flags import as_recipe
from training.config.parser import parse
from training.config.scripts import SCRIPTS
from training.hardware import choices
from training.progress import Pace
from training.step import PhaseTrainer


@pytest.fixture(scope="session")
def whole() -> dict[str, Path]:
    """A run of each family that nothing interrupted."""
    runs = {family: shared_run(family, "--report_to", "tensorboard") for family in FAMILIES}
    return {family: run.folder for family, run in runs.items()}


def interrupt_three_times(family: str, folder: Path) -> list[str]:
    """Interrupts a run by each signal, lets it end, and returns what differs from an uninterrupted one."""
    for number, steps in ((signal.SIGTERM, 2), (signal.SIGINT, 3)):
        stopped = train(family, folder, fault=Fault(number, at_step=steps))
        assert stopped.code == 0, stopped.output
        assert resume_command(stopped.output)[2:4] == [f"training/train_{family}.py", "--per_device_train_batch_size"]
        assert not (folder / "results.json").exists()
    assert train(family, folder, fault=Fault(signal.SIGKILL, at_step=3)).code == -signal.SIGKILL
    finished = train(family, folder)
    assert finished.code == 0, finished.output
    return differences(everything(shared_run(family, "--report_to", "tensorboard").folder), everything(folder))


def stop_and_resume(family: str, folder: Path, flags: Sequence[object], processes: int) -> list[str]:
    """Stops a run in the middle, resumes it, and returns what differs from an uninterrupted one."""
    whole = start(family, folder / "whole", *flags, processes=processes)
    stopped = train(family, folder / "run", *flags, processes=processes, fault=Fault(signal.SIGTERM, at_step=6))
    assert stopped.code == 0, stopped.output
    finished = train(family, folder / "run", *flags, processes=processes)
    assert finished.code == 0 and whole.wait().code == 0, finished.output
    return differences(everything(folder / "whole"), everything(folder / "run"))


PRECISIONS = {"fast": {"fp32": 4.0, "bf16": 2.0}, "slow": {"fp32": 2.0, "bf16": 4.0}}


def processor(bf16: str) -> None:
    """Makes this machine one that is fast or slow in bf16."""
    kernels = ("product", "batched", "attention sdpa", "attention eager")
    found = {
        " ".join([name.split()[0], precision, *name.split()[1:]]): value
        for name in kernels
        for precision, value in PRECISIONS[bf16].items()
    }
    choices.speeds = lambda attention: found


def test_resumed_run_keeps_what_the_machine_was_fast_at(tmp_path: Path) -> None:
    fast, slow = (functools.partial(processor, name) for name in ("fast", "slow"))
    auto = ["--mixed_precision", "auto", "--attn_implementation", "auto", "--optimizer", "muon"]
    whole = train("gpt", tmp_path / "whole", *auto, fault=Fault(patch=fast))
    stopped = train("gpt", tmp_path / "run", *auto, fault=Fault(signal.SIGTERM, at_step=6, patch=fast))
    finished = train("gpt", tmp_path / "run", *auto, fault=Fault(patch=slow))
    assert whole.code == stopped.code == finished.code == 0, finished.output
    assert not differences(everything(tmp_path / "whole"), everything(tmp_path / "run"))
    chosen = json.loads((tmp_path / "run" / "results.json").read_text())["choices"]
    assert (chosen["mixed_precision"], chosen["muon_precision"]) == ("bf16", "bf16")


SETTINGS: dict[str, tuple[str, list[object], int]] = {
    "vae-bf16": ("vae", ["--mixed_precision", "bf16"], 1),
    "vae-binarized": ("vae", ["--dynamic_binarization"], 2),
    # Below the usual norm, so that it depends on those before the stop how much is left of every gradient.
    "gan-limited": ("gan", ["--max_grad_norm_ratio", 0.5], 1),
    "gpt-bf16": ("gpt", ["--mixed_precision", "bf16", "--gradient_checkpointing"], 1),
    # Each process has its own dropout.
    "gpt-muon": ("gpt", ["--optimizer", "muon", "--gradient_checkpointing"], 2),
    "gan-skip": ("gan", ["--on_nonfinite", "skip", "--ema_decay", 0], 1),
    "autoencoder-workers": ("autoencoder", ["--in_memory", "false", "--dataloader_num_workers", 2], 1),
    "gpt-mapped": ("gpt", ["--in_memory", "false"], 2),
}
# Images and texts: how they are streamed does not depend on the model.
STREAMED = [("autoencoder", 1), ("gpt", 1), ("vae", 2), ("gpt", 2)]


@pytest.fixture(scope="module")
def found(whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Any, Future[list[str]]]]:
    """What differs, for every case below; two cases are under way at a time."""
    pool = ThreadPoolExecutor(2)

    def submit(name: str, check: Callable[..., list[str]], family: str, *how: Any) -> Future[list[str]]:
        return pool.submit(check, family, tmp_path_factory.mktemp(name) / "runs", *how)

    futures: dict[Any, Future[list[str]]] = {family: submit(family, interrupt_three_times, family) for family in whole}
    for name, (family, flags, processes) in SETTINGS.items():
        futures[name] = submit(name, stop_and_resume, family, flags, processes)
    for family, processes in STREAMED:
        futures[family, processes] = submit(family, stop_and_resume, family, streamed(family), processes)
    yield futures
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_interrupted_run_equals_uninterrupted_to_the_bit(family: str, found: dict[Any, Future[list[str]]]) -> None:
    assert found[family].result() == []


@pytest.mark.parametrize("name", SETTINGS)
def test_interrupted_run_equals_uninterrupted_to_the_bit_under_other_settings(
    name: str, found: dict[Any, Future[list[str]]]
) -> None:
    assert found[name].result() == []


@pytest.mark.parametrize(("family", "processes"), STREAMED)
def test_streamed_run_is_resumed_to_the_bit(family: str, processes: int, found: dict[Any, Future[list[str]]]) -> None:
    assert found[family, processes].result() == []


def test_gradient_checkpointing_changes_nothing(whole: dict[str, Path], tmp_path: Path) -> None:
    """Including dropout: the backward pass sees the same random numbers as the forward pass."""
    assert train("gpt", tmp_path / "run", "--gradient_checkpointing").code == 0
    assert differences(everything(whole["gpt"]), everything(tmp_path / "run")) == []


def test_stream_is_refused_to_other_readers(tmp_path: Path) -> None:
    """Another number of workers, or of processes at the same global batch, would get other examples."""
    flags = streamed("vae")
    assert train("vae", tmp_path / "run", *flags, fault=Fault(signal.SIGTERM, at_step=2)).code == 0
    workers = train("vae", tmp_path / "run", *flags, "--dataloader_num_workers", 1)
    assert workers.code == 1 and "1 process(es) with 0 " in workers.output and "1 with 1" in workers.output
    two = ["--per_device_train_batch_size", 2]
    processes = train("vae", tmp_path / "run", *flags, *two, processes=2)
    assert processes.code == 1 and "2 with 0" in processes.output and "Traceback" not in processes.output
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    content = json.loads((checkpoint / "state.json").read_text())
    assert [len(state["readers"]) for state in content["feed"]] == [1]


def test_streamed_run_with_workers_is_resumed_and_tells_of_one_that_was_killed(tmp_path: Path) -> None:
    flags = [*streamed("vae"), "--dataloader_num_workers", 2]
    whole = shared_run("vae", *flags)
    killed = train("vae", tmp_path / "run", *flags, fault=Fault(patch=kill_a_worker))
    assert killed.code == 1 and "Traceback" not in killed.output
    assert "a process that loads data has died" in killed.output and "same command again" in killed.output
    assert train("vae", tmp_path / "run", *flags).code == 0
    assert differences(everything(whole.folder), everything(tmp_path / "run")) == []


def kill_a_worker() -> None:
    def strike(*_: object) -> None:
        multiprocessing.active_children()[0].kill()
        time.sleep(1)

    before_calls(PhaseTrainer, "accumulate", [7], strike)


@pytest.mark.parametrize("evaluation", [2, 4])
def test_signal_during_an_evaluation_stops_at_once_and_loses_nothing(
    evaluation: int, whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    stopped = train("vae", folder, fault=Fault(signal.SIGTERM, at_evaluation=evaluation))
    assert stopped.code == 0 and resume_command(stopped.output), stopped.output
    assert sum("eval_elbo" in line for line in metrics(folder)) == evaluation - 1
    assert train("vae", folder).code == 0
    assert differences(everything(whole["vae"]), everything(folder)) == []


def test_evaluations_samples_and_checkpoints_do_not_affect_the_training(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    often = ["--eval_steps", 1, "--sample_steps", 1, "--checkpointing_steps", 1, "--checkpoints_total_limit", 1]
    assert train("gpt", tmp_path / "often", *often).code == 0
    weights = {k for k, v in everything(whole["gpt"]).items() if isinstance(v, bytes)}
    changed = differences(everything(whole["gpt"]), everything(tmp_path / "often"))
    assert not weights & set(changed)


def test_going_back_to_an_earlier_checkpoint_abandons_the_later_branch(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train("vae", folder, "--checkpoints_total_limit", 9, fault=Fault(signal.SIGTERM, at_step=10))
    stopped = train("vae", folder, "--resume_from_checkpoint", folder / "checkpoints" / "step-000004",
                    fault=Fault(signal.SIGTERM, at_step=1))  # fmt: skip
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-000004", "step-000006"]
    assert resume_command(stopped.output)[-2:] == ["--resume_from_checkpoint", "latest"]
    assert train("vae", folder).code == 0
    assert differences(everything(whole["vae"]), everything(folder)) == []


def test_another_folder_continues_a_run_with_its_metrics(whole: dict[str, Path], tmp_path: Path) -> None:
    train("vae", tmp_path / "old", fault=Fault(signal.SIGTERM, at_step=6))
    (checkpoint,) = [path for path in (tmp_path / "old" / "checkpoints").iterdir() if path.name == "step-000007"]
    assert train("vae", tmp_path / "new", "--resume_from_checkpoint", checkpoint).code == 0
    assert differences(everything(whole["vae"]), everything(tmp_path / "new")) == []


def test_run_killed_before_its_first_checkpoint_starts_from_scratch(whole: dict[str, Path], tmp_path: Path) -> None:
    assert train("vae", tmp_path / "run", fault=Fault(at_step=2)).code == -signal.SIGKILL
    assert train("vae", tmp_path / "run").code == 0
    assert differences(everything(whole["vae"]), everything(tmp_path / "run")) == []


def test_damaged_latest_checkpoint_is_skipped_with_a_warning(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train("vae", folder, fault=Fault(signal.SIGTERM, at_step=6))
    damaged = folder / "checkpoints" / "step-000007" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    run = train("vae", folder)
    assert run.code == 0
    assert str(damaged) in run.output and "step-000004" in run.output
    assert differences(everything(whole["vae"]), everything(folder)) == []


def test_checkpoints_that_are_all_damaged_are_an_error_and_stay(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train("vae", folder, fault=Fault(signal.SIGTERM, at_step=6))
    for state in folder.glob("checkpoints/*/state.json"):
        state.unlink()
    run = train("vae", folder)
    assert run.code == 1 and "--overwrite_output_dir" in run.output and "Traceback" not in run.output
    assert len(list(folder.glob("checkpoints/step-*"))) == 2


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (
            ["--seed", 1, "--max_train_samples", 60, "--ema_decay", 0.5],
            ["--seed: 0", "--max_train_samples: 50", "--ema"],
        ),
        (["--latent_dim", 6, "--beta", 2], ["config latent_dim: 4 before, 6 now", "config beta: 1.0 before, 2.0 now"]),
        (["--per_device_train_batch_size", 8], ["8 before, 16 now"]),
        (["--resume_from_checkpoint", "nowhere"], ["There is no checkpoint nowhere"]),
    ],
)
def test_checkpoint_of_another_run_is_refused_with_every_difference(
    flags: list[object], named: list[str], whole: dict[str, Path]
) -> None:
    before = everything(whole["vae"])
    run = train("vae", whole["vae"], "--max_train_steps", 16, *flags)
    assert run.code == 1 and "Traceback" not in run.output
    assert all(part in run.output for part in named), run.output
    assert differences(before, everything(whole["vae"])) == []


def test_checkpoint_of_another_architecture_is_refused(whole: dict[str, Path], tmp_path: Path) -> None:
    last = whole["autoencoder"] / "checkpoints" / "step-000012"
    run = train("vae", tmp_path / "run", "--resume_from_checkpoint", last)
    assert run.code == 1 and "hfgen_autoencoder" in run.output and "hfgen_vae" in run.output
    assert not (tmp_path / "run").exists()


def check_older(family: str, newer: set[str], *flags: str) -> None:
    """Checks a run against a checkpoint of the same run from before there were these flags."""
    arguments = parse(SCRIPTS[family], ["--output_dir", "run", *flags])
    saved = {name: value for name, value in as_recipe(arguments).items() if name not in newer}
    config = {"model_type": f"hfgen_{family}"}
    state = {"arguments": saved, "config": config, "examples_a_step": 128}
    check_same_run(Checkpoint(Path("step-000004"), state, {}), config, arguments, 128)


def test_flag_that_is_newer_than_the_checkpoint_was_off(caplog: pytest.LogCaptureFixture) -> None:
    check = functools.partial(check_older, "vae", {"dynamic_binarization", "max_grad_norm_ratio"})
    check()
    assert not caplog.records
    check("--max_grad_norm_ratio", "10")
    assert "--max_grad_norm_ratio: None before, 10.0 now" in caplog.text
    with pytest.raises(ValueError, match="--dynamic_binarization: None before, True now"):
        check("--dynamic_binarization")


def test_flag_that_is_newer_than_the_checkpoint_may_declare_what_runs_did_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check = functools.partial(check_older, "gpt", {"muon_momentum"}, "--muon_momentum")
    check("0.95")  # Muon had no other momentum
    assert not caplog.records
    check("0.5")
    assert "--muon_momentum: 0.95 before, 0.5 now" in caplog.text


def test_changed_learning_rate_is_logged_and_used(whole: dict[str, Path], tmp_path: Path) -> None:
    train("vae", tmp_path / "run", fault=Fault(signal.SIGTERM, at_step=6))
    run = train("vae", tmp_path / "run", "--learning_rate", "1e-5")
    assert run.code == 0 and "--learning_rate: 0.006 before, 1e-05 now" in run.output
    assert metrics(tmp_path / "run")[-2]["learning_rate"] < 1e-5


def test_finished_run_is_reported_and_a_longer_one_continues(whole: dict[str, Path], tmp_path: Path) -> None:
    assert train("vae", tmp_path / "run").code == 0
    before = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    for flags in ([], ["--max_train_steps", 11]):
        run = train("vae", tmp_path / "run", *flags)
        assert run.code == 0 and "finished" in run.output
        assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == before
    assert train("vae", tmp_path / "run", "--max_train_steps", 16).code == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 16
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 12, 15, 16]
    assert lines[:6] == metrics(whole["vae"])[:6]


def test_killed_at_random_moments_and_file_operations(tmp_path: Path) -> None:
    """The kill test in short. In full: python -m tests.training.kill_test --kills 30 --every_operation."""
    assert kill_at_random("gpt", tmp_path / "random", kills=2, seed=int(time.time()), steps=20) == []
    assert kill_at_every_file_operation("vae", tmp_path / "operations", every=27) == []


def test_time_left_is_right_after_a_resume() -> None:
    pace = Pace()
    for seconds, step in ((1000.0, 900), (1010.0, 905), (1020.0, 910)):
        pace.mark(seconds, step, step / 1000)
    assert pace.steps_per_second == pytest.approx(0.5)
    assert pace.seconds_left == pytest.approx(180)
