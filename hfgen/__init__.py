"""The classic generative models as ordinary Hugging Face models: Auto-Encoder, VAE, GAN and GPT.

Importing hfgen registers its classes with transformers' Auto classes, so that `AutoModel.from_pretrained(folder)`
works without `trust_remote_code`. Everything else is loaded when one of its names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import transformers

from . import models
from .models import *  # noqa: F403


__version__ = "0.1.0"

for _model_type, _architecture in models.MODELS.items():
    _config_class = _architecture.config_class
    transformers.AutoConfig.register(_model_type, _config_class, exist_ok=True)
    transformers.AutoModel.register(_config_class, _architecture.base_model_class, exist_ok=True)
    for _auto_class, _model_class in _architecture.head_classes.items():
        getattr(transformers, _auto_class).register(_config_class, _model_class, exist_ok=True)

_LAZY = {
    "build_character_tokenizer": "hfgen.tokenization",
    "build_image_processor": "hfgen.image_processing",
    "from_gpt2": "hfgen.convert",
    "from_nanogpt": "hfgen.convert",
    "to_gpt2": "hfgen.convert",
    "image_grid": "hfgen.image_processing",
    "to_pil": "hfgen.image_processing",
    "tokenizer_from_nanogpt": "hfgen.convert",
}

if TYPE_CHECKING:
    from .convert import from_gpt2, from_nanogpt, to_gpt2, tokenizer_from_nanogpt
    from .image_processing import build_image_processor, image_grid, to_pil
    from .tokenization import build_character_tokenizer

__all__ = [
    "build_character_tokenizer",
    "build_image_processor",
    "from_gpt2",
    "from_nanogpt",
    "image_grid",
    "to_gpt2",
    "to_pil",
    "tokenizer_from_nanogpt",
]
__all__ += models.__all__


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hfgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
