"""What is fast is measured once per machine, and a broken cache costs a measurement."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from training.hardware import probe
from training.hardware.probe import Attention, compare, speeds


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path))
    return tmp_path


def busy(milliseconds: float) -> None:
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass


def test_faster_kernel_is_found_and_a_hopeless_one_is_timed_once() -> None:
    calls = {"fast": 0, "slow": 0}

    def kernel(name: str, milliseconds: float) -> None:
        calls[name] += 1
        busy(milliseconds)

    times = compare({"slow": lambda: kernel("slow", 20), "fast": lambda: kernel("fast", 2)})
    assert 2 <= times["fast"] < 6 < 20 <= times["slow"]
    # One call generates code; after one timed call, the slow one is known to be hopeless.
    assert calls["slow"] == 2 and calls["fast"] == 1 + probe.ROUNDS


def test_long_kernels_are_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_SECONDS", 0.02)
    calls = []
    assert compare({"a": lambda: (calls.append("a"), busy(15)), "b": lambda: (calls.append("b"), busy(15))})["b"] >= 15
    assert calls == ["a", "b"] * 2  # one of each generates code


def test_a_long_context_is_measured_with_fewer_sequences() -> None:
    sizes = {Attention(4, 64, 32): 4, Attention(8, 256, 32): 4, Attention(4, 512, 32): 3, Attention(12, 1024, 64): 1}
    assert {size: size.sequences for size in sizes} == sizes


def test_waiting_for_other_programs_does_not_count() -> None:
    assert compare({"waits": lambda: (busy(1), time.sleep(0.05))})["waits"] < 25


@pytest.mark.parametrize(
    ("attention", "kinds"),
    [(None, {"convolution fp32 contiguous", "convolution bf16 channels_last"}),
     (Attention(2, 8, 8), {"attention fp32 sdpa", "attention bf16 eager"})],
)  # fmt: skip
def test_every_candidate_is_measured_without_touching_the_random_numbers_of_the_run(
    attention: Attention | None, kinds: set[str], cache: Path
) -> None:
    torch.manual_seed(0)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    found = speeds(attention)
    assert {"product fp32", "product bf16", "batched fp32", "batched bf16"} | kinds <= set(found)
    assert all(value > 0 for value in found.values())
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


def test_it_is_measured_once_per_machine_and_instruction_set(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []

    def measure(attention: object) -> dict[str, float]:
        measured.append(attention)
        return {"product fp32": 1.0, "product bf16": float(len(measured))}

    monkeypatch.setattr(probe, "measure", measure)
    assert speeds(None) == speeds(None) == {"product fp32": 1.0, "product bf16": 1.0}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert speeds(None)["product bf16"] == 2.0 == speeds(None)["product bf16"]
    assert len(measured) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"speeds": {"product fp32": "fast"}}'])
def test_damaged_cache_is_measured_again(content: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "measure", lambda _: {"product fp32": 1.0})
    speeds(None)
    (path,) = cache.rglob("*.json")
    path.write_text(content)
    assert speeds(None) == {"product fp32": 1.0}


def test_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(probe, "measure", lambda _: {"product fp32": 1.0})
    assert speeds(None) == {"product fp32": 1.0}
