"""What a user reads when a run fails: one paragraph that says what to do, once."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hfgen.cli import main
from tests.runs import TWO, Fault, before_calls, copy_run, train
from training import loop
from training.run_script import run_script
from training.step import PhaseTrainer


def allocate_too_much(*_: object, **__: object) -> None:
    torch.empty(2**55)


def throw(error: Exception, *_: object, **__: object) -> None:
    raise error


def fail_in_step(strike: Any) -> None:
    before_calls(PhaseTrainer, "accumulate", [6], strike)


def fail_to_save(strike: Any) -> None:
    """Only the main process asks for the folder, so only it fails by itself."""
    before_calls(loop.storage, "exist", [1], strike)


MEMORY_ERRORS = {
    "CPU": allocate_too_much,
    "GPU": partial(throw, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
    "Python": partial(throw, MemoryError()),
    "system": partial(throw, OSError(errno.ENOMEM, "Cannot allocate memory")),
    "cuBLAS": partial(throw, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")),
}


@pytest.mark.parametrize("where", MEMORY_ERRORS)
def test_memory_that_runs_out_is_one_paragraph_with_what_to_try(where: str, tmp_path: Path) -> None:
    run = train("vae", tmp_path, fault=Fault(patch=partial(fail_in_step, MEMORY_ERRORS[where])))
    assert run.code == 1 and "Traceback" not in run.output, run.output
    (paragraph,) = [line for line in run.output.splitlines() if "memory ran out (" in line]
    assert "half the --per_device_train_batch_size" in paragraph and "enforce fail" not in paragraph


def test_missing_compiler_is_one_paragraph(tmp_path: Path) -> None:
    environment = {"PATH": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    run = train("autoencoder", tmp_path / "run", "--torch_compile", environment=environment)
    assert run.code == 1 and "Traceback" not in run.output, run.output
    assert "No working C++ compiler" in run.output and "Leave out --torch_compile" in run.output


def test_advice_for_memory_resumes_the_run(tmp_path: Path) -> None:
    assert train("vae", tmp_path, fault=Fault(patch=partial(fail_in_step, allocate_too_much))).code == 1
    advised = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4]
    run = train("vae", tmp_path, *advised)
    assert run.code == 0 and "Resuming after step 4" in run.output, run.output


def test_traceback_comes_back_for_those_who_look_for_it(tmp_path: Path) -> None:
    fault = Fault(patch=partial(fail_in_step, allocate_too_much))
    run = train("vae", tmp_path, fault=fault, environment={"HFGEN_DEBUG": "1"})
    assert run.code == 1 and "Traceback" in run.output


def test_error_that_all_processes_have_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    fault = Fault(patch=partial(fail_to_save, allocate_too_much), rank=0)
    for environment, count in (({}, 2), ({"HFGEN_REPORTS": str(tmp_path / "reports")}, 1)):
        run = train("vae", tmp_path / "run", *TWO, fault=fault, processes=2, environment=environment)
        assert [process.exitcode for process in run.processes] == [1, 1]
        assert run.output.count("memory ran out (DefaultCPUAllocator: can't") == count, run.output


def test_wrong_command_line_of_several_processes_is_reported_once(tmp_path: Path) -> None:
    environment = {"HFGEN_REPORTS": str(tmp_path)}
    run = train("vae", tmp_path / "run", "--nonsense", processes=2, environment=environment)
    assert [process.exitcode for process in run.processes] == [1, 1]
    assert run.output.count("unknown argument --nonsense") == 1, run.output


def test_process_that_fails_alone_is_heard(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    environment = {"HFGEN_REPORTS": str(tmp_path / "reports")}
    fault = Fault(patch=partial(fail_in_step, partial(throw, ValueError("only I have this."))), rank=1)
    run = train("vae", tmp_path / "run", *TWO, fault=fault, processes=2, environment=environment)
    assert run.code == 1 and "train_vae.py (process 1): only I have this." in run.output
    assert "train_vae.py: another process of this run has died" in run.output


@contextmanager
def ascii_output() -> Iterator[io.BytesIO]:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    with redirect_stdout(stream):
        yield written
    stream.detach()  # it would close what was written


def test_script_prints_what_an_output_without_unicode_can_show() -> None:
    with ascii_output() as written:
        run_script(lambda: print("café: nll 88"))
    assert written.getvalue() == b"caf?: nll 88\n"


def test_hfgen_prints_what_an_output_without_unicode_can_show(tmp_path: Path) -> None:
    run = copy_run("vae", tmp_path / "café")
    with ascii_output() as written:
        assert main(["card", str(run)]) == 0
    assert b"caf?/README.md." in written.getvalue()


def test_folder_whose_name_is_no_utf_8_gets_its_card(tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"
    run = train("vae", folder)
    assert run.code == 0 and "caf?: elbo" in run.output, run.output
    assert "# caf?\n" in (folder / "README.md").read_text(encoding="utf-8")
