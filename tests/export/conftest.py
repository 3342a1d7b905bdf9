"""Exports that several tests look at, and what keeps them quick."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
from torch.onnx._internal.exporter import _registration


@pytest.fixture(scope="session", autouse=True)
def registry_is_built_once() -> Iterator[None]:
    """torch.onnx.export recompiles its library of operators for each graph, which takes most of the time of a small
    one."""
    with pytest.MonkeyPatch.context() as patch:
        build = functools.cache(_registration.ONNXRegistry.from_torchlib)
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(build))
        yield
