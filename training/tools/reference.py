"""The API reference: a page for each public module, from the docstrings.

    python -m training.tools.reference                  into reference/, which git ignores; open reference/index.html
    python -m training.tools.reference OUT              into another folder

It is written by pdoc (`pip install -e ".[docs]"`). A warning of pdoc is an error here, and so is a reference that
leads nowhere: a docstring refers to a name as [`VAEModel`], or by its module where that is not clear.
"""

from __future__ import annotations

import argparse
import html.parser
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pdoc
import transformers
from jinja2 import pass_context


HOME = Path(__file__).resolve().parents[2]
# The names of hfgen.__all__ are on the page of hfgen; a module of its own has what is beside them.
MODULES = (
    "hfgen",
    "hfgen.models",
    "hfgen.image_processing",
    "hfgen.tokenization",
    "hfgen.metrics",
    "hfgen.convert",
    "hfgen.compression",
    "hfgen.hub",
    "hfgen.cards",
    "hfgen.notebook",
    "hfgen.model_folder",
    "hfgen.models.modeling_autoencoder",
    "hfgen.models.modeling_vae",
    "hfgen.models.modeling_ladder_vae",
    "hfgen.models.modeling_codec",
    "hfgen.models.modeling_gan",
    "hfgen.models.modeling_gpt",
    "hfgen.models.image_model",
    "hfgen.models.latents",
    "hfgen.models.likelihoods",
    "hfgen.models.flow_prior",
    "hfgen.models.anomaly",
    "hfgen.models.gan_losses",
    "hfgen.models.text_sampling",
)
REFERENCE = re.compile(r"\[`([\w.]+)`\](?!\()")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="reference", description="Writes the API reference from the docstrings.")
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, default=HOME / "reference", help="(reference/)")
    target = parser.parse_args(argv).out
    try:
        pages = write_reference(target)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{pages} pages: {target / 'index.html'}")
    return 0


def write_reference(target: Path, modules: Sequence[str] = MODULES) -> int:
    """Writes the pages into a folder, replacing an earlier reference; returns their number.

    Args:
        target: a new folder, or one that this function has written.
        modules: names of modules; the first one is where the index leads.

    Raises:
        ValueError: lists what pdoc warns of and every reference or link that leads nowhere, or the folder holds
            something else.
    """
    if target.exists() and any(target.iterdir()) and not (target / "search.js").is_file():
        raise ValueError(f"OUT must be a new folder or an earlier reference, got {target}, which is another folder.")
    staging = target.with_name(f".{target.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    for name in modules:
        _resolve_lazy_names(name)
    public = _Names(modules)
    pdoc.render.configure(docformat="google", show_source=False, include_undocumented=False)
    pdoc.render.env.filters["to_markdown"] = public.to_markdown
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)  # as pdoc's own are
        pdoc.pdoc(*modules, output_directory=staging)
    problems = [*dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning)]
    _unlink_hidden(staging)
    problems += [*public.dead, *dead_links(staging)]
    if problems:
        shutil.rmtree(staging)
        raise ValueError("The API reference has problems:\n- " + "\n- ".join(problems))
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    return len(list(target.rglob("*.html")))


def _unlink_hidden(folder: Path) -> None:
    """Makes plain text of links to members that have no place on a page: pdoc turns every name that it knows into a
    link, also those without a docstring and those inherited from transformers."""
    pages = {path: _Page(path) for path in sorted(folder.resolve().rglob("*.html"))}
    for path, page in pages.items():
        text = path.read_text(encoding="utf-8")
        for link in page.links:
            file, _, anchor = link.partition("#")
            goal = pages.get((path.parent / file).resolve() if file else path)
            if goal is not None and anchor and anchor not in goal.anchors:
                text = re.sub(rf'<a href="{re.escape(link)}">(.*?)</a>', r"\1", text, flags=re.DOTALL)
        path.write_text(text, encoding="utf-8")


def dead_links(folder: Path) -> list[str]:
    """Links between the pages of a folder that lead nowhere, each with the page that it is on."""
    pages = {path: _Page(path) for path in sorted(folder.resolve().rglob("*.html"))}
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links):
            file, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", file):
                continue
            goal = (path.parent / file).resolve() if file else path
            known = pages.get(goal)
            if known is None or (anchor and anchor not in known.anchors):
                dead.append(f"{path.relative_to(folder.resolve())}: {link} leads nowhere")
    return dead


class _Page(html.parser.HTMLParser):
    """The links of a page, and the places that links can lead to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if (anchor := values.get("id")) is not None:
            self.anchors.add(anchor)
        if tag == "a" and (link := values.get("href")) is not None:
            self.links.add(link)


class _Names:
    """The names that references may lead to, and the references that lead nowhere.

    Args:
        modules: names of the documented modules.
    """

    def __init__(self, modules: Sequence[str]):
        self._modules = {name: pdoc.doc.Module(import_module(name)) for name in modules}
        self.dead: list[str] = []

    @property
    def to_markdown(self) -> Any:
        """What pdoc's templates call to turn a docstring into Markdown."""

        @pass_context
        def convert(context: Any, docstring: str) -> str:
            module = context["module"]
            linked = REFERENCE.sub(lambda match: f"`{self._full_name(match[1], module)}`", docstring)
            return pdoc.docstrings.convert(linked, context["docformat"], module.source_file)

        return convert

    def _full_name(self, name: str, module: pdoc.doc.Module) -> str:
        """The name in the form that pdoc makes a link of."""
        if _is_shown(module.get(name)) or name in self._modules:
            return name
        for home in self._modules:
            short = name.removeprefix(f"{home}.")
            if _is_shown(self._modules[home].get(short)):
                return f"{home}.{short}"
        if hasattr(transformers, name):  # in a docstring that a class inherits
            return name
        problem = f"{module.modulename}: [`{name}`] leads nowhere; name what a page of the reference has"
        if problem not in self.dead:
            self.dead.append(problem)
        return name


def _is_shown(doc: pdoc.doc.Doc | None) -> bool:
    """Whether the pages have a place for it: it has a docstring."""
    return doc is not None and bool(doc.docstring) and not doc.name.startswith("_")


def _resolve_lazy_names(name: str) -> None:
    """Puts names that a module loads when they are used where pdoc looks for them.

    The fields of configs that transformers' own config has need a name of theirs in the same place.
    """
    module = import_module(name)
    for member in getattr(module, "__all__", ()):
        vars(module).setdefault(member, getattr(module, member))
    vars(module).setdefault("Literal", Literal)


if __name__ == "__main__":
    sys.exit(main())
