"""Where the templates of cards and notebooks are: in the installed package, or next to the package in a checkout."""

from __future__ import annotations

from pathlib import Path


class TemplateError(ValueError):
    """A template is missing; the message says where it was looked for."""


def find_template(name: str) -> Path:
    """The file of this name in `model_cards`.

    Raises:
        TemplateError: there is none.
    """
    package = Path(__file__).parent
    for folder in (package / "model_cards", package.parent / "model_cards"):
        if (folder / name).is_file():
            return folder / name
    raise TemplateError(f"The template {name} is missing, both in {package} and next to it. Reinstall hfgen.")
