"""Registers the pipelines of hfgen's models with transformers, so that `pipeline(task, model=...)` finds them without
trust_remote_code."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


_REGISTRY = "transformers.pipelines"


def register_when_needed() -> None:
    """Registers the pipelines as soon as transformers' own are imported, which few programs do; now if they are."""
    if _REGISTRY in sys.modules:
        register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def register() -> None:
    """Adds the pipelines to transformers' `PIPELINE_REGISTRY`. A task that another package has registered stays so."""
    from transformers import AutoModel, pipelines

    from .models import image_pipelines
    from .models.image_model import PIPELINES

    for task, place in PIPELINES.items():
        # transformers no longer has pipelines for this task, and refuses its name before it looks for one.
        getattr(pipelines, "REMOVED_TASKS", {}).pop(task, None)
        if task not in pipelines.PIPELINE_REGISTRY.supported_tasks:
            pipeline_class = getattr(image_pipelines, place.rpartition(".")[2])
            pipelines.PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=AutoModel, type="image")


class _Finder(MetaPathFinder):
    """Stands at the head of sys.meta_path until the registry is imported, and then registers the pipelines."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec: Any = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register
        return spec
