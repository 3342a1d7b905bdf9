"""What is installed: the training scripts, which may be part of the package or beside it, and other packages."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


PACKAGE = Path(__file__).resolve().parents[2]
CHECKOUT = PACKAGE.parent


def find_training() -> tuple[Path, str]:
    """The folder of the training scripts, and the name of the package that it is.

    Raises:
        ValueError: it is missing.
    """
    spec = importlib.util.find_spec("hfgen.training")
    if spec is not None and spec.origin is not None:
        home = Path(spec.origin).resolve().parent
        if home in (PACKAGE / "training", CHECKOUT / "training"):  # and not of another copy of hfgen
            return home, "hfgen.training"
    home = CHECKOUT / "training"
    if not (home / "loop.py").is_file():
        raise ValueError(f"{home} is missing, and so is the module hfgen.training. Reinstall hfgen.")
    return home, "training"


def import_training(name: str) -> Any:
    """Imports a module of the training package, such as "config.parser"."""
    _, package = find_training()
    if package == "training" and str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    return importlib.import_module(f"{package}.{name}")


@dataclass(frozen=True)
class Extra:
    """An optional part of hfgen.

    Attributes:
        name: as in `pip install 'hfgen[NAME]'`.
        missing: requirements that are not met.
    """

    name: str
    missing: list[str]


def installed_versions(names: list[str]) -> dict[str, str | None]:
    """The version of each package, None for those that are not installed. Nothing is imported."""
    return {name: _version(name) for name in names}


def missing_requirements() -> list[str]:
    """What hfgen always needs and does not find; none if hfgen is not installed, but run from a checkout."""
    return _unmet(need for need in _requirements() if need.marker is None)


def extras() -> list[Extra]:
    """The optional parts of hfgen but its tests, with what they lack; none if hfgen is not installed, but run from a
    checkout."""
    requirements = [need for need in _requirements() if need.marker is not None]
    markers = " ".join(str(need.marker) for need in requirements)
    names = dict.fromkeys(re.findall(r'extra == "(.+?)"', markers))
    return [
        Extra(name, _unmet(need for need in requirements if need.marker.evaluate({"extra": name})))
        for name in names
        if name != "test"
    ]


def _requirements() -> list[Any]:
    from packaging.requirements import Requirement

    try:
        return [Requirement(text) for text in metadata.requires("hfgen") or []]
    except metadata.PackageNotFoundError:
        return []


def _unmet(requirements: Iterable[Any]) -> list[str]:
    return [
        f"{need.name}{need.specifier}"
        for need in requirements
        if (version := _version(need.name)) is None or not need.specifier.contains(version, prereleases=True)
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
