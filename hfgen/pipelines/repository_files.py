"""The files that make the repository of a model one for diffusers, too.

    model_index.json            names the pipeline and its one component
    pipeline.py                 the pipeline: image_sampling.py, and a line that names the model's file
    model/model_at_root.py      loads the component from the root, where AutoModel finds it, too

diffusers has no other way to load a model with its own code from the root of a repository, and copies of the weights
in the component's folder would double what is stored and downloaded.
"""

import json
from pathlib import Path


TASK = "unconditional-image-generation"  # of the models that draw images
INDEX = "model_index.json"
NAMES = (INDEX, "pipeline.py", "model/model_at_root.py")
_HERE = Path(__file__).parent
_CODE_OF_MODEL = "if TYPE_CHECKING:  # diffusers downloads the files that are named like this, and those they import\n"


def diffusers_files(folder: Path) -> dict[str, str]:
    """Name -> content of the files that the repository of a model needs for diffusers.

    Args:
        folder: of a model, with its config.json.

    Returns:
        Nothing for a model that draws no images, or without code of its own.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    reference = str((config.get("auto_map") or {}).get("AutoModel", ""))
    if TASK not in (config.get("custom_pipelines") or {}) or not reference or "--" in reference:
        return {}
    file, _, name = reference.partition(".")
    code = (_HERE / "image_sampling.py").read_text(encoding="utf-8").rstrip()
    index = {"_class_name": ["pipeline", "ImageSamplingPipeline"], "model": ["model_at_root", "ModelAtRoot"]}
    contents = (
        json.dumps(index, indent=2) + "\n",
        f"{code}\n\n\n{_CODE_OF_MODEL}    from .{file} import {name}  # noqa: F401\n",
        (_HERE / "model_at_root.py").read_text(encoding="utf-8"),
    )
    return dict(zip(NAMES, contents))


def write_diffusers_files(folder: Path, target: Path | None = None) -> None:
    """Writes these files.

    Args:
        folder: of the model.
        target: where to write them; into the model's folder if None.
    """
    for name, content in diffusers_files(folder).items():
        path = (folder if target is None else target) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
