"""One file per architecture, config and network together, and `MODELS`, the one list of them.

What several architectures share is in files beside theirs, which travel to the Hub with them. Importing this package
registers the architectures with transformers' Auto classes.
"""

from dataclasses import dataclass, field
from types import MappingProxyType

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from .modeling_autoencoder import AutoencoderConfig, AutoencoderModel
from .modeling_codec import CodecConfig, CodecModel
from .modeling_gan import GANConfig, GANModel
from .modeling_gpt import GPTConfig, GPTForCausalLM, GPTModel
from .modeling_ladder_vae import LadderVAEConfig, LadderVAEModel
from .modeling_vae import VAEConfig, VAEModel


@dataclass(frozen=True)
class Architecture:
    """What the rest of hfgen knows about an architecture.

    Everything else follows from the family: `training/train_FAMILY.py` trains it, `training/recipes/FAMILY-*.yaml`
    repeat published results, and `model_cards/template_FAMILY.md` is the card.

    Attributes:
        family: the short name, as in `hfgen train FAMILY`.
        title: the full name.
        config_class: the config; its `model_type` is the key in `MODELS`.
        base_model_class: the class that `AutoModel` loads.
        head_classes: further classes, by the Auto class of transformers that loads them.
        samples: what `hfgen sample` or `hfgen generate` gets from a model: "images", "text", or "nothing".
        temperature: the argument of `sample` that `hfgen sample --temperature` sets.
    """

    family: str
    title: str
    config_class: type[PreTrainedConfig]
    base_model_class: type[PreTrainedModel]
    head_classes: dict[str, type[PreTrainedModel]] = field(default_factory=dict)
    samples: str = "nothing"
    temperature: str = "temperature"

    @property
    def model_classes(self) -> dict[str, type[PreTrainedModel]]:
        """Every model class, by its name in config.json's `architectures`."""
        return {cls.__name__: cls for cls in (self.base_model_class, *self.head_classes.values())}


MODELS = MappingProxyType({
    architecture.config_class.model_type: architecture
    for architecture in (
        Architecture("autoencoder", "Auto-Encoder", AutoencoderConfig, AutoencoderModel),
        Architecture("vae", "Variational Auto-Encoder", VAEConfig, VAEModel, samples="images"),
        Architecture("ladder_vae", "Ladder VAE", LadderVAEConfig, LadderVAEModel, samples="images"),
        Architecture(
            "gan", "Generative Adversarial Network", GANConfig, GANModel, samples="images", temperature="truncation"
        ),
        Architecture("codec", "Image Codec", CodecConfig, CodecModel),
        Architecture("gpt", "GPT", GPTConfig, GPTModel, {"AutoModelForCausalLM": GPTForCausalLM}, samples="text"),
    )
})  # fmt: skip
"""The architectures, by the `model_type` of their configs."""

for _model_type, _architecture in MODELS.items():
    _config_class = _architecture.config_class
    transformers.AutoConfig.register(_model_type, _config_class, exist_ok=True)
    transformers.AutoModel.register(_config_class, _architecture.base_model_class, exist_ok=True)
    for _auto_class, _model_class in _architecture.head_classes.items():
        getattr(transformers, _auto_class).register(_config_class, _model_class, exist_ok=True)

__all__ = [
    "MODELS",
    "Architecture",
    "AutoencoderConfig",
    "AutoencoderModel",
    "CodecConfig",
    "CodecModel",
    "GANConfig",
    "GANModel",
    "GPTConfig",
    "GPTForCausalLM",
    "GPTModel",
    "LadderVAEConfig",
    "LadderVAEModel",
    "VAEConfig",
    "VAEModel",
]
