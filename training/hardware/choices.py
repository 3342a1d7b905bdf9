"""Precision, attention, memory layout and threads of a run: who chose them, and why.

A flag comes first, then the launcher, then what was measured on the machine. A resumed run keeps what it chose, as
other kernels round differently.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from transformers import PreTrainedModel

from ..config.flags import RunArguments
from ..distributed import launcher
from .probe import Attention, speeds


Precision: TypeAlias = Literal["no", "bf16", "fp16"]

MEASURED = "measured"
THREADS_GIVEN = FLAG_OF_THREADS, VARIABLE_OF_THREADS = "--cpu_threads", "OMP_NUM_THREADS"
USUAL = "the usual one on a GPU"
# A kernel is preferred to the usual one only if it takes at most this share of its time.
CLEARLY_FASTER = 0.9


@dataclass(frozen=True)
class Choices:
    """What the kernels of a run are, with the reason of each in words.

    Attributes:
        mixed_precision: of forward and backward passes: "no", "bf16" or "fp16".
        muon_precision: of the products inside Muon: "fp32" or "bf16".
        attn_implementation: "sdpa", "eager" or another of transformers; None for a model without attention.
        channels_last: the memory layout of images.
        cpu_threads: number of CPU threads of each process.
        reasons: why, by the names above.
    """

    mixed_precision: Precision
    muon_precision: Literal["fp32", "bf16"]
    attn_implementation: str | None
    channels_last: bool
    cpu_threads: int
    reasons: dict[str, str]

    @property
    def muon_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.muon_precision == "bf16" else torch.float32

    @property
    def threads_were_given(self) -> bool:
        """True if a flag or OMP_NUM_THREADS says how many threads to use."""
        return self.reasons["cpu_threads"] in THREADS_GIVEN

    def to_json(self) -> dict[str, Any]:
        """Returns what results.json and a checkpoint hold."""
        return asdict(self)


def choose(run: RunArguments, model: PreTrainedModel, before: dict[str, Any] | None = None) -> Choices:
    """Returns the choices of a run; measures what neither flags nor the launcher say.

    Args:
        run: the flags.
        model: that is trained.
        before: choices of the run that is resumed, as JSON.

    Raises:
        ValueError: the precision needs a GPU, and there is none.
    """
    if before is not None:
        choices = _resumed(run, before)
    else:
        chooser = _Chooser(run, model)
        precision, why = chooser.mixed_precision()
        chosen = {
            "mixed_precision": (precision, why),
            "muon_precision": chooser.muon_precision(precision, why),
            "attn_implementation": chooser.attn_implementation(precision),
            "channels_last": chooser.channels_last(precision),
            "cpu_threads": chooser.cpu_threads(),
        }
        values: dict[str, Any] = {name: value for name, (value, _) in chosen.items()}
        choices = Choices(**values, reasons={name: reason for name, (_, reason) in chosen.items()})
    if choices.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--mixed_precision fp16 needs a GPU, and there is none. Use bf16 or no.")
    return choices


def _resumed(run: RunArguments, before: dict[str, Any]) -> Choices:
    """The choices before the resume, except for what a flag says now."""
    flags: dict[str, Any] = {
        "mixed_precision": None if run.mixed_precision == "auto" else run.mixed_precision,
        "attn_implementation": None if run.attn_implementation == "auto" else run.attn_implementation,
        "channels_last": run.channels_last,
        "cpu_threads": run.cpu_threads,
    }
    given = {name: value for name, value in flags.items() if value is not None and value != before[name]}
    reasons = {**before["reasons"], **{name: f"--{name}" for name in given}}
    return replace(Choices(**before), **given, reasons=reasons)


class _Chooser:
    """Makes each choice; returns the value and the reason."""

    def __init__(self, run: RunArguments, model: PreTrainedModel):
        self.run = run
        self.attention = _attention_of(model)
        self.on_cpu = launcher.on_cpu() or not torch.accelerator.is_available()

    @cached_property
    def speeds(self) -> dict[str, float]:
        return speeds(self.attention)

    def mixed_precision(self) -> tuple[Precision, str]:
        if self.run.mixed_precision != "auto":
            return self.run.mixed_precision, "--mixed_precision"  # of the command, the recipe or the launcher
        if self.on_cpu:
            share = self._time_of_pass("bf16") / self._time_of_pass("fp32")
            return "bf16" if share <= CLEARLY_FASTER else "no", _measured("bf16", share, "fp32")
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_bf16 else "no", f"this GPU has {'' if has_bf16 else 'no '}instructions for bf16"

    def muon_precision(self, precision: Precision, reason: str) -> tuple[Literal["fp32", "bf16"], str]:
        if not self.on_cpu:
            return "bf16", USUAL
        if not reason.startswith(MEASURED):
            return "bf16" if precision == "bf16" else "fp32", "as mixed_precision"
        share = self.speeds["batched bf16"] / self.speeds["batched fp32"]
        return "bf16" if share <= CLEARLY_FASTER else "fp32", _measured("bf16", share, "fp32")

    def attn_implementation(self, precision: Precision) -> tuple[str | None, str]:
        if self.attention is None:
            return None, "the model has no attention"
        if self.run.attn_implementation != "auto":
            return self.run.attn_implementation, "--attn_implementation"
        if not self.on_cpu:
            return "sdpa", USUAL
        share = self._attention("eager", precision) / self._attention("sdpa", precision)
        return "eager" if share <= CLEARLY_FASTER else "sdpa", _measured("eager", share, "sdpa")

    def channels_last(self, precision: Precision) -> tuple[bool, str]:
        if self.attention is not None:
            return False, "the model has no images"
        if self.run.channels_last is not None:
            return self.run.channels_last, "--channels_last"
        if not self.on_cpu:
            return True, USUAL
        share = self._convolution("contiguous", precision) / self._convolution("channels_last", precision)
        return share > CLEARLY_FASTER, _measured("contiguous", share, "channels_last")

    def cpu_threads(self) -> tuple[int, str]:
        if self.run.cpu_threads is not None:
            return self.run.cpu_threads, FLAG_OF_THREADS
        if VARIABLE_OF_THREADS in os.environ and not launcher.defaulted_to_one_thread():
            return torch.get_num_threads(), VARIABLE_OF_THREADS
        processes = launcher.local_processes()
        divided = f", divided by {processes} processes" if processes > 1 else ""
        return max(1, launcher.available_cores() // processes), f"the cores of the machine{divided}"

    def _time_of_pass(self, name: str) -> float:
        """Milliseconds of a layer."""
        precision: Precision = "bf16" if name == "bf16" else "no"
        product = self.speeds[f"product {name}"]
        if self.attention is None:
            return product + min(self._convolution(layout, precision) for layout in ("channels_last", "contiguous"))
        return self.attention.products_beside_it * product + min(
            self._attention(kernel, precision) for kernel in ("sdpa", "eager")
        )

    def _attention(self, kernel: str, precision: Precision) -> float:
        return self.speeds[f"attention {'bf16' if precision == 'bf16' else 'fp32'} {kernel}"]

    def _convolution(self, layout: str, precision: Precision) -> float:
        return self.speeds[f"convolution {'bf16' if precision == 'bf16' else 'fp32'} {layout}"]


def _measured(candidate: str, share: float, usual: str) -> str:
    return f"{MEASURED}: {candidate} takes {share:.2g} times as long as {usual}"


def _attention_of(model: PreTrainedModel) -> Attention | None:
    """The size of a model's attention; None for a model of images."""
    if model.main_input_name != "input_ids":
        return None
    config = model.config
    return Attention(config.num_attention_heads, config.max_position_embeddings, config.head_dim)
