"""Draws images with a VAE, a Ladder VAE or a GAN, as a pipeline of diffusers.

    pipeline = DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)
    images = pipeline(batch_size=16, generator=torch.Generator().manual_seed(0)).images

This file needs only torch, transformers and diffusers. It is in the model's repository as pipeline.py, and diffusers
loads it from there; model_index.json names it. The model stays where transformers looks for it, see
model/model_at_root.py.
"""

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any  # noqa: F401 (the end of pipeline.py needs both)

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from transformers import PreTrainedModel


LOADER = Path(__file__).with_name("model_at_root.py")  # both here and where diffusers copies code to
CODE_OF_MODEL = "if TYPE_CHECKING:  # diffusers downloads the files that are named like this, and those they import\n"


class ImageSamplingPipeline(DiffusionPipeline):
    """Draws images from random latents.

    Args:
        model: has `sample`, as hfgen's VAEs and GANs do, with images in [0, 1].
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.register_modules(model=model)
        self.image_processor = VaeImageProcessor(do_normalize=False)  # diffusers' own switch for pixels in [0, 1]

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        class_labels: Any = None,
        temperature: Any = None,
        truncation: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws a batch of images.

        Args:
            batch_size: number of images.
            generator: source of all random numbers, or a list with one generator per image.
            class_labels: classes of a conditional model, by number or name: one for all images, or one for each.
                Spread evenly over the classes if None.
            temperature: of a VAE, a factor on the standard deviation of the prior.
            truncation: of a GAN, a factor on the standard deviation of the latents.
            output_type: "pil"; "np", arrays (batch, height, width, channels) in [0, 1]; or "pt", tensors (batch,
                channels, height, width) in [0, 1].
            return_dict: False returns a tuple of the images alone.

        Raises:
            ValueError: an argument does not fit the model or the batch.
        """
        options = {"temperature": temperature, "truncation": truncation}
        options = {name: value for name, value in options.items() if value is not None}
        known = inspect.signature(self.model.sample).parameters
        for name in options:
            if name not in known:
                other = "truncation" if name == "temperature" else "temperature"
                raise ValueError(f"{name} is not an argument of this model. Use {other}, which means the same to it.")
        labels = self._class_of_each(class_labels, batch_size)
        if isinstance(generator, (list, tuple)):
            if len(generator) != batch_size:
                raise ValueError(
                    f"generator must be one, or one for each of {batch_size} images, got {len(generator)}."
                )
            images = torch.cat([
                self.model.sample(1, labels=None if labels is None else labels[i : i + 1], generator=one, **options)
                for i, one in enumerate(generator)
            ])  # fmt: skip
        else:
            images = self.model.sample(batch_size, labels=labels, generator=generator, **options)
        found = self.image_processor.postprocess(images.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=found) if return_dict else (found,)

    def _class_of_each(self, labels: Any, count: int) -> list[Any] | None:
        """A class for each image, or None if the model is unconditional; the model checks them."""
        if labels is None:
            classes = self.model.config.num_labels
            return [index % classes for index in range(count)] if classes else None
        labels = labels.tolist() if hasattr(labels, "tolist") else labels
        return list(labels) if isinstance(labels, (list, tuple)) else [labels] * count

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Writes a repository like the one that this was loaded from: AutoModel and DiffusionPipeline load it.

        Args:
            save_directory: a folder, made if it is missing.
            kwargs: for the model's `save_pretrained`.
        """
        folder, model_class = Path(save_directory), type(self.model)
        self.model.save_pretrained(folder, **kwargs)
        code = Path(__file__).read_text(encoding="utf-8").partition(f"\n\n{CODE_OF_MODEL}    from")[0].rstrip()
        module = model_class.__module__.rpartition(".")[2]
        code += f"\n\n\n{CODE_OF_MODEL}    from .{module} import {model_class.__name__}  # noqa: F401\n"
        (folder / "pipeline.py").write_text(code, encoding="utf-8")
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / LOADER.name).write_text(LOADER.read_text(encoding="utf-8"), encoding="utf-8")
        index = {"_class_name": ["pipeline", type(self).__name__], "model": [LOADER.stem, "ModelAtRoot"]}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
