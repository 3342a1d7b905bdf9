"""Lets diffusers load the model of a repository whose files are at the root, where transformers looks for them.

diffusers takes the code of a component from the component's folder, and its weights from the same place. This is all
that is in the folder: it loads the model from the folder above, so that the weights are stored once.
"""

from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedModel


class ModelAtRoot(PreTrainedModel):
    """Is never made: only `from_pretrained` is called, by diffusers."""

    @classmethod
    def from_pretrained(cls, folder: Any, **kwargs: Any) -> PreTrainedModel:  # type: ignore[override]
        """The model in the folder above, with its own class.

        Args:
            folder: of the component.
            kwargs: for `AutoModel.from_pretrained`. The code of the repository is trusted: diffusers asks for that
                before it runs this file.
        """
        return AutoModel.from_pretrained(Path(folder).absolute().parent, trust_remote_code=True, **kwargs)
