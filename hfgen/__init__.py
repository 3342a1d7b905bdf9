"""The classic generative models as ordinary Hugging Face models: Auto-Encoder, VAE, GAN and GPT.

Importing hfgen registers its classes with transformers' Auto classes, so that `AutoModel.from_pretrained(folder)`
works without `trust_remote_code`. All other modules are imported when one of their names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hfgen.models import MODELS
from hfgen.models.modeling_autoencoder import AutoencoderConfig, AutoencoderModel
from hfgen.models.modeling_gan import GANConfig, GANModel
from hfgen.models.modeling_gpt import GPTConfig, GPTForCausalLM, GPTModel
from hfgen.models.modeling_vae import VAEConfig, VAEModel


__version__ = "0.1.0"

for _architecture in MODELS.values():
    AutoConfig.register(_architecture.config.model_type, _architecture.config, exist_ok=True)
    AutoModel.register(_architecture.config, _architecture.model, exist_ok=True)
    if _architecture.causal_lm is not None:
        AutoModelForCausalLM.register(_architecture.config, _architecture.causal_lm, exist_ok=True)

_LAZY = {
    "build_character_tokenizer": "hfgen.tokenization",
    "build_image_processor": "hfgen.image_processing",
    "from_gpt2": "hfgen.convert",
    "from_nanogpt": "hfgen.convert",
    "to_gpt2": "hfgen.convert",
    "image_grid": "hfgen.image_processing",
    "to_pil": "hfgen.image_processing",
}

if TYPE_CHECKING:
    from hfgen.convert import from_gpt2, from_nanogpt, to_gpt2
    from hfgen.image_processing import build_image_processor, image_grid, to_pil
    from hfgen.tokenization import build_character_tokenizer

__all__ = [
    "AutoencoderConfig",
    "AutoencoderModel",
    "GANConfig",
    "GANModel",
    "GPTConfig",
    "GPTForCausalLM",
    "GPTModel",
    "VAEConfig",
    "VAEModel",
    "build_character_tokenizer",
    "build_image_processor",
    "from_gpt2",
    "from_nanogpt",
    "image_grid",
    "to_gpt2",
    "to_pil",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hfgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
