"""What each training script adds to the flags: other defaults, and flags of its own.

This is kept apart from the scripts themselves so that wrong flags are reported before torch and transformers are
imported, which takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .flags import flag


@dataclass
class AutoencoderArguments:
    """The flags of train_autoencoder.py alone."""

    _argument_group_name = "autoencoder"

    normal_label: list[str] | None = flag(  # noqa: RUF009 - an immutable default
        None,
        "Classes that are normal, by name or number, or all for every image: the model is trained on normal images "
        "only, to find anomalies, and measured by how well it does. Unless they are given, --anomaly_dim is then 400, "
        "--noise_std 0.25 and --erase_prob 0.5. Default: if all training images are of one class called good, normal "
        "or ok, that one.",
        on_resume="refuse",
    )
    false_alarm_rate: float = flag(
        0.01,
        "Share of normal images that may be taken for anomalies: it sets the threshold, by normal images that are "
        "held out of the training.",
        on_resume="free",
        gt=0,
        lt=1,
    )


@dataclass
class VAEArguments:
    """The flags of train_vae.py and train_ladder_vae.py."""

    _argument_group_name = "vae"

    kl_warmup_ratio: float = flag(
        0.0,
        "Share of the run during which the weight of the KL term grows from 0 to --beta. Evaluations have weight 1.",
        on_resume="warn",
        ge=0,
        lt=1,
    )
    free_bits: float = flag(
        0.0,
        "Nats that each level of latents may carry for free in every image while training: a smaller KL counts as "
        "this much.",
        on_resume="warn",
        ge=0,
    )
    importance_samples: int = flag(
        1,
        "Train for the importance-weighted bound with this many samples per image, which is tighter; 1 is the "
        "evidence lower bound. --beta, --kl_warmup_ratio and --free_bits do not apply to it.",
        on_resume="warn",
        ge=1,
    )
    importance_start: float = flag(
        0.0,
        "Share of the run after which --importance_samples applies; before that, it is the evidence lower bound.",
        on_resume="warn",
        ge=0,
        lt=1,
    )

    nll_samples: int = flag(
        1000,
        "K of the importance-weighted bound IW-K on the negative log-likelihood that is estimated for the finished "
        "model, rounded up to a multiple of ten; 0 skips it.",
        on_resume="free",
        ge=0,
    )
    nll_seconds: float = flag(
        30.0,
        "Seconds that this estimate may take. If they are too few for K samples of every image, a random subset gets "
        "all of them, and the results have the standard error; 0 sets no limit.",
        on_resume="free",
        ge=0,
    )
    dynamic_binarization: bool = flag(
        False,
        "Binarize gray images at random: a pixel of value p becomes white with probability p. Training images are "
        "redrawn every time they are seen; the evaluation split is drawn once and is the same in all runs. "
        "Likelihoods are not comparable with those on a fixed binarization.",
        on_resume="refuse",
    )


@dataclass
class GANArguments:
    """The flags of train_gan.py alone."""

    _argument_group_name = "gan"

    preset: Literal["dcgan", "wgan-gp", "sngan", "r3gan"] | None = flag(
        None,
        "Settings of a well-known GAN, which recipe and flags override: dcgan, wgan-gp, sngan or r3gan.",
        on_resume="free",
    )
    discriminator_learning_rate: float | None = flag(
        None, "Learning rate of the discriminator. Default: --learning_rate.", on_resume="warn", gt=0
    )
    discriminator_steps: int = flag(
        1, "Number of updates of the discriminator per update of the generator.", on_resume="warn", ge=1
    )
    penalized_share: float = flag(
        0.25,
        "Share of each batch on which R1 + R2 is measured; a smaller one makes steps cheaper and the penalty noisier.",
        on_resume="warn",
        gt=0,
    )
    augmentation: Literal["adaptive", "always", "none"] = flag(
        "adaptive",
        "Move, scale, brighten and partly hide the images that the discriminator sees, real and generated ones, so "
        "that it cannot learn few images by heart: always, none, or, with adaptive, as often as evaluations show "
        "that it remembers its training images.",
        on_resume="warn",
    )
    mirror: bool = flag(
        False,
        "Show half of the real images mirrored, left to right. For objects and faces, not for digits and writing.",
        on_resume="warn",
    )
    quality_samples: int = flag(
        10_000,
        "Number of images to generate for the final comparison with real ones, and the largest number for those in "
        "the middle of the run; 0 skips both.",
        on_resume="free",
        ge=0,
    )
    stop_when_converged: bool = flag(
        False,
        "End the run when the quality of samples has stopped improving and the discriminator is near chance on "
        "held-out images, and publish the best state that was seen. There are then 20 evaluations unless --eval_steps "
        "is given, and the length of the run is the longest that it may take.",
        on_resume="free",
    )

    def problems(self) -> list[str]:
        """Returns a sentence for each value, or combination of them, that is not possible."""
        problems = []
        if self.penalized_share > 1:
            problems.append(f"--penalized_share must be at most 1, got {self.penalized_share}")
        if self.stop_when_converged and self.quality_samples < 100:
            problems.append(
                "--quality_samples must be at least 100 with --stop_when_converged, which watches the quality of "
                f"samples, got {self.quality_samples}. Leave one of them out"
            )
        return problems


@dataclass
class CodecArguments:
    """The flags of train_codec.py alone."""

    _argument_group_name = "codec"

    wrap_around: bool = flag(
        False,
        "Move training images by a random distance, and continue them at the other side. The seams teach a codec "
        "to code mosaics of small images.",
        on_resume="warn",
    )


@dataclass
class GPTArguments:
    """The flags of train_gpt.py alone."""

    _argument_group_name = "gpt"

    tokenizer_name: str | None = flag(
        None, "Tokenizer to use instead of one built from the characters of the text.", on_resume="warn"
    )
    train_bpe: int | None = flag(
        None,
        "Number of tokens of a byte-level BPE to build from the training text, instead of a tokenizer of characters. "
        "Losses per token do not compare with those of other tokenizers; bits per byte do.",
        on_resume="refuse",
        ge=258,
    )
    layout: Literal["hfgen", "native"] = flag(
        "hfgen",
        "Layout of the published model: hfgen's own, or native, that of the class of transformers that computes the "
        "same, which loads without trust_remote_code. Checkpoints have hfgen's layout in any case.",
        on_resume="free",
    )
    zero_init: bool = flag(
        False,
        "Start a new model with zeros in the output layer and in the last layer of attention and feed-forward layers: "
        "blocks start as the identity, and all tokens are equally likely. In short runs the loss falls sooner.",
        on_resume="refuse",
    )
    sample_length: int = flag(500, "Length of each sample in tokens.", on_resume="free", ge=1)
    sample_temperature: float = flag(
        0.8,
        "Temperature of the samples, and of generate() in the published model; 0 takes the likeliest token each time.",
        on_resume="free",
        ge=0,
    )


@dataclass(frozen=True)
class Script:
    """What is special about the command line of a training script.

    Attributes:
        family: of the architecture; the script is train_FAMILY.py, and the config is in modeling_FAMILY.py.
        description: first line of --help.
        defaults: of flags that all scripts have.
        extra: dataclass with the script's own flags, or None.
        presets: name -> settings that --preset stands for, by the names of their flags. With presets, extra has a flag
            named preset.
    """

    family: str
    description: str
    defaults: dict[str, Any] = field(default_factory=dict)
    extra: type | None = None
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)


# Networks, losses and optimizers of well-known GANs. The learning rate of the dcgan preset is the one of its paper;
# those of the others are for minutes of training in place of days.
GAN_PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2015, https://arxiv.org/abs/1511.06434
    "dcgan": {
        "architecture": "dcgan",
        "loss_type": "non_saturating",
        "optimizer": "adamw",
        "discriminator_norm": "batch",
        "latent_dim": 100,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.5,
        "adam_beta2": 0.999,
        "per_device_train_batch_size": 128,
        "ema_decay": 0.0,
    },
    # Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028
    "wgan-gp": {
        "architecture": "dcgan",
        "loss_type": "wasserstein",
        "optimizer": "adamw",
        "discriminator_norm": "none",
        "discriminator_steps": 3,
        "learning_rate": 2e-3,
        "adam_beta1": 0.0,
        "adam_beta2": 0.9,
    },
    # Miyato et al. 2018, https://arxiv.org/abs/1802.05957
    "sngan": {
        "architecture": "dcgan",
        "loss_type": "hinge",
        "optimizer": "adamw",
        "discriminator_norm": "spectral",
        "learning_rate": 1e-3,
        "adam_beta1": 0.0,
        "adam_beta2": 0.9,
    },
    # Huang et al. 2024, https://arxiv.org/abs/2501.05441
    "r3gan": {
        "architecture": "residual",
        "loss_type": "relativistic",
        "optimizer": "adamw",
        "generator_norm": "none",
        "learning_rate": 1e-2,
    },
}

SCRIPTS = {
    script.family: script
    for script in (
        Script(
            "autoencoder",
            "Trains a convolutional Auto-Encoder.",
            {"learning_rate": 6e-3, "optimizer": "muon", "ema_decay": 0.99},
            AutoencoderArguments,
        ),
        Script(
            "vae",
            "Trains a Variational Auto-Encoder.",
            {"learning_rate": 6e-3, "optimizer": "muon", "per_device_train_batch_size": 256},
            VAEArguments,
        ),
        Script(
            "ladder_vae",
            "Trains a Ladder VAE, with latents at several resolutions.",
            # A rare batch with a gradient of 10,000 times the usual one stays in Muon's momentum: three of three long
            # runs at 6e-3 diverged within 2,400 steps, and none did with the limit.
            {"learning_rate": 4e-3, "optimizer": "muon", "ema_decay": 0.995, "max_grad_norm_ratio": 3.0},
            VAEArguments,
        ),
        Script(
            "codec",
            "Trains an image codec for a range of rates.",
            # On CIFAR-10, 700 steps of Muon end at a loss of 1.59; 1,000 steps of AdamW at 2e-3 ended at 1.85.
            {
                "learning_rate": 5e-3,
                "optimizer": "muon",
                "max_grad_norm": 1.0,
                "per_device_train_batch_size": 32,
            },
            CodecArguments,
        ),
        Script(
            "gan",
            "Trains a Generative Adversarial Network.",
            {
                "learning_rate": 1e-2,
                "optimizer": "muon",
                # Half of what Muon has elsewhere, because the other network moves the target: 0.95 destroys samples of
                # MNIST. For AdamW none, as in BigGAN and StyleGAN.
                "muon_momentum": 0.5,
                "adam_beta1": 0.0,
                "adam_beta2": 0.99,
                "per_device_train_batch_size": 64,
                "ema_decay": 0.999,
            },
            GANArguments,
            GAN_PRESETS,
        ),
        Script(
            "gpt",
            "Trains a GPT on text.",
            {
                "learning_rate": 5e-3,
                "optimizer": "muon",
                "adam_beta2": 0.95,
                "per_device_train_batch_size": 64,
                "per_device_eval_batch_size": 128,
                "max_grad_norm": 1.0,
                "logging_steps": 20,
                "checkpointing_steps": 200,
            },
            GPTArguments,
        ),
    )
}
