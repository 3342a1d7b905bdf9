"""The snippets of code that the Hub shows for a repository under "Use this model".

The Hub makes them of the card's metadata, config.json and the names of the files, as the function `transformers` in
packages/tasks/src/model-libraries-snippets.ts of https://github.com/huggingface/huggingface.js does.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


# What that package lists for the library transformers in library-to-tasks.ts, of the tasks that concern images or
# their text, and what transformers 5 no longer has pipelines for.
TASKS_OF_TRANSFORMERS = {
    "depth-estimation", "feature-extraction", "fill-mask", "image-classification", "image-feature-extraction",
    "image-segmentation", "image-to-image", "image-to-text", "image-text-to-text", "mask-generation",
    "object-detection", "text-classification", "text-generation", "video-classification",
    "zero-shot-image-classification",
}  # fmt: skip
# Both are seen on the Hub for a repository with a preprocessor_config.json.
IMAGE_PROCESSORS = ("AutoImageProcessor", "AutoProcessor")


def snippets(
    repo: str, metadata: dict[str, Any], config: dict[str, Any], files: Collection[str], model_options: str = ""
) -> list[str]:
    """The snippets of a repository.

    Args:
        repo: owner/name.
        metadata: the front matter of its card.
        config: its config.json.
        files: the names of its files.
        model_options: further arguments of the model's `from_pretrained`, which the Hub has added at times.
    """
    assert metadata["library_name"] == "transformers", "other libraries have other snippets"
    trust = ", trust_remote_code=True" if config.get("auto_map") else ""  # the Hub's tag custom_code
    found = []
    if metadata["pipeline_tag"] in TASKS_OF_TRANSFORMERS:
        found.append(
            "# Use a pipeline as a high-level helper\nfrom transformers import pipeline\n\n"
            f'pipe = pipeline("{metadata["pipeline_tag"]}", model="{repo}"{trust})'
        )
    # Which of several classes the Hub takes follows from the task, and once did from the order.
    models = [name for name in config.get("auto_map", {}) if name.startswith("AutoModel")] or ["AutoModelForCausalLM"]
    processors: Collection[str] = ()
    if "tokenizer.json" in files:
        processors = ["AutoTokenizer"]
    elif "preprocessor_config.json" in files:
        processors = IMAGE_PROCESSORS
    for model in models:
        load = f'model = {model}.from_pretrained("{repo}"{trust}{model_options})'
        for processor in processors:
            name = "tokenizer" if processor == "AutoTokenizer" else "processor"
            found.append(
                f"# Load model directly\nfrom transformers import {processor}, {model}\n\n"
                f'{name} = {processor}.from_pretrained("{repo}"{trust})\n{load}'
            )
        if not processors:
            found.append(f"# Load model directly\nfrom transformers import {model}\n{load}")
    return found
