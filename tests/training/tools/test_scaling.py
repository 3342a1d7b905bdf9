"""The arithmetic of the scaling benchmark; the measurements themselves are made by hand."""

from pathlib import Path

import pytest
import torch
from datasets import load_dataset

from training.tools import scaling


@pytest.mark.parametrize("exponent", [0, 1, 2])
def test_slope_is_the_exponent_of_growth(exponent: int) -> None:
    assert scaling.slope({size: 3.0 * size**exponent for size in (10, 100, 1000)}) == pytest.approx(exponent)


def test_rate_leaves_out_the_first_half() -> None:
    lines = [{"step": 2 * n, "seconds": 30 + n / 4} for n in range(1, 6)]
    lines[0]["seconds"] = 0
    assert scaling.rate_of(lines) == pytest.approx(8)
    with pytest.raises(ValueError, match="at least 2 entries"):
        scaling.rate_of(lines[:1])


def test_compiling_pays_when_both_have_done_the_same() -> None:
    def run(seconds: float, rate: float) -> dict[str, dict[str, float]]:
        return {"seconds_to_first_line": {"median": seconds}, "examples_per_second": {"median": rate}}

    worth = scaling.worth(run(1, 100), run(21, 125))
    assert worth == {"seconds_to_compile": 20, "speedup": 1.25, "pays_after_seconds": 100}
    assert 1.25 * (100 - 20) == 100
    assert scaling.worth(run(1, 100), run(21, 90))["pays_after_seconds"] is None


def test_variants_take_turns_and_keep_their_spread() -> None:
    calls: list[str] = []

    def measure(variant: str) -> dict[str, float]:
        calls.append(variant)
        return {"seconds": float(len(calls))}

    found = scaling.interleave(("a", "b"), 3, measure)
    assert calls == ["a", "b"] * 3
    assert found["b"]["seconds"] == {"median": 4, "min": 2, "max": 6, "repeats": 3}


def test_datasets_have_the_size_that_was_asked(tmp_path: Path) -> None:
    scaling.write_dataset(tmp_path / "set", 1000)
    rows = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))["train"]["text"]
    assert len(rows) == 1000 and {len(row) for row in rows} == {scaling.SHORT_TEXT - 1}
    assert len(list((tmp_path / "set" / "data").glob("train-*.parquet"))) == 10


def test_peak_of_the_machine_is_measured() -> None:
    threads = torch.get_num_threads()
    try:
        flops = scaling.multiply({"kind": "multiply", "size": 64, "threads": 1})["flops_per_second"]
    finally:
        torch.set_num_threads(threads)
    assert 1e6 < flops < 1e16
