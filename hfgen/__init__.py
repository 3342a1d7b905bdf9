"""The classic generative models as ordinary Hugging Face models: Auto-Encoder, VAE, GAN, GPT, and their relatives.

Importing hfgen registers its classes with transformers' Auto classes, so that `AutoModel.from_pretrained(folder)`
works without `trust_remote_code`, and its pipelines, so that `pipeline(task, model=folder)` does. Everything else is
loaded when one of its names is first used.
"""

import sys
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

_LAZY = {
    "AutoencoderTransformer": "hfgen.autoencoder_transformer",
    "Embedder": "hfgen.embedding",
    "build_bpe_tokenizer": "hfgen.tokenization",
    "build_character_tokenizer": "hfgen.tokenization",
    "build_image_processor": "hfgen.image_processing",
    "from_gpt2": "hfgen.convert",
    "from_nanogpt": "hfgen.convert",
    "from_native": "hfgen.convert",
    "to_gpt2": "hfgen.convert",
    "to_native": "hfgen.convert",
    "image_grid": "hfgen.image_processing",
    "to_pil": "hfgen.image_processing",
    "MODELS": "hfgen.models",
    "AutoencoderConfig": "hfgen.models",
    "AutoencoderModel": "hfgen.models",
    "CodecConfig": "hfgen.models",
    "CodecModel": "hfgen.models",
    "GANConfig": "hfgen.models",
    "GANModel": "hfgen.models",
    "GPTConfig": "hfgen.models",
    "GPTForCausalLM": "hfgen.models",
    "GPTModel": "hfgen.models",
    "LadderVAEConfig": "hfgen.models",
    "LadderVAEModel": "hfgen.models",
    "VAEConfig": "hfgen.models",
    "VAEModel": "hfgen.models",
    "tokenizer_from_nanogpt": "hfgen.convert",
}

if TYPE_CHECKING:
    from .autoencoder_transformer import AutoencoderTransformer
    from .convert import from_gpt2, from_nanogpt, from_native, to_gpt2, to_native, tokenizer_from_nanogpt
    from .embedding import Embedder
    from .image_processing import build_image_processor, image_grid, to_pil
    from .models import (
        MODELS,
        AutoencoderConfig,
        AutoencoderModel,
        CodecConfig,
        CodecModel,
        GANConfig,
        GANModel,
        GPTConfig,
        GPTForCausalLM,
        GPTModel,
        LadderVAEConfig,
        LadderVAEModel,
        VAEConfig,
        VAEModel,
    )
    from .tokenization import build_bpe_tokenizer, build_character_tokenizer

__all__ = [
    "MODELS",
    "AutoencoderConfig",
    "AutoencoderModel",
    "AutoencoderTransformer",
    "CodecConfig",
    "CodecModel",
    "Embedder",
    "GANConfig",
    "GANModel",
    "GPTConfig",
    "GPTForCausalLM",
    "GPTModel",
    "LadderVAEConfig",
    "LadderVAEModel",
    "VAEConfig",
    "VAEModel",
    "build_bpe_tokenizer",
    "build_character_tokenizer",
    "build_image_processor",
    "from_gpt2",
    "from_nanogpt",
    "from_native",
    "image_grid",
    "to_gpt2",
    "to_native",
    "to_pil",
    "tokenizer_from_nanogpt",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hfgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


def _is_command() -> bool:
    """True in the command `hfgen` and in `python -m hfgen...`.

    They import hfgen on the way to their own code, and must not wait seconds for torch before they report a wrong
    flag. What needs the models imports hfgen.models, which registers them.
    """
    name = PurePath(sys.argv[0] if sys.argv else "").name
    if name == "-m":  # until the module runs
        return sys.orig_argv[sys.orig_argv.index("-m") + 1].partition(".")[0] == "hfgen"
    return name in ("hfgen", "hfgen.exe")


if not _is_command():
    import_module("hfgen.models")
    import_module("hfgen.pipeline_registry").register_when_needed()
