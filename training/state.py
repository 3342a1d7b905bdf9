"""The state of a training: everything that a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import Tensor
from transformers import PreTrainedModel

from .checkpoint.storage import Checkpoint, CheckpointError, StoredTensors
from .config.flags import Arguments
from .distributed.fsdp import laid_out_like, named_tensors, shard
from .distributed.processes import Processes
from .evaluation.means import RunningMeans
from .hardware.choices import Choices
from .hardware.devices import prepare_model
from .objective import Metrics, Objective
from .optim import EMA
from .progress import Progress
from .step import PhaseTrainer


@dataclass
class TrainState:
    """All that changes while a model is trained.

    Attributes:
        model: the one that is optimized, sharded or not.
        ema: its moving average, or None.
        phases: with their optimizers.
        means: of the values since the last logged step.
        scaler: of the loss under fp16, or None.
        progress: steps, seconds, and what was due when a signal came.
        latest: metrics of the last evaluation. Not saved: they are for the card of a push while training.
        best: weights of the model to save at the best evaluation so far, on the CPU, if the run is to publish them.
    """

    model: PreTrainedModel
    ema: EMA | None
    phases: list[PhaseTrainer]
    means: RunningMeans
    scaler: torch.amp.GradScaler | None
    progress: Progress = field(default_factory=Progress)
    latest: Metrics = field(default_factory=Metrics)
    best: dict[str, Tensor] = field(default_factory=dict)

    def keep_as_best(self) -> None:
        """Keeps a copy of the model to save as it is now. The copy is part of the next checkpoints."""
        tensors = named_tensors(self.model_to_save())
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        self.progress.best_step = self.progress.step

    @torch.no_grad()
    def return_to_best(self) -> None:
        """Puts the best state in place of the last one, in the model and in its moving average. Training ends here:
        the optimizers stay as they are."""
        for network in [self.model, *([] if self.ema is None else [self.ema.model])] if self.best else []:
            for name, tensor in named_tensors(network).items():
                tensor.copy_(laid_out_like(self.best[name], tensor))

    def model_to_save(self) -> PreTrainedModel:
        """Returns the model that is evaluated and published: the moving average, if there is one."""
        return self.model if self.ema is None else self.ema.updated_model()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Returns weights, their moving average, optimizer states and means, by the file that holds them."""
        tensors = {"model": named_tensors(self.model)}
        if self.ema is not None:
            tensors["average"] = named_tensors(self.ema.updated_model())
        if self.best:
            tensors["best"] = self.best
        for phase in self.phases:
            tensors[f"optimizer-{phase.name}"] = _optimizer_tensors(phase)
        return {**tensors, "means": self.means.state()}

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers beside the tensors."""
        state: dict[str, Any] = {"progress": vars(self.progress)}
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        norms = {phase.name: list(phase.gradient_limit.norms) for phase in self.phases if phase.gradient_limit.norms}
        return {**state, "gradient_norms": norms} if norms else state

    def restore(self, checkpoint: Checkpoint, processes: Processes) -> None:
        """Puts a checkpoint back. The main process reads the tensors and sends them to the others. Collective call.

        Raises:
            CheckpointError: tensors are missing, too many, or of another shape; nothing was changed.
        """
        targets = {"model": named_tensors(self.model)}
        if self.ema is not None:
            targets["average"] = named_tensors(self.ema.model)
        stored = {heading: checkpoint.tensors.get(heading, StoredTensors()) for heading in targets}
        for heading, tensors in targets.items():
            shapes = stored[heading].shapes
            expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            wrong = [name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name)]
            if wrong:
                raise CheckpointError(
                    f"{checkpoint.path / heading}.safetensors does not fit the model: {', '.join(sorted(wrong)[:5])}."
                )
        states = [checkpoint.tensors.get(f"optimizer-{phase.name}", StoredTensors()) for phase in self.phases]
        for phase, state in zip(self.phases, states):
            _check_optimizer_tensors(phase, state.shapes)

        for phase, state in zip(self.phases, states):
            _load_optimizer_tensors(phase, state.broadcast(processes))
        with torch.no_grad():
            for heading, tensors in targets.items():
                for name, tensor in stored[heading].broadcast(processes):
                    tensors[name].copy_(laid_out_like(tensor, tensors[name]))
        self.best = dict(checkpoint.tensors.get("best", StoredTensors()).broadcast(processes))
        self.means.restore(dict(checkpoint.tensors.get("means", StoredTensors()).broadcast(processes)))
        if self.scaler is not None and "scaler" in checkpoint.state:
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        for phase in self.phases:
            phase.gradient_limit.norms.extend(checkpoint.state.get("gradient_norms", {}).get(phase.name, []))
        self.progress = Progress(**checkpoint.state["progress"])


def build_state(
    objective: Objective[Any],
    arguments: Arguments,
    choices: Choices,
    plugin: FullyShardedDataParallelPlugin | None,
    accelerator: Accelerator,
    processes: Processes,
) -> TrainState:
    """Places the objective's model on the devices of the run, and builds optimizers and moving average around it."""
    run, model = arguments.run, objective.model
    ema_copy = copy.deepcopy(model) if run.ema_decay else None
    for network in (model, ema_copy):
        if network is None:
            continue
        if plugin is None or processes.count == 1:
            prepare_model(network, run, choices, accelerator.device)
        else:
            prepare_model(network, run, choices, torch.device("cpu"))
            shard(network, plugin, accelerator)
    if run.torch_compile:
        for phase in objective.phases:
            for network in phase.loss.children():
                network.compile()
    muon_dtype = choices.muon_dtype
    phases = [PhaseTrainer(phase, model, run, muon_dtype, accelerator, processes) for phase in objective.phases]
    # After the phases: with several processes, accelerate replaces the model's buffers when it prepares them.
    ema = None if ema_copy is None else EMA(model, ema_copy, run.ema_decay, objective.ema_prefixes)
    means = RunningMeans(processes, accelerator.device)
    return TrainState(model, ema, phases, means, accelerator.scaler)


def _optimizer_tensors(phase: PhaseTrainer) -> dict[str, Tensor]:
    """Returns the state of a phase's optimizer as named tensors, `parameter:entry`."""
    names = {id(parameter): name for name, parameter in phase.parameters().items()}
    return {
        f"{names[id(parameter)]}:{entry}": value
        for parameter, state in phase.bare_optimizer.state.items()
        for entry, value in state.items()
    }


def _check_optimizer_tensors(phase: PhaseTrainer, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises a CheckpointError if states of these shapes, by `parameter:entry`, cannot be the optimizer's."""
    parameters = phase.parameters()
    for key, shape in shapes.items():
        name = key.rpartition(":")[0]
        if name not in parameters:
            raise CheckpointError(f"The optimizer state {key!r} belongs to no parameter of this model.")
        if shape and shape != tuple(parameters[name].shape):
            raise CheckpointError(
                f"The optimizer state {key!r} must have shape {tuple(parameters[name].shape)}, got {shape}."
            )


def _load_optimizer_tensors(phase: PhaseTrainer, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """The inverse of `_optimizer_tensors`."""
    parameters = phase.parameters()
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors:
        name, _, entry = key.rpartition(":")
        # In the parameter's own memory layout: fused kernels walk through both in the order of memory.
        states.setdefault(name, {})[entry] = laid_out_like(value, parameters[name]) if value.ndim else value
    phase.bare_optimizer.load_state_dict(
        {
            "state": {i: states[name] for i, name in enumerate(parameters) if name in states},
            "param_groups": phase.bare_optimizer.state_dict()["param_groups"],
        }
    )
