"""What a checkpoint holds is put back exactly, and what does not fit is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn

from training.checkpoint.storage import Checkpoint, CheckpointError, load, save
from training.config.flags import RunArguments
from training.distributed.processes import Processes
from training.evaluation.means import RunningMeans
from training.objective import Phase
from training.state import TrainState
from training.step import PhaseTrainer


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def build(accelerator: Accelerator, optimizer: str) -> TrainState:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 5)).to(memory_format=torch.channels_last)
    run = RunArguments(optimizer=optimizer, learning_rate=0.1, weight_decay=0.0)  # type: ignore[arg-type]
    phase = PhaseTrainer(Phase("model", net), net, run, torch.float32, accelerator, Processes())
    return TrainState(net, None, [phase], RunningMeans(Processes(), accelerator.device), None)  # type: ignore[arg-type]


def step(state: TrainState, seed: int) -> None:
    torch.manual_seed(seed)
    state.model(torch.randn(2, 3, 3, 3)).square().sum().backward()
    state.phases[0].bare_optimizer.step()
    state.phases[0].bare_optimizer.zero_grad()
    state.progress.step += 1


def save_and_load(state: TrainState, folder: Path, **changed: dict[str, Tensor]) -> Checkpoint:
    return load(save(folder, 1, state.to_json(), {**state.tensors(), **changed}, None, Processes()))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_restored_optimizer_takes_the_same_steps_whatever_the_memory_layout(
    optimizer: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    """Contiguous states next to channels-last weights would silently be applied to the wrong weights."""
    state, restored = build(accelerator, optimizer), build(accelerator, optimizer)
    for seed in range(3):
        step(state, seed)
    restored.restore(save_and_load(state, tmp_path), Processes())
    step(state, 7), step(restored, 7)
    assert restored.progress == state.progress and restored.progress.step == 4
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), restored.model.parameters()))


@pytest.mark.parametrize(
    ("heading", "tensors", "words"),
    [
        ("optimizer-model", {"gain:exp_avg": torch.zeros(2)}, "gain:exp_avg"),
        ("optimizer-model", {"2.weight:exp_avg": torch.zeros(2, 2)}, r"2\.weight:exp_avg.*\(5, 4\).*\(2, 2\)"),
        ("model", {"2.weight": torch.zeros(5, 4)}, r"does not fit the model: .*0\.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_changed(
    heading: str, tensors: dict[str, Tensor], words: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    state = build(accelerator, "adamw")
    before = [parameter.clone() for parameter in state.model.parameters()]
    with pytest.raises(CheckpointError, match=words):
        state.restore(save_and_load(state, tmp_path, **{heading: tensors}), Processes())
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), before))
