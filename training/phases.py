"""A phase of a step at work: forward, backward, the check that all is finite, and the update."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.arguments import Arguments
from training.data import Batch, Share
from training.objective import Phase
from training.optim import build_optimizer
from training.randomness import Draw
from training.status import RunningMeans


class NonFiniteError(ValueError):
    """A loss or gradient was not finite; the message names the step, the phase, the examples and the modules."""


class PhaseTrainer:
    """A phase with its optimizer, prepared for the devices and processes of the run.

    Args:
        phase: what is optimized.
        model: the whole model; its buffers are put back when a step is skipped.
        accelerator: knows devices, precision and processes.
        arguments: of the run.
    """

    def __init__(self, phase: Phase, model: nn.Module, accelerator: Accelerator, arguments: Arguments):
        self.phase, self.accelerator, self.run = phase, accelerator, arguments.run
        self.learning_rate = phase.learning_rate or arguments.run.learning_rate
        self.names = {id(parameter): name for name, parameter in phase.loss.named_parameters()}
        self.buffers = list(model.buffers()) if arguments.run.on_nonfinite == "skip" else []
        self.bare_optimizer = build_optimizer(phase.loss, arguments.run, self.learning_rate)
        self.module, self.optimizer = accelerator.prepare(phase.loss, self.bare_optimizer)

    def step(self, micro_batches: list[Batch], share: Share, step: int, factor: float, means: RunningMeans) -> int:
        """Every repeat of the phase on the examples of a step.

        Args:
            micro_batches: this process's part of the global batch.
            share: which rows of the global batch they are.
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
            draws = [Draw(key, share.total, share.rows(i), self.accelerator.device) for i in range(len(micro_batches))]
            buffers = [buffer.clone() for buffer in self.buffers]
            values = self._accumulate(micro_batches, draws)
            if self._update(factor):
                means.add(values)
            elif self.run.on_nonfinite == "stop":
                raise NonFiniteError(self._explain(step, share, values, micro_batches, draws))
            else:
                skipped += 1
                for buffer, before in zip(self.buffers, buffers):
                    buffer.copy_(before)
        return skipped

    def _accumulate(self, micro_batches: list[Batch], draws: list[Draw]) -> dict[str, Tensor]:
        """Gradients of the mean loss; the values to log, averaged over this process's examples."""
        values: dict[str, Tensor] = {}
        for position, (batch, draw) in enumerate(zip(micro_batches, draws)):
            is_last = position == len(micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.module):
                loss, parts = self.module(batch, draw)
                # Times one, or times NaN if the loss is not finite: its gradient can be finite all the same, and then
                # no process would notice the loss of another one.
                loss = loss * (1 + 0 * loss.detach())
                self.accelerator.backward(loss / len(micro_batches))
            for name, value in parts.items():
                part = value.detach().float() / len(micro_batches)
                values[name] = values[name] + part if name in values else part
        return values

    def _update(self, factor: float) -> bool:
        """Changes the weights, and tells whether it did: not if the gradient is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        limit = self.run.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), limit)
        # This waits for the device, once an update: the price of never writing a damaged weight. With fp16 an overflow
        # is part of the method instead, and the scaler, which waits as well, leaves out the update by itself.
        is_finite = self.accelerator.scaler is not None or math.isfinite(float(norm))
        if is_finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return is_finite

    def _explain(
        self, step: int, share: Share, values: dict[str, Tensor], batches: list[Batch], draws: list[Draw]
    ) -> str:
        where = "in the backward pass, with every value of the forward pass finite"
        for batch, draw in zip(batches, draws):
            module = self._first_nonfinite(batch, Draw(draw.key, draw.total, draw.rows, draw.device))
            if module is not None:
                where = f"first in {module}"
                break
        losses = ", ".join(f"{name} {float(value):.6g}" for name, value in values.items())
        first = step * share.total
        return (
            f"Step {step + 1}, phase {self.phase.name!r}, has a loss or gradient that is not finite: {where}; "
            f"{losses}. Its batch is the examples {first} to {first + share.total - 1} in the order of seed "
            f"{self.run.seed}. The weights were not changed by it. Try a smaller --learning_rate, --max_grad_norm 1, "
            "--mixed_precision no, or --on_nonfinite skip. The last checkpoint is whole, and the same command resumes "
            "from it."
        )

    @torch.no_grad()
    def _first_nonfinite(self, batch: Batch, draw: Draw) -> str | None:
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
            self.phase.loss(batch, draw)
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
