"""The rules of the house, read from the source: what may import what, and no pickle anywhere.

A model file travels to the Hub with the files beside it that it imports from, so they need nothing but torch and
transformers. Imports run one way: models <- the rest of hfgen <- training, and within training down the `RANKS`.
Imports in functions count like any others.
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports


ROOT = Path(__file__).resolve().parents[1]
MODEL_FILES = sorted((ROOT / "hfgen" / "models").glob("modeling_*.py"))
SHARED_FILES = sorted({*(ROOT / "hfgen" / "models").glob("*.py")} - {*MODEL_FILES, ROOT / "hfgen/models/__init__.py"})
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for package in ("hfgen", "training", "tests")
    for path in sorted((ROOT / package).rglob("*.py"))
}
# Top to bottom: a file imports from its own row and from those below.
RANKS = [
    "evaluate_images run_script train_autoencoder train_codec train_gan train_gpt train_ladder_vae train_vae",
    "loop",
    "variational augmentation",
    "checkpoint output watching",
    "state",
    "step evaluation",
    "objective optim build_model progress",
    "data hardware muon",
    "randomness durable_files config distributed",
]
RANK_OF = {name: -row for row, names in enumerate(RANKS) for name in names.split()}

# transformers itself requires huggingface_hub, so it is there wherever a model is loaded.
MODEL_REQUIREMENTS = {"torch", "transformers", "huggingface_hub"}
PICKLING_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# accelerate's save_state pickles the optimizer, the scheduler and random states.
PICKLING_CALLS = {"torch.save", "torch.load", "accelerator.save_state", "accelerator.load_state"}
PICKLING_NAMES = {"read_pickle", "to_pickle", "allow_pickle"}
LAUNCHER_VARIABLE = re.compile(r"RANK|WORLD_SIZE|(LOCAL|TORCHELASTIC|ACCELERATE|GROUP)_[A-Z_]+")


@dataclass(frozen=True)
class Import:
    """A line that imports a module, or a name from a module.

    Attributes:
        file: that contains the line, such as "training/loop.py".
        line: its number.
        module: full name of what is imported, such as "training.config.flags"; the package "hfgen" itself is "hfgen".
        name: what is taken from the module, or None.
        is_relative: whether the module is named by dots.
    """

    file: str
    line: int
    module: str
    name: str | None = None
    is_relative: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}{f': {self.name}' if self.name else ''}"

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    def is_in(self, *places: str) -> bool:
        """Whether the line is in one of these packages or modules."""
        return _is_under(_module_of(self.file), places)

    def is_of(self, *places: str) -> bool:
        """Whether it imports one of these packages or modules, or part of one."""
        return _is_under(self.module, places)


def _is_under(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def _module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {_module_of(file) for file in SOURCES}


def imports(file: str, source: str) -> Iterator[Import]:
    """All imports anywhere in a file: in functions and under TYPE_CHECKING too. `from a import b` is an import of a.b
    where that is a module of this project."""
    package = _module_of(file).split(".")
    if not file.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(ast.parse(source, filename=file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{module}.{alias.name}"
                name = None if full in MODULES else alias.name
                yield Import(file, node.lineno, full if name is None else module, name, bool(node.level))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield Import(file, node.lineno, argument.value)


@dataclass(frozen=True)
class Rule:
    """A forbidden import, with an example of a file that breaks the rule and of one that does not."""

    says: str
    breaks: Callable[[Import], bool]
    bad: tuple[str, str]
    good: tuple[str, str]


def _rank(module: str) -> int | None:
    parts = module.split(".")
    if module.startswith("training.checkpoint.storage"):  # files on a disk, below the state that it holds
        return RANK_OF["distributed"]
    return RANK_OF.get(parts[1]) if parts[0] == "training" and len(parts) > 1 else None


def _goes_up(line: Import) -> bool:
    own, other = _rank(_module_of(line.file)), _rank(line.module)
    return own is not None and other is not None and own < other


STORAGE_IMPORTS = ("training.distributed", "training.durable_files")
RULES = [
    Rule("hfgen imports neither training nor tests",
         lambda line: line.is_in("hfgen") and line.package in ("training", "tests", "setup"),
         ("hfgen/hub.py", "def f():\n    from training.loop import train"), ("hfgen/hub.py", "import torch")),
    Rule("of hfgen, models import only from files beside them",
         lambda line: line.is_in("hfgen.models") and line.is_of("hfgen")
         and not (line.is_of("hfgen.models") and line.is_relative and line.name),
         ("hfgen/models/modeling_gan.py", "from ..metrics import x"),
         ("hfgen/models/modeling_gan.py", "from .image_model import ImageModel")),
    Rule("no file of models imports a model",
         lambda line: line.is_in("hfgen.models") and not line.file.endswith("__init__.py")
         and line.module.startswith("hfgen.models.modeling_"),
         ("hfgen/models/image_model.py", "from .modeling_gan import GANModel"),
         ("hfgen/models/__init__.py", "from .modeling_gan import GANModel")),
    Rule("pipelines import nothing of hfgen",
         lambda line: line.is_in("hfgen.pipelines") and line.is_of("hfgen"),
         ("hfgen/pipelines/latent_ddim.py", "from ..models import VAEModel"),
         ("hfgen/pipelines/latent_ddim.py", "import diffusers")),
    Rule("model_folder and cards do not import hub",
         lambda line: line.is_in("hfgen.model_folder", "hfgen.cards") and line.is_of("hfgen.hub"),
         ("hfgen/cards.py", "from .hub import push"), ("hfgen/cli.py", "from .hub import push")),
    Rule("of hfgen, only commands and demo import export",
         lambda line: line.is_of("hfgen.export") and line.is_in("hfgen")
         and not line.is_in("hfgen.export", "hfgen.demo", "hfgen.commands"),
         ("hfgen/hub.py", "from .export import export_folder"),
         ("hfgen/commands/export.py", "from ..export import export_folder")),
    Rule("only training, cli and tests import the root of hfgen",
         lambda line: line.module == "hfgen" and not line.is_in("training", "tests", "hfgen.cli"),
         ("hfgen/hub.py", "import hfgen"), ("training/train_gan.py", "from hfgen import GANModel")),
    Rule("imports of training run down the ranks", _goes_up,
         ("training/data/feeds/indexed.py", "def f():\n    from ...loop import train"),
         ("training/loop.py", "from .data.feeds import TensorFeed")),
    Rule("of data, sources import only sources, and feeds only these two",
         lambda line: line.is_of("training.data") and not line.is_of("training.data.sources")
         and (line.is_in("training.data.sources")
              or (line.is_in("training.data.feeds") and not line.is_of("training.data.feeds"))),
         ("training/data/sources/splits.py", "from ..feeds.batches import Batch"),
         ("training/data/feeds/streams.py", "from ..sources.splits import one_line")),
    Rule("checkpoint does not import output, nor output checkpoint",
         lambda line: (line.is_in("training.checkpoint") and line.is_of("training.output"))
         or (line.is_in("training.output") and line.is_of("training.checkpoint")),
         ("training/output/run_folder.py", "from ..checkpoint import storage"),
         ("training/loop.py", "from .checkpoint import storage")),
    Rule("of distributed, data imports only launcher",
         lambda line: line.is_in("training.data") and line.is_of("training.distributed")
         and not line.is_of("training.distributed.launcher"),
         ("training/data/text.py", "from ..distributed.processes import Processes"),
         ("training/data/text.py", "from ..distributed.launcher import rank")),
    Rule("of training, checkpoint/storage.py imports only distributed and durable_files",
         lambda line: line.is_in("training.checkpoint.storage") and line.is_of("training")
         and not line.is_of(*STORAGE_IMPORTS),
         ("training/checkpoint/storage.py", "from ..config.flags import Arguments"),
         ("training/checkpoint/storage.py", "from .. import durable_files")),
    Rule("nobody imports tools",
         lambda line: line.is_of("training.tools") and not line.is_in("training.tools", "tests"),
         ("training/loop.py", "from .tools import collect"), ("training/tools/publish.py", "from . import collect")),
    Rule("training imports itself by relative imports",
         lambda line: line.is_in("training") and line.is_of("training") and not line.is_relative,
         ("training/loop.py", "from training.step import PhaseTrainer"),
         ("training/loop.py", "from .step import PhaseTrainer")),
    Rule("no underscore name crosses a file",
         lambda line: line.package in ("hfgen", "training") and line.is_in("hfgen", "training")
         and any(part.startswith("_") and part[:2] != "__" for part in [*line.module.split("."), line.name or ""]),
         ("training/loop.py", "from .step import _tensors"), ("training/loop.py", "from torch import _C")),
    Rule("torchvision is never needed",
         lambda line: line.package == "torchvision" and line.is_in("hfgen", "training"),
         ("hfgen/metrics.py", "import torchvision.models"), ("hfgen/metrics.py", "import torch")),
]  # fmt: skip
each_rule = pytest.mark.parametrize("rule", RULES, ids=[rule.says.replace(" ", "_") for rule in RULES])


@each_rule
def test_forbidden_import(rule: Rule) -> None:
    broken = [line for file, source in SOURCES.items() for line in imports(file, source) if rule.breaks(line)]
    assert broken == [], f"{rule.says}:\n" + "\n".join(map(str, broken))


@each_rule
def test_forbidden_import_is_found(rule: Rule) -> None:
    assert any(map(rule.breaks, imports(*rule.bad)))
    assert not any(map(rule.breaks, imports(*rule.good)))


def test_every_file_of_training_has_a_rank() -> None:
    without = {module for module in MODULES if module.startswith("training.") and _rank(module) is None}
    assert {module.split(".")[1] for module in without} <= {"tools"}


def cycle(sources: dict[str, str]) -> list[str]:
    """The files of an import cycle, or none."""
    modules = {_module_of(file) for file in sources}
    graph = {
        _module_of(file): {line.module for line in imports(file, source) if line.module in modules}
        - {_module_of(file)}
        for file, source in sources.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_there_is_no_import_cycle_lazy_or_not() -> None:
    assert cycle({file: source for file, source in SOURCES.items() if not file.startswith("tests/")}) == []


def test_import_cycle_is_found() -> None:
    sources = {"hfgen/hub.py": "from . import cards", "hfgen/cards.py": "def f():\n    from .hub import push"}
    assert {"hfgen.hub", "hfgen.cards"} <= set(cycle(sources))
    assert cycle({**sources, "hfgen/cards.py": "import json"}) == []


def private_attributes(file: str, source: str) -> list[str]:
    """Uses of underscore names of modules of this project, as `storage._all` is."""
    tree = ast.parse(source)
    modules = {line.module.rpartition(".")[2] for line in imports(file, source) if line.module in MODULES}
    aliases = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    bound = {alias.asname or alias.name for alias in aliases if alias.name in modules}
    return [
        f"{file}:{node.lineno} uses {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound
        and node.attr.startswith("_") and not node.attr.startswith("__")
    ]  # fmt: skip


def test_no_underscore_name_of_a_module_is_used_elsewhere() -> None:
    files = {file: source for file, source in SOURCES.items() if not file.startswith("tests/")}
    assert [use for file, source in files.items() for use in private_attributes(file, source)] == []


def test_use_of_an_underscore_name_is_found() -> None:
    assert private_attributes("training/loop.py", "from .checkpoint import storage as s\ns._all(folder)")
    assert not private_attributes("training/loop.py", "from .checkpoint import storage as s\ns.save(folder)")


def launcher_variables(source: str) -> list[str]:
    """Environment variables of a launcher that a file names."""
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str) and LAUNCHER_VARIABLE.fullmatch(value)]


def test_only_one_file_names_the_variables_of_the_launcher() -> None:
    """`hfgen train` and training/tools set them for the processes they start, and read none."""
    exempt = ("training/distributed/launcher.py", "hfgen/commands/machine/launch.py", "training/tools/", "tests/")
    named = {file: found for file, source in SOURCES.items()
             if not file.startswith(exempt) and (found := launcher_variables(source))}  # fmt: skip
    assert named == {}


def test_a_variable_of_the_launcher_is_found() -> None:
    assert launcher_variables("os.environ.get('LOCAL_RANK')") == ["LOCAL_RANK"]
    assert launcher_variables("os.environ.get('OMP_NUM_THREADS')  # RANK") == []


def reads_tensors_only(call: ast.Call) -> bool:
    """Whether it is torch.load(..., weights_only=True): tensors, numbers, text and collections of them, no code."""
    options = {word.arg: word.value for word in call.keywords}
    only = options.get("weights_only")
    return (
        ast.unparse(call.func) == "torch.load"
        and len(call.args) < 3  # the third would be the pickle_module
        and isinstance(only, ast.Constant)
        and only.value is True
        and None not in options  # **options could hold another pickle_module
        and "pickle_module" not in options
    )


def pickling(source: str) -> list[str]:
    """Every place in a file that pickles or would unpickle."""
    tree = ast.parse(source)
    modules = {f"{line.module}.{line.name}" if line.name else line.module for line in imports("x.py", source)}
    found = [name for name in modules if name.split(".")[0] in PICKLING_MODULES or name in PICKLING_CALLS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).removeprefix("self.")
            if reads_tensors_only(node):
                continue
            if name in PICKLING_CALLS or name.rpartition(".")[2] in PICKLING_NAMES:
                found.append(f"line {node.lineno}: {name}")
            found += [f"line {node.lineno}: {word.arg}" for word in node.keywords if word.arg in PICKLING_NAMES]
    return found


def test_nothing_is_pickled() -> None:
    found = {file: pickling(source) for file, source in SOURCES.items() if not file.startswith("tests/")}
    assert {file: places for file, places in found.items() if places} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import dumps",
        "import torch\ntorch.save(x, 'f')",
        "from torch import load",
        "import importlib\nimportlib.import_module('dill')",
        "class A:\n    def f(self):\n        self.accelerator.save_state('f')",
        "import pandas\npandas.read_pickle('f')",
        "import numpy\nnumpy.load('f', allow_pickle=True)",
        "import torch\ntorch.load('f')",
        "import torch\ntorch.load('f', weights_only=False)",
        "import torch\ntorch.load('f', weights_only=safe)",
        "import torch\ntorch.load('f', weights_only=True, **options)",
        "import torch\ntorch.load('f', weights_only=True, pickle_module=dill)",
        "import torch\ntorch.load('f', 'cpu', dill, weights_only=True)",
    ],
)
def test_pickle_is_found(source: str) -> None:
    assert pickling(source) != []


def test_reading_tensors_alone_is_no_pickling() -> None:
    assert pickling("import torch\ntorch.load('f', map_location='cpu', weights_only=True)") == []


def test_imports_in_functions_and_conditions_are_found() -> None:
    source = "if x:\n    import a.b\ndef f():\n    from c import d\nfrom .state import g\nfrom .data import text"
    found = {(line.module, line.name) for line in imports("training/loop.py", source)}
    assert found == {("a.b", None), ("c", "d"), ("training.state", "g"), ("training.data.text", None)}


each_model_file = pytest.mark.parametrize("path", MODEL_FILES, ids=[path.stem for path in MODEL_FILES])


def test_each_architecture_has_a_file_and_the_others_are_shared() -> None:
    assert {path.stem.removeprefix("modeling_") for path in MODEL_FILES} >= {
        "autoencoder",
        "codec",
        "gan",
        "gpt",
        "ladder_vae",
        "vae",
    }
    imported = {path: set(get_relative_imports(path)) for path in MODEL_FILES}
    assert {path.stem for path in SHARED_FILES} == set().union(*imported.values())


@pytest.mark.parametrize("path", [*MODEL_FILES, *SHARED_FILES], ids=lambda path: path.stem)
def test_what_travels_needs_only_torch_and_transformers(path: Path) -> None:
    file = path.relative_to(ROOT).as_posix()
    packages = {line.package for line in imports(file, path.read_text(encoding="utf-8")) if not line.is_relative}
    # Pipelines read files of images, with Pillow, which a model does without. transformers itself needs numpy.
    is_for_pipelines = path.stem in ("image_inputs", "image_pipelines")
    allowed = MODEL_REQUIREMENTS | ({"numpy", "PIL"} if is_for_pipelines else set())
    assert packages - set(sys.stdlib_module_names) <= allowed
    assert set(get_imports(path)) - set(sys.stdlib_module_names) <= allowed - {"PIL"}
    # With postponed annotations, the types of a config's fields are strings, and remote loading breaks.
    assert "__future__" not in packages


@each_model_file
def test_a_model_file_imports_each_file_that_it_needs_by_itself(path: Path) -> None:
    """diffusers copies the files that the model's file imports from, and not those that they import from in turn.

    By transformers' own parser, which also takes a line of a docstring that looks like an import.
    """
    needed = {Path(file) for file in get_relative_import_files(path)}
    assert {path.with_name(f"{name}.py") for name in get_relative_imports(path)} == needed <= set(SHARED_FILES)
