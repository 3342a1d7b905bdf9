"""A phase of a step at work: forward, backward, the check that all is finite, and the update."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .config.flags import Arguments
from .data.batches import Batch, GlobalBatch
from .evaluation.means import RunningMeans
from .objective import Phase
from .optim import build_optimizer
from .randomness import BatchRNG


class NonFiniteError(ValueError):
    """A loss or gradient was not finite; the message names the step, the phase, the examples and the modules."""


@dataclass
class Update:
    """An update of the weights, or one that was left out, and all that is needed to explain why.

    Attributes:
        step: steps done before it.
        global_batch: which rows of the global batch this process had.
        values: the losses, averaged over them.
        micro_batches, rngs: what they were computed from.
        is_finite: whether loss and gradient were.
    """

    step: int
    global_batch: GlobalBatch
    values: dict[str, Tensor]
    micro_batches: list[Batch]
    rngs: list[BatchRNG]
    is_finite: bool


class PhaseTrainer:
    """A phase with its optimizer, prepared for the devices and processes of the run.

    Args:
        phase: what is optimized.
        model: the whole model; its buffers are put back when a step is skipped. Sharded or not.
        accelerator: knows devices, precision and processes.
        arguments: of the run.
    """

    def __init__(self, phase: Phase, model: nn.Module, accelerator: Accelerator, arguments: Arguments):
        self.phase, self.accelerator, self.run = phase, accelerator, arguments.run
        self.learning_rate = phase.learning_rate or arguments.run.learning_rate
        self.names = {id(parameter): name for name, parameter in phase.loss.named_parameters()}
        self.model = model
        self.bare_optimizer = build_optimizer(phase.loss, arguments.run, self.learning_rate)
        self.sharded_model = model if isinstance(model, FSDPModule) else None
        if self.sharded_model is None:
            self.module, self.optimizer = accelerator.prepare(phase.loss, self.bare_optimizer)
        else:
            self.module, self.optimizer = phase.loss, accelerator.prepare(self.bare_optimizer)

    def step(
        self, micro_batches: list[Batch], global_batch: GlobalBatch, step: int, factor: float, means: RunningMeans
    ) -> int:
        """Every repeat of the phase on the examples of a step.

        Args:
            micro_batches: this process's part of the global batch.
            global_batch: which rows of the global batch they are.
            step: steps done before this one.
            factor: of the learning rate.
            means: where the values to log are added.

        Returns:
            the number of updates that were skipped because a loss or gradient was not finite.

        Raises:
            NonFiniteError: a loss or gradient was not finite and such steps are not to be skipped.
        """
        skipped = 0
        for repeat in range(self.phase.repeats):
            key = (self.run.seed, "draw", step, self.phase.name, repeat)
            rngs = [
                BatchRNG(key, global_batch.size, global_batch.rows(i), self.accelerator.device)
                for i in range(len(micro_batches))
            ]
            # Asked for each time: preparing a phase can put other tensors in their place.
            buffers = list(self.model.buffers()) if self.run.on_nonfinite == "skip" else []
            before = [buffer.clone() for buffer in buffers]
            values = self.accumulate(micro_batches, rngs)
            update = Update(step, global_batch, values, micro_batches, rngs, self.update(factor, values))
            if update.is_finite:
                means.add(values)
            elif self.run.on_nonfinite == "stop":
                raise NonFiniteError(self._explain(update))
            else:
                skipped += 1
                for buffer, content in zip(buffers, before):
                    buffer.copy_(content)
        return skipped

    def accumulate(self, micro_batches: list[Batch], rngs: list[BatchRNG]) -> dict[str, Tensor]:
        """Gradients of the mean loss; the values to log, averaged over this process's examples."""
        values: dict[str, Tensor] = {}
        for position, (batch, rng) in enumerate(zip(micro_batches, rngs)):
            with self._synchronized(position == len(micro_batches) - 1):
                loss, parts = self.module(batch, rng)
                # Times one, or times NaN if the loss is not finite: its gradient can be finite all the same, and then
                # no process would notice the loss of another one.
                loss = loss * (1 + 0 * loss.detach())
                self.accelerator.backward(loss / len(micro_batches))
            for name, value in parts.items():
                part = value.detach().float() / len(micro_batches)
                values[name] = values[name] + part if name in values else part
        return values

    def _synchronized(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around a micro-step: gradients are exchanged between processes in the last one alone."""
        if self.sharded_model is not None:
            self.sharded_model.set_requires_gradient_sync(is_last)
            return self.accelerator.autocast()
        return nullcontext() if is_last else self.accelerator.no_sync(self.module)

    def update(self, lr_factor: float, values: dict[str, Tensor]) -> bool:
        """Changes the weights unless the gradient is not finite.

        Returns:
            whether it is finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * lr_factor
        norm = self._clip()
        if self.accelerator.scaler is not None:
            is_finite = self._scaled_update(values)
        else:
            is_finite = math.isfinite(float(norm))
            if is_finite:
                self.optimizer.step()
        self.optimizer.zero_grad()
        return is_finite

    def _clip(self) -> Tensor:
        """Scales the gradient down to --max_grad_norm; its norm before that, over all processes."""
        limit = self.run.max_grad_norm or math.inf
        if self.sharded_model is None:
            return self.accelerator.clip_grad_norm_(self.module.parameters(), limit)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _scaled_update(self, values: dict[str, Tensor]) -> bool:
        """The update under fp16, where a gradient that overflows is part of the method: the scaler leaves it out and
        scales less from then on. That a loss is not finite, or that a gradient overflows unscaled, is not."""
        scaler = self.accelerator.scaler
        scale = scaler.get_scale()
        self.optimizer.step()
        if scaler.get_scale() >= scale:
            return True
        are_finite = torch.stack([value.isfinite().all() for value in values.values()]).all()
        return scale > 1 and bool(self.accelerator.gather(are_finite[None]).all())

    def _explain(self, update: Update) -> str:
        where = "in the backward pass, with every value of the forward pass finite"
        # All of them even when the first one explains it: a sharded model's processes have to keep step.
        places = [self._first_nonfinite(batch, BatchRNG(rng.key, rng.total, rng.rows, rng.device))
                  for batch, rng in zip(update.micro_batches, update.rngs)]  # fmt: skip
        module = next((place for place in places if place is not None), None)
        if module is not None:
            where = f"first in {module}"
        losses = ", ".join(f"{name} {float(value):.6g}" for name, value in update.values.items())
        first = update.step * update.global_batch.size
        return (
            f"Step {update.step + 1}, phase {self.phase.name!r}, has a loss or gradient that is not finite: {where}; "
            f"{losses}. Its batch is the examples {first} to {first + update.global_batch.size - 1} in the order of "
            f"seed {self.run.seed}. The weights were not changed by it. Try a smaller --learning_rate, --max_grad_norm "
            "1, --mixed_precision no, or --on_nonfinite skip. The last checkpoint is whole, and the same command resumes "
            "from it."
        )

    @torch.no_grad()
    def _first_nonfinite(self, batch: Batch, rng: BatchRNG) -> str | None:
        """The first module whose output is not finite, in the order of the forward pass, run once more."""
        for name, tensor in batch.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                return f"the batch itself, {name!r}"
        found: list[str] = []

        def watch(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if any(not bool(tensor.isfinite().all()) for tensor in _tensors(output)):
                    found.append(f"the module {name!r} ({type(module).__name__})" if name else "the loss")

            return hook

        handles = [module.register_forward_hook(watch(name)) for name, module in self.phase.loss.named_modules()]
        try:
            self.phase.loss(batch, rng)
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else None


def _tensors(output: Any) -> list[Tensor]:
    """The tensors with fractions in what a module returned."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
