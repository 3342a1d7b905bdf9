"""The flags of a run, as dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal


# Config fields whose default is what the data has.
FROM_DATA = ("image_size", "num_channels", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def flag(default: Any, help: str, on_resume: str = "", in_recipe: bool = True, **metadata: Any) -> Any:
    """A dataclass field with the text that --help shows for it; `metadata` goes to argparse."""
    return field(default=default, metadata={"help": help, **metadata})


def _switch(default: bool | None, help: str) -> Any:
    """A flag that is on without a value: `--name`, `--name true`, `--name false`."""
    return flag(default, help, nargs="?", const=True)


@dataclass
class DataArguments:
    """Where examples come from."""

    _argument_group_name = "data"

    dataset_name: str | None = flag(
        None,
        "A dataset on the Hub, a local dataset folder, a folder of images, a text file, or a built-in that needs no "
        "download: digits (1,797 images of 8 x 8), python-docs (465,000 characters). Default: the built-in that fits.",
    )
    dataset_path: str | None = flag(
        None, "Local copy of dataset_name: a folder or file that is read in its place where it exists."
    )
    dataset_config_name: str | None = flag(None, "Configuration of the dataset, where it has several.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of a dataset on the Hub.")
    train_split: str = flag("train", "Split to learn from.")
    eval_split: str | None = flag(
        None, "Split to measure on. Default: test or validation if there is one, else a tenth held out of train_split."
    )
    image_column: str | None = flag(None, "Column with the images. Default: the one column of that type.")
    label_column: str | None = flag(None, "Column with class labels. Default: label, labels or fine_label.")
    text_column: str = flag("text", "Column with the text.")
    streaming: bool = flag(False, "Read the dataset while training instead of downloading or loading it first.")
    shuffle_buffer_size: int = flag(
        10_000, "Examples of a streamed dataset that each process and worker holds and shuffles at a time."
    )
    in_memory: bool | None = _switch(
        None,
        "Hold the whole dataset in memory. Default: if it needs less than 2 GB, which 500 MB of text do, at 4 bytes "
        "a token. Else images are decoded by workers, and text is tokenized once into a file that is mapped.",
    )
    dataloader_num_workers: int | None = flag(
        None,
        "Processes that read and decode when the dataset is not in memory. Default: one a core, at most 4; 0 for a "
        "stream, where their number decides the order of the examples and must stay the same on a resume.",
    )
    max_train_samples: int | None = flag(None, "Use only so many training examples.")
    max_eval_samples: int | None = flag(
        None, "Use only so many evaluation examples. Default: all, or 10,000 images or 1,000 texts of a stream."
    )

    def problems(self) -> list[str]:
        """Everything that is wrong with the values, in words; empty if they will do."""
        found = _out_of_range(self, "above 0", "shuffle_buffer_size", "max_train_samples", "max_eval_samples")
        found += _out_of_range(self, "at least 0", "dataloader_num_workers")
        if self.streaming and self.in_memory:
            found.append("--streaming and --in_memory exclude each other")
        return found


@dataclass
class RunArguments:
    """How long to train, on what, and what to leave behind."""

    _argument_group_name = "run"

    output_dir: str | None = flag(None, "Folder for the model, its card, results, samples and checkpoints. Required.")
    overwrite_output_dir: bool = flag(False, "Delete what an earlier run left in output_dir and start anew.")
    model_name_or_path: str | None = flag(None, "Start from the weights of this model, a folder or a Hub repository.")
    max_train_steps: int | None = flag(None, "Stop after so many optimizer steps.")
    num_train_epochs: float | None = flag(None, "Stop after so many passes over the training data.")
    max_train_seconds: float | None = flag(
        None,
        "Stop after so many seconds of training; the learning rate decays in time for it. 60 when no other length is "
        "given. With several lengths the first one reached counts.",
    )
    per_device_train_batch_size: int = flag(128, "Examples a process and a micro-step.")
    per_device_eval_batch_size: int = flag(256, "Examples a process at once in evaluation.")
    gradient_accumulation_steps: int = flag(1, "Micro-steps whose gradients are added before a step.")
    learning_rate: float = flag(1e-3, "Highest learning rate.")
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "warmup_stable_decay"
    ] = flag("linear", "Shape of the decay, a name of transformers.get_scheduler.")
    warmup_ratio: float = flag(0.02, "GlobalBatch of the run in which the learning rate rises from 0.")
    optimizer: Literal["adamw", "muon"] = flag(
        "adamw", "adamw, or muon for the matrices of hidden layers and adamw for all else."
    )
    adam_beta1: float = flag(0.9, "Decay of AdamW's first moment.")
    adam_beta2: float = flag(0.99, "Decay of AdamW's second moment.")
    weight_decay: float = flag(0.0, "Decoupled weight decay of matrices and kernels.")
    max_grad_norm: float = flag(0.0, "Longest gradient, longer ones are scaled down to it; 0 turns this off.")
    ema_decay: float = flag(0.0, "Decay of the moving average of the weights that is published; 0 turns it off.")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = flag(
        "auto", "auto means bf16 where the processor or GPU multiplies it natively, no elsewhere."
    )
    cpu_threads: int | None = flag(
        None, "Threads of each process on a CPU. Default: the cores of the machine, shared by its processes."
    )
    channels_last: bool = flag(True, "Lay image tensors out with channels last, the faster order for convolutions.")
    torch_compile: bool = flag(False, "Compile the model: costs 10 to 60 s once, pays in long runs.")
    gradient_checkpointing: bool = flag(False, "Recompute activations in the backward pass to save memory.")
    seed: int = flag(0, "All random numbers derive from it.")
    full_determinism: bool = flag(
        False, "Deterministic kernels on a GPU too, for resuming to the bit there; slower. A CPU has no others."
    )
    eval_steps: int | None = flag(None, "Evaluate every so many steps. Default: four times in the run.")
    logging_steps: int = flag(50, "Write a line of metrics every so many steps.")
    sample_steps: int | None = flag(None, "BatchRNG samples every so many steps. Default: with each evaluation.")
    checkpointing_steps: int = flag(500, "Write a checkpoint every so many steps; one is always written at the end.")
    checkpoints_total_limit: int | None = flag(2, "CheckpointUpload to keep, the newest ones.")
    resume_from_checkpoint: str | None = flag(
        None, "Checkpoint folder to go on from, or latest. Default: the latest in output_dir, if there is one."
    )
    on_nonfinite: Literal["stop", "skip"] = flag(
        "stop", "What to do with a step whose loss or gradient is not finite."
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "Trackers: tensorboard, wandb, trackio, all, none, ..."}
    )
    disable_tqdm: bool = flag(False, "No progress bar.")
    push_to_hub: bool = flag(False, "Publish the folder on the Hub when done.")
    hub_model_id: str | None = flag(None, "Repository to publish to. Default: the name of output_dir.")
    hub_private_repo: bool = flag(False, "Create the repository as private.")
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = flag(
        "end", "What is published when, as in transformers."
    )

    def problems(self) -> list[str]:
        """Everything that is wrong with the values, in words; empty if they will do."""
        found = []
        if not self.output_dir:
            found.append("--output_dir is required: the folder for the model and all that belongs to it")
        found += _out_of_range(
            self, "above 0", "max_train_steps", "num_train_epochs", "max_train_seconds", "per_device_train_batch_size",
            "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate", "eval_steps",
            "cpu_threads", "logging_steps", "sample_steps", "checkpointing_steps", "checkpoints_total_limit",
        )  # fmt: skip
        found += _out_of_range(self, "at least 0", "weight_decay", "max_grad_norm", "seed")
        found += _out_of_range(self, "in [0, 1)", "adam_beta1", "adam_beta2", "ema_decay", "warmup_ratio")
        if self.resume_from_checkpoint and self.overwrite_output_dir:
            found.append("--resume_from_checkpoint and --overwrite_output_dir exclude each other")
        return found


def _out_of_range(values: Any, allowed: str, *names: str) -> list[str]:
    """A sentence for each of the named values that is not in the allowed range, nor None."""
    tests = {"above 0": lambda x: x > 0, "at least 0": lambda x: x >= 0, "in [0, 1)": lambda x: 0 <= x < 1}
    given = {name: value for name in names if (value := getattr(values, name)) is not None}
    return [
        f"--{name} must be {allowed}, got {value}"
        for name, value in given.items()
        if not (math.isfinite(value) and tests[allowed](value))
    ]


@dataclass
class Arguments:
    """Everything a script was told.

    Attributes:
        run, data: the two dataclasses above.
        model: config fields that were given, by name; the others take the config's defaults or follow from the data.
        extra: the script's own dataclass, or None.
        command: the command line that repeats this run.
    """

    run: RunArguments
    data: DataArguments
    model: dict[str, Any]
    extra: Any
    command: str


def as_recipe(arguments: Arguments) -> dict[str, Any]:
    """The run as a flat mapping, what a recipe would hold to repeat it."""
    parts = [vars(arguments.run), vars(arguments.data), arguments.model]
    if arguments.extra is not None:
        parts.append(vars(arguments.extra))
    return {name: value for part in parts for name, value in part.items()}


FIXED = (
    "seed", "dataset_name", "dataset_config_name", "dataset_revision", "train_split", "image_column", "label_column",
    "text_column", "streaming", "shuffle_buffer_size", "max_train_samples", "optimizer",
)  # fmt: skip
FREE = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "max_train_steps", "num_train_epochs",
    "max_train_seconds", "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size",
    "eval_split", "max_eval_samples", "in_memory", "dataloader_num_workers", "eval_steps", "logging_steps",
    "sample_steps", "checkpointing_steps", "checkpoints_total_limit", "on_nonfinite", "report_to", "disable_tqdm",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "nll_samples", "quality_samples",
    "sample_length", "sample_temperature", "model_name_or_path",
}  # fmt: skip


def on_resume(arguments: Arguments) -> dict[str, str]:
    return {
        name: "refuse" if name in FIXED else "free" if name in FREE else "warn"
        for name in as_recipe(arguments)
        if name not in arguments.model
    }
