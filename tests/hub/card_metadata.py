"""What is wrong with the YAML front matter of a README.md, in the way `/api/validate-yaml` tells it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml


FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
TEXT_FIELDS = ("library_name", "pipeline_tag", "license_name", "license_link", "thumbnail")
TEXT_OR_LIST_FIELDS = ("language", "license", "base_model", "datasets", "tags", "metrics")
LIST_FIELDS = ("tags",)
# The Hub has a list of licenses; their form is what a card gets wrong in practice ("Apache 2.0").
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass
class MetadataReport:
    """`metadata` is empty where the front matter is missing or cannot be read."""

    metadata: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_card(content: str) -> MetadataReport:
    found = FRONT_MATTER.match(content)
    if found is None:
        return MetadataReport(warnings=["empty or missing yaml metadata in repo card"])
    try:
        metadata = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        return MetadataReport(errors=[f"the metadata is not valid YAML: {' '.join(str(error).split())}"])
    if metadata is None:
        return MetadataReport(warnings=["empty or missing yaml metadata in repo card"])
    if not isinstance(metadata, dict):
        return MetadataReport(errors=["the metadata must be a mapping of names to values"])
    return MetadataReport(metadata=metadata, errors=list(_problems(metadata)))


def _problems(metadata: dict[str, Any]) -> Iterator[str]:
    for name in TEXT_FIELDS:
        if name in metadata and not isinstance(metadata[name], str):
            yield f'"{name}" must be a string'
    for name in TEXT_OR_LIST_FIELDS:
        value = metadata.get(name)
        if value is not None and not isinstance(value, str) and not _is_text_list(value):
            yield f'"{name}" must be a string or a list of strings'
    for name in LIST_FIELDS:
        if isinstance(metadata.get(name), str):
            yield f'"{name}" must be an array'
    license = metadata.get("license")
    if isinstance(license, str) and not LICENSE.fullmatch(license):
        yield '"license" must be one of the identifiers that the Hub knows, such as apache-2.0'
    if "model-index" in metadata:
        yield from _model_index_problems(metadata["model-index"])


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _model_index_problems(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for number, model in enumerate(index):
        where = f"model-index[{number}]"
        if not isinstance(model, dict):
            yield f'"{where}" must be of type object'
            continue
        if not isinstance(model.get("name"), str):
            yield f'"{where}.name" is required'
        results = model.get("results")
        if not isinstance(results, list):
            yield f'"{where}.results" is required'
            continue
        for position, result in enumerate(results):
            yield from _result_problems(f"{where}.results[{position}]", result)


def _result_problems(where: str, result: Any) -> Iterator[str]:
    if not isinstance(result, dict):
        yield f'"{where}" must be of type object'
        return
    for part, required in (("task", ["type"]), ("dataset", ["type", "name"])):
        section = result.get(part)
        missing = [name for name in required if not isinstance(section, dict) or not section.get(name)]
        yield from (f'"{where}.{part}.{name}" is required' for name in missing)
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield f'"{where}.metrics" is required'
        return
    for number, metric in enumerate(metrics):
        for name in ("type", "value"):
            if not isinstance(metric, dict) or metric.get(name) is None:
                yield f'"{where}.metrics[{number}].{name}" is required'
