"""MODELS, the one list of architectures. Auto classes, cards, the command line and the checks of folders follow it.

Each `modeling_X.py` is self-contained, config and network together: it is what travels to the Hub.
"""

from typing import NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel

from hfgen.models.modeling_autoencoder import AutoencoderConfig, AutoencoderModel
from hfgen.models.modeling_gan import GANConfig, GANModel
from hfgen.models.modeling_gpt import GPTConfig, GPTForCausalLM, GPTModel
from hfgen.models.modeling_vae import VAEConfig, VAEModel


class Architecture(NamedTuple):
    """An architecture.

    Attributes:
        config: its config class, whose `model_type` is "hfgen_" and the name of the family.
        model: the class that AutoModel loads.
        causal_lm: the class that AutoModelForCausalLM loads, if it is a language model.
    """

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    causal_lm: type[PreTrainedModel] | None = None

    @property
    def family(self) -> str:
        """The name in `train_X.py`, `template_X.md` and `hfgen train X`."""
        return self.config.model_type.removeprefix("hfgen_")

    @property
    def classes(self) -> dict[str, type[PreTrainedModel]]:
        """The model classes by name, the one that is trained first."""
        return {cls.__name__: cls for cls in (self.causal_lm, self.model) if cls is not None}


MODELS = {
    architecture.config.model_type: architecture
    for architecture in (
        Architecture(AutoencoderConfig, AutoencoderModel),
        Architecture(VAEConfig, VAEModel),
        Architecture(GANConfig, GANModel),
        Architecture(GPTConfig, GPTModel, GPTForCausalLM),
    )
}
