"""A latent diffusion model (Rombach et al. 2021, https://arxiv.org/abs/2112.10752) over the spatial latents of a VAE.

    pipeline = DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)
    images = pipeline(batch_size=16, generator=torch.Generator().manual_seed(0)).images

A UNet turns noise into latents, step by step, by DDIM (Song et al. 2020, https://arxiv.org/abs/2010.02502); the VAE
decodes them. This file needs only torch, transformers and diffusers: `save_pretrained` puts it into the repository as
pipeline.py, and diffusers loads it from there.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel


CODE = Path("pipeline.py")  # this file, in a repository


class LatentDDIMPipeline(DiffusionPipeline):
    """Draws images: noise -> UNet and scheduler -> latents -> VAE.

    hfgen's models have pixels in [0, 1], those of diffusers in [-1, 1]. The image processor's `do_normalize=False` is
    diffusers' own switch between the two.

    Args:
        vae: decodes z = latents / `config.scaling_factor` + `config.shift_factor` to images in [0, 1].
        unet: over latents (batch, vae.config.latent_channels, height, width) with mean 0 and standard deviation 1. A
            conditional model has class embeddings.
        scheduler: with the noise schedule and the prediction type that the UNet was trained with.

    Raises:
        ValueError: the latents of the VAE are vectors, or the UNet has another number of channels.
    """

    model_cpu_offload_seq = "unet->vae"

    def __init__(self, vae: PreTrainedModel, unet: UNet2DModel, scheduler: DDIMScheduler):
        super().__init__()
        shape = vae.config.latent_shape
        if len(shape) != 3:
            raise ValueError(f"vae must have spatial latents, got vectors of {shape[0]}. Train it with spatial ones.")
        if (unet.config.in_channels, unet.config.out_channels) != (shape[0], shape[0]):
            raise ValueError(
                f"unet must have {shape[0]} input and output channels, as the latents of the VAE do, got "
                f"{unet.config.in_channels} and {unet.config.out_channels}. Use the UNet of this VAE."
            )
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=scale, do_normalize=False)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        class_labels: int | list[int] | torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws a batch of images.

        Args:
            batch_size: number of images.
            generator: source of all random numbers, or a list with one generator per image.
            num_inference_steps: evaluations of the UNet.
            eta: noise that each step adds: 0 is DDIM, where the first noise determines the image, and 1 is DDPM.
            class_labels: classes of a conditional model: one for all images, or (batch_size,). Spread evenly over the
                classes if None.
            output_type: "pil"; "np", arrays (batch, height, width, channels) in [0, 1]; or "pt", tensors (batch,
                channels, height, width) in [0, 1].
            return_dict: False returns a tuple of the images alone.

        Raises:
            ValueError: class_labels do not fit the UNet or the batch.
        """
        device, config = self._execution_device, self.vae.config
        labels = self._class_labels(class_labels, batch_size)
        latents = randn_tensor((batch_size, *config.latent_shape), generator, device, self.unet.dtype)
        latents = latents * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            prediction = self.unet(self.scheduler.scale_model_input(latents, timestep), timestep, labels).sample
            latents = self.scheduler.step(prediction, timestep, latents, eta=eta, generator=generator).prev_sample
        latents = latents / config.scaling_factor + config.shift_factor
        # A VAE that is itself conditional knows the same classes.
        vae_labels = labels if config.num_labels else None
        images = self.vae.decode(latents, labels=vae_labels, return_dict=False)[0]
        found = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=found) if return_dict else (found,)

    def _class_labels(self, class_labels: Any, batch_size: int) -> torch.Tensor | None:
        """int64 (batch_size,), or None if the UNet is unconditional."""
        classes = self.unet.config.num_class_embeds
        if classes is None:
            if class_labels is not None:
                raise ValueError(f"class_labels must be None, got {class_labels}. This model is unconditional.")
            return None
        labels = torch.arange(batch_size) % classes if class_labels is None else torch.as_tensor(class_labels)
        labels = labels.to(self._execution_device, torch.long)
        labels = labels.expand(batch_size) if labels.ndim == 0 else labels
        if tuple(labels.shape) != (batch_size,) or bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(
                f"class_labels must be one class, or one for each of {batch_size} images, from 0 to {classes - 1}, "
                f"got {labels.tolist()}. Choose other classes."
            )
        return labels

    def to_json_file(self, json_file_path: Any) -> None:
        """Writes model_index.json and, beside it, this file. `save_pretrained` calls it, before anything is pushed.

        diffusers itself would name the modules from which the classes were imported here, which do not exist
        elsewhere, and would leave the pipeline's code out.
        """
        index, path, vae_class = json.loads(self.to_json_string()), Path(json_file_path), type(self.vae)
        index["_class_name"] = [CODE.stem, type(self).__name__]
        index.pop("_name_or_path", None)  # where this one was loaded from
        index["vae"] = [vae_class.__module__.rpartition(".")[2], vae_class.__name__]
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        path.with_name(CODE.name).write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
