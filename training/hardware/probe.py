"""Measures which kernels are fast on this machine.

Features of a processor do not tell: bf16 products are twice as fast as fp32 ones with some instructions, and ten times
slower where they are emulated; attention kernels and memory layouts differ as much between libraries and sizes. A
measurement takes a tenth of a second for images, and a second or two for attention over a long context. Its result is
kept in the cache of Hugging Face for this machine and these versions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import cached_assets_path
from torch import Tensor

from ..durable_files import write_json


# Changes with what is measured: results of other versions are measured again.
FORMAT = 3
# Variables that change which instructions the kernels use.
INSTRUCTIONS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
ROUNDS = 5
# The most sequences of an attention and the most scores in it, and tokens and the largest width of a linear layer.
MAX_SEQUENCES, MAX_SCORES, TOKENS, MAX_WIDTH = 4, 4_000_000, 256, 512
# Kernels that take long do so with less noise: no further round begins after as many seconds.
MAX_SECONDS = 0.5
# A candidate that is this many times slower than the fastest is not timed again.
HOPELESS = 3.0

Kernel = Callable[[], object]


@dataclass(frozen=True)
class Attention:
    """The size of an attention.

    Attributes:
        heads: number of heads.
        length: tokens of a sequence.
        head_dim: numbers per head.
    """

    heads: int
    length: int
    head_dim: int

    @property
    def width(self) -> int:
        """Of the linear layer that is measured beside it."""
        return min(self.heads * self.head_dim, MAX_WIDTH)

    @property
    def sequences(self) -> int:
        """How many are measured at once."""
        return max(1, min(MAX_SEQUENCES, MAX_SCORES // (self.heads * self.length**2)))

    @property
    def products_beside_it(self) -> float:
        """How many of the measured linear layers are in a layer of a transformer, for the tokens of its attention. Its
        12 width^2 weights are three of them, if it is not wider than they are."""
        return 3 * (self.sequences * self.length / TOKENS) * (self.heads * self.head_dim / self.width) ** 2


def speeds(attention: Attention | None) -> dict[str, float]:
    """Returns milliseconds per kernel, forward and backward, from the cache or measured now.

    Args:
        attention: of the model; None for a model of images.

    Returns:
        "product fp32", "product bf16", "batched fp32", "batched bf16"; for images also "convolution PRECISION LAYOUT",
        for text "attention PRECISION IMPLEMENTATION".
    """
    key = json.dumps(_machine() | {"attention": attention and asdict(attention)}, sort_keys=True)
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError):  # absent or damaged
        stored = json.loads(_cache_file(key).read_text(encoding="utf-8"))["speeds"]
        return {name: float(value) for name, value in stored.items()}
    measured = measure(attention)
    with contextlib.suppress(OSError, ValueError):  # a cache that cannot be written: it is measured again next time
        write_json(_cache_file(key), {"machine": json.loads(key), "speeds": measured})
    return measured


def _cache_file(key: str) -> Path:
    folder = cached_assets_path(library_name="hfgen", namespace="hardware", subfolder="speeds")
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def measure(attention: Attention | None) -> dict[str, float]:
    """Measures what [`speeds`] returns."""
    groups = [
        _products(256 if attention is None else attention.width),
        _batched_products(),
        _convolutions() if attention is None else _attentions(attention),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            return {name: milliseconds for group in groups for name, milliseconds in compare(group).items()}
    finally:
        torch.set_num_threads(threads)


def compare(kernels: dict[str, Kernel]) -> dict[str, float]:
    """Returns the shortest time of each kernel in milliseconds.

    It is the processor's time in this thread, in which other programs on the machine do not count. They still take
    its caches, so the candidates take turns.
    """
    for kernel in kernels.values():
        kernel()  # the first call generates code
    best: dict[str, float] = {}
    begun = time.thread_time()
    for _ in range(ROUNDS):
        if best and time.thread_time() - begun > MAX_SECONDS:
            break
        for name, kernel in kernels.items():
            if best.get(name, 0.0) > HOPELESS * min(best.values(), default=0.0):
                continue
            started = time.thread_time()
            kernel()
            elapsed = 1000 * (time.thread_time() - started)
            best[name] = min(elapsed, best.get(name, elapsed))
    return {name: round(value, 3) for name, value in best.items()}


def _products(width: int) -> dict[str, Kernel]:
    """A linear layer of a transformer, (tokens, width) x (width, 4 width)."""
    inputs, weight = _numbers(TOKENS, width), _numbers(4 * width, width)
    return {f"product {p}": _trained(lambda: F.linear(inputs, weight), p) for p in ("fp32", "bf16")}


def _batched_products() -> dict[str, Kernel]:
    """The products inside Muon, without autocast."""
    matrices = _numbers(8, 128, 512).detach()
    rounded = matrices.bfloat16()
    return {"batched fp32": lambda: matrices @ matrices.mT, "batched bf16": lambda: rounded @ rounded.mT}


def _convolutions() -> dict[str, Kernel]:
    """A convolution of 32 to 64 channels and one back with twice the size, over 16 images of 14 x 14."""
    kernels = {}
    for precision in ("fp32", "bf16"):
        for layout, memory_format in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
            images, down, up = (
                _numbers(*shape).detach().contiguous(memory_format=memory_format).requires_grad_()
                for shape in ((16, 32, 14, 14), (64, 32, 3, 3), (64, 32, 4, 4))
            )

            def convolve(images: Tensor = images, down: Tensor = down, up: Tensor = up) -> Tensor:
                hidden = F.relu(F.conv2d(images, down, stride=2, padding=1))
                return F.conv_transpose2d(hidden, up, stride=2, padding=1)

            kernels[f"convolution {precision} {layout}"] = _trained(convolve, precision)
    return kernels


def _attentions(size: Attention) -> dict[str, Kernel]:
    """Causal attention over some sequences, as a fused kernel and as separate products."""
    query, key, value = (_numbers(size.sequences, size.heads, size.length, size.head_dim) for _ in range(3))
    mask = torch.full((size.length, size.length), float("-inf")).triu(1)

    def fused() -> Tensor:
        if torch.is_autocast_enabled("cpu"):  # a linear layer would have returned them in bf16
            return F.scaled_dot_product_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), is_causal=True)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def separate() -> Tensor:
        scores = query @ key.mT * size.head_dim**-0.5 + mask
        return scores.softmax(-1) @ value

    return {
        f"attention {precision} {name}": _trained(function, precision)
        for precision in ("fp32", "bf16")
        for name, function in (("sdpa", fused), ("eager", separate))
    }


def _trained(function: Callable[[], Tensor], precision: str) -> Kernel:
    """Runs a function forward in a precision, and backward."""

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            result = function()
        result.float().sum().backward()

    return run


def _numbers(*shape: int) -> Tensor:
    """Numbers that do not come from the generator of the training."""
    return torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape).requires_grad_()


def _machine() -> dict[str, object]:
    """Everything that the speeds depend on."""
    return {
        "format": FORMAT,
        "processor": processor_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "instructions": instruction_limits(),
    }


def instruction_limits() -> dict[str, str]:
    """The variables that keep kernels from using all instructions of the processor."""
    return {name: os.environ[name] for name in INSTRUCTIONS if name in os.environ}


def processor_name() -> str:
    """The processor in words, as the operating system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    processor = fields.get("model name", platform.machine())
    # Virtual machines hide the exact name; family and model tell generations apart.
    has_family = "cpu family" in fields and "model" in fields
    return f"{processor} (family {fields['cpu family']}, model {fields['model']})" if has_family else processor
