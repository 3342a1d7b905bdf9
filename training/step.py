"""One step of a phase: forward, backward, the check for non-finite values, and the update."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .config.flags import RunArguments
from .data.feeds.batches import Batch, GlobalBatch
from .distributed.processes import Processes
from .objective import Phase
from .optim import GradientLimit, build_optimizer
from .randomness import BatchRNG


class NonFiniteError(ValueError):
    """A loss or gradient was not finite; the message names the step, the phase, the examples and the module."""


@dataclass
class StepResult:
    """What a phase did in a step.

    Attributes:
        values: of each update that was applied, name -> value averaged over this process's examples, on the device.
        skipped: number of updates that were left out because a loss or gradient was not finite.
        gradient_norms: before clipping, of each update that was applied.
    """

    values: list[dict[str, Tensor]] = field(default_factory=list)
    skipped: int = 0
    gradient_norms: list[float] = field(default_factory=list)


class PhaseTrainer:
    """A phase with its optimizer, prepared for the devices and processes of the run.

    Args:
        phase: what is optimized.
        model: the whole model, sharded or not; its buffers are restored when an update is skipped.
        run: the flags.
        muon_dtype: in which Muon multiplies.
        accelerator: knows device and precision.
        processes: those of the run.
    """

    def __init__(
        self, phase: Phase, model: nn.Module, run: RunArguments, muon_dtype: torch.dtype, accelerator: Accelerator,
        processes: Processes,
    ):  # fmt: skip
        self.phase, self.name, self.model, self.run = phase, phase.name, model, run
        self.accelerator, self.processes = accelerator, processes
        self.learning_rate = phase.learning_rate or run.learning_rate
        self.gradient_norm = math.nan  # of the last update
        self.bare_optimizer = build_optimizer(phase.loss, run, self.learning_rate, muon_dtype)
        self.gradient_limit = GradientLimit(run.max_grad_norm, run.max_grad_norm_ratio)
        self.sharded_model = model if isinstance(model, FSDPModule) else None
        if self.sharded_model is None:
            self.module, self.optimizer = accelerator.prepare(phase.loss, self.bare_optimizer)
        else:
            self.module, self.optimizer = phase.loss, accelerator.prepare(self.bare_optimizer)

    def parameters(self) -> dict[str, Tensor]:
        """Returns the optimized parameters by name, in the optimizer's order."""
        names = {id(parameter): name for name, parameter in self.phase.loss.named_parameters()}
        return {names[id(p)]: p for group in self.bare_optimizer.param_groups for p in group["params"]}

    def step(
        self, micro_batches: list[Batch], global_batch: GlobalBatch, step: int, lr_factor: float, progress: float
    ) -> StepResult:  # fmt: skip
        """Runs every repeat of the phase on the examples of a step.

        Args:
            micro_batches: this process's part of the global batch.
            global_batch: where in it they are.
            step: number of steps done before this one.
            lr_factor: multiplies the learning rate.
            progress: share of the run that is done, in [0, 1).

        Raises:
            NonFiniteError: a loss or gradient was not finite and --on_nonfinite is not skip; the weights are those
                from before the update.
        """
        result = StepResult()
        for repeat in range(self.phase.repeats):
            key = (self.run.seed, "draw", step, self.name, repeat)
            rows = [global_batch.rows(i) for i in range(len(micro_batches))]
            rngs = [BatchRNG(key, global_batch.size, part, self.accelerator.device) for part in rows]
            # Looked up each time: preparing a phase can replace the model's buffers.
            buffers = list(self.model.buffers()) if self.run.on_nonfinite == "skip" else []
            before = [buffer.clone() for buffer in buffers]
            values = self.accumulate(micro_batches, rngs, progress)
            if self.update(lr_factor, values):
                result.values.append(values)
                result.gradient_norms.append(self.gradient_norm)
            elif self.run.on_nonfinite == "stop":
                raise NonFiniteError(self._explain(micro_batches, rngs, global_batch, step, progress, values))
            else:
                result.skipped += 1
                for buffer, content in zip(buffers, before):
                    buffer.copy_(content)
        return result

    def accumulate(self, micro_batches: list[Batch], rngs: list[BatchRNG], progress: float) -> dict[str, Tensor]:
        """Adds up the gradients of the mean loss; returns the values to log, averaged over this process's examples."""
        values: dict[str, Tensor] = {}
        for position, (batch, rng) in enumerate(zip(micro_batches, rngs)):
            with self._synchronized(position == len(micro_batches) - 1):
                loss, parts = self.module(batch, rng, progress)
                self.accelerator.backward(_spread_nonfinite(loss) / len(micro_batches))
            for name, value in parts.items():
                part = value.detach().float() / len(micro_batches)
                values[name] = values[name] + part if name in values else part
        return values

    def update(self, lr_factor: float, values: dict[str, Tensor]) -> bool:
        """Updates the weights and clears the gradients.

        Returns:
            True if loss and gradient were finite, the same in every process; otherwise the weights are unchanged.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * lr_factor
        norm = self._clip()
        self.gradient_limit.record(norm)
        # The norm is the one flag for all gradients of all processes. Reading it makes the host wait for the device
        # once per update.
        self.gradient_norm = float(norm)
        if self.accelerator.scaler is not None:
            is_finite = self._scaled_update(values)
        else:
            is_finite = math.isfinite(self.gradient_norm)
            if is_finite:
                self.optimizer.step()
        self.optimizer.zero_grad()
        return is_finite

    def _synchronized(self, is_last: bool) -> AbstractContextManager[Any]:
        """Wraps a micro-step: processes exchange gradients only in the last one."""
        if self.sharded_model is not None:
            self.sharded_model.set_requires_gradient_sync(is_last)
            return self.accelerator.autocast()
        return nullcontext() if is_last else self.accelerator.no_sync(self.module)

    def _clip(self) -> Tensor:
        """Clips the gradient; returns its norm before that, over all processes."""
        limit = self.gradient_limit.next()
        if self.sharded_model is None:
            return self.accelerator.clip_grad_norm_(self.module.parameters(), limit)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _scaled_update(self, values: dict[str, Tensor]) -> bool:
        """Updates under fp16, where an overflowing gradient is part of the method: the scaler leaves that update out
        and lowers its scale. A non-finite loss, or an overflow at scale 1, is an error."""
        scale = self.accelerator.scaler.get_scale()
        self.optimizer.step()
        # Not `optimizer.step_was_skipped`: fused AdamW is called either way, and leaves the update out by itself.
        if self.accelerator.scaler.get_scale() >= scale:
            return True
        is_finite = bool(torch.stack([value.isfinite().all() for value in values.values()]).all())
        return scale > 1 and self.processes.max([float(not is_finite)]) == [0.0]

    def _explain(
        self, micro_batches: list[Batch], rngs: list[BatchRNG], global_batch: GlobalBatch, step: int,
        progress: float, values: dict[str, Tensor],
    ) -> str:  # fmt: skip
        where = "in the backward pass, with every value of the forward pass finite"
        # All micro-batches, even if the first one explains it: the processes of a sharded model must keep step.
        places = [self._first_nonfinite(batch, rng.restarted(), progress) for batch, rng in zip(micro_batches, rngs)]
        place = next((place for place in places if place is not None), None)
        if place is not None:
            where = f"first in {place}"
        losses = ", ".join(f"{name} {float(value):.6g}" for name, value in values.items())
        first = step * global_batch.size
        return (
            f"Step {step + 1}, phase {self.name!r}, has a loss or gradient that is not finite: {where}; {losses}. Its "
            f"batch is the examples {first} to {first + global_batch.size - 1} in the order of seed {self.run.seed}. "
            "The weights were not changed by it. Try a smaller --learning_rate, --max_grad_norm 1, "
            "--max_grad_norm_ratio 10, --mixed_precision no, or --on_nonfinite skip. The last checkpoint is whole, "
            "and the same command resumes from it."
        )

    @torch.no_grad()
    def _first_nonfinite(self, batch: Batch, rng: BatchRNG, progress: float) -> str | None:
        """Runs the forward pass again and names the first module whose output is not finite."""
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
            self.phase.loss(batch, rng, progress)
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else None


def _spread_nonfinite(loss: Tensor) -> Tensor:
    """Returns the loss, times NaN if it is not finite.

    The gradient of a loss that is not finite can be finite, and then no other process would notice. NaN in the
    gradient reaches them all through its norm.
    """
    return loss * (1 + 0 * loss.detach())


def _tensors(output: Any) -> list[Tensor]:
    """Returns the floating-point tensors in what a module returned."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
