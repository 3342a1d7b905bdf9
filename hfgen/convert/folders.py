"""Whole folders of a GPT in another layout: the model, and all that lies beside it.

    convert_folder("my-gpt", "my-native-gpt")                   loads with transformers alone, without custom code
    convert_folder("my-native-gpt", "my-gpt-again", "hfgen")    back
    model = load_gpt("my-native-gpt")                           a GPTForCausalLM, whichever layout the folder has

The tokenizer, the generation config, results, samples and plots are copied unchanged. The card of a run is written
again, because it says how to load the model.
"""

import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from ..cards import write_card
from ..hub import select_files
from ..model_folder import INDEX, WEIGHTS, code_of_model, read_json
from ..models.modeling_gpt import GPTConfig, GPTForCausalLM
from ..new_folder import new_folder
from .gpt2 import to_gpt2
from .native import GPT2, NATIVE_TYPES, from_native, to_native


LAYOUTS = ("native", "gpt2", "hfgen")
_MAX_SHARD_SIZE = "1GB"


def convert_folder(
    source: str | os.PathLike[str], target: str | os.PathLike[str], layout: str = "native", repo_id: str | None = None
) -> PreTrainedModel:
    """Writes the model of a folder to another one in another layout, with everything that belongs to it.

    Args:
        source: folder of a GPT in any of the layouts. No code in it is run.
        target: a new or empty folder, which appears only once everything is there.
        layout: "native" for the class of transformers that fits, "gpt2" for that of GPT-2, "hfgen" for hfgen's own.
        repo_id: repository that the card of a run names; that of its training or the folder's name if None.

    Returns:
        The model that was written.

    Raises:
        ValueError: the model has the layout already, or cannot be expressed in it (names every field that stands in
            the way), or the target is not empty.
    """
    source = Path(source)
    with new_folder(target) as staging:
        model = _in_layout(source, layout)
        _copy_what_lies_beside(source, staging)
        model.save_pretrained(staging, max_shard_size=_MAX_SHARD_SIZE)
        if (staging / "results.json").is_file():
            write_card(staging, repo_id)
    return model


def rewrite_as_native(folder: Path) -> None:
    """Replaces the files of a model in hfgen's layout by those of its native class, and leaves all others.

    Raises:
        ValueError: as `to_native`; the folder is then as it was.
    """
    model = to_native(load_gpt(folder))
    for path in _model_files(folder):
        path.unlink()
    model.save_pretrained(folder, max_shard_size=_MAX_SHARD_SIZE)


def load_gpt(folder: str | os.PathLike[str]) -> GPTForCausalLM:
    """The model of a folder in any of the layouts, in evaluation mode. No code in the folder is run.

    Raises:
        ValueError: the folder holds another model, or one that GPTConfig cannot express.
    """
    config = read_json(Path(folder) / "config.json")
    model_type = config.get("model_type")
    if model_type in NATIVE_TYPES:
        return from_native(folder)
    if model_type != GPTConfig.model_type or config.get("architectures") not in (None, [GPTForCausalLM.__name__]):
        raise ValueError(
            f"{folder} must hold a causal language model of a type among {GPTConfig.model_type}, "
            f"{', '.join(NATIVE_TYPES)}, got {(config.get('architectures') or ['a model'])[0]} of type {model_type!r}."
        )
    return GPTForCausalLM.from_pretrained(folder)


def _in_layout(folder: Path, layout: str) -> PreTrainedModel:
    """The model of a folder in one of LAYOUTS, which is not its own."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    model_type = read_json(folder / "config.json").get("model_type")
    own = {"hfgen": (GPTConfig.model_type,), "gpt2": (GPT2,), "native": NATIVE_TYPES}[layout]
    model = load_gpt(folder)
    if model_type in own:
        raise ValueError(f"MODEL must have another layout than {layout}, got one of type {model_type!r}. It is there.")
    if layout == "hfgen":
        return model
    return to_gpt2(model) if layout == "gpt2" else to_native(model)


def _copy_what_lies_beside(source: Path, target: Path) -> None:
    """Copies what belongs to a repository, but not the model itself."""
    own = {path.relative_to(source).as_posix() for path in _model_files(source)}
    for name, path in select_files(source)[0].items():
        if name not in own:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def _model_files(folder: Path) -> list[Path]:
    """Config, weights and code of the model in a folder."""
    names = ["config.json", "generation_config.json", WEIGHTS, INDEX]
    files = {folder / name for name in names} | {*folder.glob("model-*-of-*.safetensors"), *code_of_model(folder)}
    return sorted(path for path in files if path.is_file())
