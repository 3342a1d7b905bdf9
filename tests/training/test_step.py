"""A phase by itself: how the fp16 scaler changes an update. Whole runs are in test_loop.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn

from training.config.flags import RunArguments
from training.data.feeds.batches import Batch, GlobalBatch
from training.distributed.processes import Processes
from training.objective import Phase
from training.randomness import BatchRNG
from training.step import NonFiniteError, PhaseTrainer


class Square(nn.Module):
    """weight^2 * x + bias, whose gradient is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch, rng: BatchRNG, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.weight.square() * batch["x"] + self.bias).mean()
        return loss, {"loss": loss}


@pytest.fixture
def fp16() -> Iterator[Accelerator]:
    """accelerate as on a GPU under fp16, with the scaler that torch has for CPUs."""
    accelerator = Accelerator(cpu=True)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    yield accelerator
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def trainer_of(module: nn.Module, accelerator: Accelerator, **flags: Any) -> PhaseTrainer:
    run = RunArguments(**{"learning_rate": 0.1, **flags})
    return PhaseTrainer(Phase("model", module), module, run, torch.float32, accelerator, Processes())


def train_on(accelerator: Accelerator, inputs: list[float], on_nonfinite: str = "stop") -> tuple[Square, int]:
    """One step per input. Returns the module and the number of skipped updates."""
    module = Square()
    trainer = trainer_of(module, accelerator, on_nonfinite=on_nonfinite)
    batches = [[{"x": torch.tensor([value])}] for value in inputs]
    results = [trainer.step(batch, GlobalBatch(1), step, 1.0, 0.0) for step, batch in enumerate(batches)]
    assert all(math.isfinite(values["loss"]) for result in results for values in result.values)
    return module, sum(result.skipped for result in results)


def test_scaled_updates_equal_those_without_scaling(fp16: Accelerator) -> None:
    scaled, _ = train_on(fp16, [1.0, 2.0, 0.5])
    fp16.scaler, fp16.native_amp = None, False
    plain, _ = train_on(fp16, [1.0, 2.0, 0.5])
    torch.testing.assert_close(scaled.weight, plain.weight, rtol=1e-6, atol=0)


def test_gradient_that_overflows_when_scaled_is_left_out_and_the_scale_reduced(fp16: Accelerator) -> None:
    # 2^16 * 2 * 1e34 is beyond float32, and 1e34 is not.
    module, skipped = train_on(fp16, [1e34])
    assert module.weight.item() == 1.0 and skipped == 0
    assert fp16.scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_loss_stops_under_fp16_too(value: float, fp16: Accelerator) -> None:
    with pytest.raises(NonFiniteError, match=r"Step 2, phase 'model'.*the batch itself, 'x'"):
        train_on(fp16, [1.0, value])


def test_nonfinite_loss_is_skipped_and_counted_under_fp16(fp16: Accelerator) -> None:
    module, skipped = train_on(fp16, [1.0, math.nan, 1.0], on_nonfinite="skip")
    assert skipped == 1 and math.isfinite(module.weight.item())


def test_gradient_that_overflows_at_scale_1_is_an_error(fp16: Accelerator) -> None:
    fp16.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    with pytest.raises(NonFiniteError, match="in the backward pass"):
        train_on(fp16, [3e38])  # the loss is finite, its gradient 2 * 3e38 is not


@pytest.mark.parametrize("is_scaled", [False, True])
def test_a_rare_gradient_counts_as_the_given_multiple_of_the_usual_one(is_scaled: bool, fp16: Accelerator) -> None:
    if not is_scaled:
        fp16.scaler, fp16.native_amp = None, False
    module = Square()
    trainer = trainer_of(module, fp16, max_grad_norm_ratio=10.0, learning_rate=1e-6)  # the weight stays near 1

    for step, x in enumerate([1.0] * 9 + [1e4]):
        trainer.step([{"x": torch.tensor([x])}], GlobalBatch(1), step, 1.0, 0.0)

    # The gradient is (2 x, 1), so its norm was the root of 5, and is ten times as much in the last step.
    moment = trainer.bare_optimizer.state[module.weight]["exp_avg"].item()
    usual = 2 * (1 - 0.9**9)
    assert moment == pytest.approx(0.9 * usual + 0.1 * 10 * math.sqrt(5), rel=1e-3)
    assert list(trainer.gradient_limit.norms) == pytest.approx([math.sqrt(5)] * 9 + [2e4], rel=1e-3)
