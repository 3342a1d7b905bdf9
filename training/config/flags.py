"""The flags of a run, as dataclasses. A flag says itself which values it takes and what it means on a resume."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias


OnResume: TypeAlias = Literal["refuse", "warn", "free"]

# Flags that say something of one dataset, and nothing of another one.
OF_ONE_DATASET = ("dataset_path", "dataset_sha256", "dataset_config_name", "dataset_revision")
# Config fields whose default is what the data has.
FROM_DATA = ("image_size", "num_channels", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
# Config fields that a run measures on its finished model: neither flags nor settings.
MEASURED = ("scaling_factor", "shift_factor", "anomaly_threshold", "anomaly_map_threshold")


@dataclass(frozen=True)
class Meaning:
    """What a flag declares beside its default and its help: the arguments of [`flag`]."""

    on_resume: OnResume
    in_recipe: bool
    gt: float | None
    ge: float | None
    lt: float | None
    before: Any


def flag(
    default: Any,
    help: str,
    *,
    on_resume: OnResume,
    in_recipe: bool = True,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    before: Any = None,
    **metadata: Any,
) -> Any:
    """A dataclass field that is a flag.

    Args:
        default: None for a flag that follows from others or is off.
        help: for --help, which adds the default unless it is None or False.
        on_resume: what a changed value means for a run that resumes: "refuse", it is another run; "warn", the run
            continues, and the change is logged; "free", nothing that a step computes depends on it.
        in_recipe: False for what says where or how a run was done, not what it computed. Cards leave it out, and a
            finished run stays finished if it changes.
        gt, ge, lt: the value must be greater than, at least, or less than this.
        before: what runs did before the flag existed; None if that is the same as turning it off.
        metadata: further arguments of argparse's add_argument.
    """
    extras = {"help": help, "meaning": Meaning(on_resume, in_recipe, gt, ge, lt, before), **metadata}
    if isinstance(default, tuple):  # of a list, which must not be shared
        return field(default_factory=lambda: list(default), metadata=extras)
    return field(default=default, metadata=extras)


def switch(default: bool | None, help: str, *, on_resume: OnResume, in_recipe: bool = True) -> Any:
    """A flag that is true without a value, and may be None: `--name`, `--name true`, `--name false`."""
    return flag(default, help, on_resume=on_resume, in_recipe=in_recipe, nargs="?", const=True)


# Laid out as tables by hand.
# fmt: off


@dataclass
class DataArguments:
    """The dataset, and how it is read."""

    _argument_group_name = "data"

    dataset_name: str | None = flag(
        None, "Dataset to train on: the name of a dataset on the Hub, a folder of images, texts or tables, one such "
        "file or its URL (.txt, .jsonl, .csv, .parquet, .zip and others), or a built-in dataset: digits (1,797 images "
        "of 8 x 8 pixels) and python-docs (465,000 characters), which need no download, or binarized-mnist. Default: "
        "digits or python-docs, whichever suits the model.", on_resume="refuse")
    dataset_path: str | None = flag(
        None, "Local copy of --dataset_name, a folder or a file. It is read instead if it exists.",
        on_resume="warn", in_recipe=False)
    dataset_sha256: str | None = flag(
        None, "SHA-256 of the file that --dataset_name names, by its URL or path. Another file is refused.",
        on_resume="refuse")
    dataset_mirror: str | None = flag(
        None, "Server to download files from in place of the original one: https://host/path is read from "
        "MIRROR/host/path.", on_resume="free", in_recipe=False)
    dataset_config_name: str | None = flag(
        None, "Configuration name of the dataset, if it has several.", on_resume="refuse")
    dataset_revision: str | None = flag(
        None, "Branch, tag or commit of a dataset on the Hub. Default: its main branch.", on_resume="refuse")
    train_split: str = flag(
        "train", "Name of the training split, or a slice of one, such as train[:5000].", on_resume="refuse")
    eval_split: str | None = flag(
        None, "Name of the evaluation split, or a slice of one. Default: test or validation if the dataset has one, "
        "otherwise a tenth of --train_split is held out.", on_resume="free")
    image_column: str | None = flag(
        None, "Name of the column that contains the images. Default: the only column of images.", on_resume="refuse")
    label_column: str | None = flag(
        None, "Name of the column that contains the class labels, in any form. Default: label, labels or fine_label.",
        on_resume="refuse")
    text_column: str = flag("text", "Name of the column that contains the text.", on_resume="refuse")
    max_train_samples: int | None = flag(
        None, "Maximum number of training examples to use. Default: all.", on_resume="refuse", ge=1)
    max_eval_samples: int | None = flag(
        None, "Maximum number of evaluation examples to use. Default: all; of a stream, 10,000 images or 1,000 texts.",
        on_resume="free", ge=1)
    streaming: bool = flag(
        False, "Stream the dataset during training instead of downloading or loading it first.", on_resume="refuse")
    shuffle_buffer_size: int = flag(
        10_000, "Number of streamed examples that each process and worker holds in memory to shuffle them.",
        on_resume="refuse", ge=1)
    in_memory: bool | None = switch(
        None, "Whether to hold the whole dataset in memory. Otherwise workers decode the images, and text is "
        "tokenized once into a file that is mapped into memory. Default: true for a dataset that needs less than 2 GB "
        "(500 MB of text, which takes 4 bytes per token).", on_resume="free")
    # What a changed number means for a stream is checked where the stream is resumed.
    dataloader_num_workers: int | None = flag(
        None, "Number of worker processes that read and decode data that is not in memory. Default: one per CPU core, "
        "at most 4; for a stream 0. The order of a stream depends on this number, so it must not change when the run "
        "resumes.", on_resume="free", ge=0)

    def problems(self) -> list[str]:
        """Returns a sentence for each combination of values that is not possible."""
        found = []
        if self.streaming and self.in_memory:
            found.append("--in_memory must be false with --streaming, got true. Leave one of them out")
        if self.dataset_sha256 is not None and not re.fullmatch(r"[0-9A-Fa-f]{64}", self.dataset_sha256):
            found.append(f"--dataset_sha256 must be 64 hexadecimal digits, got {self.dataset_sha256!r}")
        return found

    @property
    def version(self) -> str | None:
        """What pins the dataset: its revision on the Hub, or the checksum of its file."""
        return self.dataset_revision or (f"sha256:{self.dataset_sha256.lower()}" if self.dataset_sha256 else None)


@dataclass
class RunArguments:
    """The training itself: outputs, length, optimization, hardware, and what is reported when."""

    _argument_group_name = "training"

    # Where it starts and ends
    output_dir: str = flag(
        "", "Folder for the model, its card, results, samples and checkpoints. Required.",
        on_resume="free", in_recipe=False)
    overwrite_output_dir: bool = flag(
        False, "Delete what an earlier run left in --output_dir, and start over.", on_resume="free", in_recipe=False)
    resume_from_checkpoint: str | None = flag(
        None, "Checkpoint to resume from: a folder, OWNER/NAME[@REVISION] on the Hub, or latest. Default: the latest "
        "one in --output_dir, if there is one.", on_resume="free", in_recipe=False)
    model_name_or_path: str | None = flag(
        None, "Model whose weights the training starts from: a folder or a repository on the Hub.", on_resume="free")
    seed: int = flag(0, "Seed of all random numbers.", on_resume="refuse", ge=0)

    # Length
    max_train_steps: int | None = flag(None, "Maximum number of optimizer steps.", on_resume="free", ge=1)
    num_train_epochs: float | None = flag(
        None, "Maximum number of passes over the training data.", on_resume="free", gt=0)
    max_train_seconds: float | None = flag(
        None, "Maximum training time in seconds; the learning rate schedule follows the clock. Default: 60 if no "
        "other length is given. If several are given, the one reached first ends the training.",
        on_resume="free", gt=0)

    # Batches. The global batch size must not change on a resume; it is checked by itself.
    per_device_train_batch_size: int = flag(
        128, "Training batch size per process and micro-batch.", on_resume="free", ge=1)
    per_device_eval_batch_size: int = flag(256, "Evaluation batch size per process.", on_resume="free", ge=1)
    gradient_accumulation_steps: int = flag(
        1, "Number of micro-batches whose gradients are accumulated per optimizer step.", on_resume="free", ge=1)

    # Optimization
    learning_rate: float = flag(1e-3, "Peak learning rate.", on_resume="warn", gt=0)
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "warmup_stable_decay"
    ] = flag("linear", "Learning rate schedule, by its name in transformers.get_scheduler.", on_resume="warn")
    warmup_ratio: float = flag(
        0.02, "Fraction of the training over which the learning rate rises from 0.", on_resume="warn", ge=0, lt=1)
    optimizer: Literal["adamw", "muon"] = flag(
        "adamw", "Optimizer: adamw, or muon for the weight matrices of hidden layers with adamw for everything else.",
        on_resume="refuse")
    muon_momentum: float = flag(
        0.95, "Momentum of Muon: decay rate of its average of past gradients.", on_resume="warn", ge=0, lt=1,
        before=0.95)
    adam_beta1: float = flag(0.9, "Decay rate of AdamW's first moment estimate.", on_resume="warn", ge=0, lt=1)
    adam_beta2: float = flag(0.99, "Decay rate of AdamW's second moment estimate.", on_resume="warn", ge=0, lt=1)
    weight_decay: float = flag(
        0.0, "Decoupled weight decay, applied to weight matrices and convolution kernels.", on_resume="warn", ge=0)
    max_grad_norm: float = flag(
        0.0, "Clip the gradient norm to this value; 0 disables clipping.", on_resume="warn", ge=0)
    max_grad_norm_ratio: float = flag(
        0.0, "Clip the gradient norm to this multiple of its median over the last 100 updates, which bounds rare "
        "batches, whatever the scale of the loss is; 0 disables it.", on_resume="warn", ge=0)
    ema_decay: float = flag(
        0.0, "Decay rate of the exponential moving average of the weights, which is published in their place; 0 "
        "disables it.", on_resume="warn", ge=0, lt=1)
    on_nonfinite: Literal["stop", "skip"] = flag(
        "stop", "What to do if a loss or gradient is not finite: stop the training, or skip the step.",
        on_resume="free")

    # Hardware
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = flag(
        "auto", "Mixed precision; auto is what the launcher was asked for, or else bf16 if that is faster here, "
        "otherwise no.", on_resume="warn")
    cpu_threads: int | None = flag(
        None, "Number of CPU threads per process. Default: the CPU cores of the machine divided by its processes, and "
        "fewer while other programs use them if the length of the run is a time.",
        on_resume="warn", in_recipe=False, ge=1)
    attn_implementation: Literal["auto", "sdpa", "eager", "flex_attention"] = flag(
        "auto", "Attention kernel; auto selects the faster one of sdpa and eager for the model's size.",
        on_resume="warn")
    channels_last: bool | None = switch(
        None, "Whether to store images in the channels-last memory format. Default: true, unless that is slower here.",
        on_resume="warn")
    torch_compile: bool = flag(
        False, "Compile the model with torch.compile. It takes 10 to 60 seconds at the start and pays off in long "
        "runs.", on_resume="warn")
    gradient_checkpointing: bool = flag(
        False, "Recompute activations in the backward pass to save memory, at the cost of speed.", on_resume="warn")
    full_determinism: bool = flag(
        False, "Use deterministic GPU kernels, which makes a resumed run bitwise identical, at the cost of speed. CPU "
        "kernels always are.", on_resume="warn")

    # What is measured, logged and saved
    eval_steps: int | None = flag(
        None, "Number of steps between evaluations. Default: a quarter of the training.", on_resume="free", ge=1)
    sample_steps: int | None = flag(
        None, "Number of steps between samples. Default: samples are drawn with each evaluation.",
        on_resume="free", ge=1)
    keep_best: bool = flag(
        False, "Publish the state of the best evaluation instead of the last one, for runs that would overfit. There "
        "are then 20 evaluations unless --eval_steps is given, fewer if they would take more than a twentieth of the "
        "time.", on_resume="free")
    logging_steps: int = flag(50, "Number of steps between logged training metrics.", on_resume="free", ge=1)
    checkpointing_steps: int = flag(
        500, "Number of steps between checkpoints. One is always saved at the end.", on_resume="free", ge=1)
    checkpoints_total_limit: int | None = flag(
        2, "Maximum number of checkpoints to keep; the oldest are deleted.", on_resume="free", in_recipe=False, ge=1)
    report_to: list[str] = flag(  # noqa: RUF009 - a list is made for each instance
        ("none",), "Experiment trackers: tensorboard, wandb, trackio or any other that accelerate supports; all for "
        "every installed one, or none.", on_resume="free", in_recipe=False)
    disable_tqdm: bool = flag(False, "Hide the progress bar.", on_resume="free", in_recipe=False)

    # The Hub
    push_to_hub: bool = flag(
        False, "Push --output_dir to the Hub when the training ends, or earlier; see --hub_strategy.",
        on_resume="free", in_recipe=False)
    hub_model_id: str | None = flag(
        None, "Repository to push to, OWNER/NAME or NAME. Default: the name of --output_dir.",
        on_resume="free", in_recipe=False)
    hub_private_repo: bool = flag(False, "Make the repository private.", on_resume="free", in_recipe=False)
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = flag(
        "end", "What to push when: end, the model when the training ends; every_save, the model with every checkpoint "
        "too; checkpoint, also the latest checkpoint, as last-checkpoint; all_checkpoints, also every checkpoint.",
        on_resume="free", in_recipe=False)

    def problems(self) -> list[str]:
        """Returns a sentence for each combination of values that is not possible, and for a missing output_dir."""
        found = []
        if not self.output_dir:
            found.append("--output_dir is required: the folder for the model, its results and its checkpoints")
        if self.resume_from_checkpoint and self.overwrite_output_dir:
            found.append("--resume_from_checkpoint must not be given with --overwrite_output_dir. Leave one out")
        return found


# fmt: on


def range_problems(values: Any) -> list[str]:
    """Returns a sentence for each flag of a dataclass whose value is out of the range that the flag declares."""
    found = []
    for name, meaning in _meanings(values).items():
        limits = ((meaning.gt, "greater than {:g}"), (meaning.ge, "at least {:g}"), (meaning.lt, "less than {:g}"))
        value, words = getattr(values, name), [word.format(limit) for limit, word in limits if limit is not None]
        if not words or value is None:
            continue
        above = (meaning.gt is None or value > meaning.gt) and (meaning.ge is None or value >= meaning.ge)
        if not (math.isfinite(value) and above and (meaning.lt is None or value < meaning.lt)):
            found.append(f"--{name} must be {' and '.join(words)}, got {value}")
    return found


@dataclass
class Arguments:
    """The parsed command line of a script.

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
    """Returns all settings of a run by the names of their flags: a recipe that repeats it."""
    settings: dict[str, Any] = {}
    for part in _parts(arguments):
        settings |= vars(part)
    return settings | arguments.model


def recipe_of(arguments: Arguments) -> dict[str, Any]:
    """Returns the settings that decide what a run computes: those that cards show, and that make it the same run."""
    left_out = {name for name, meaning in _all_meanings(arguments).items() if not meaning.in_recipe}
    return {name: value for name, value in as_recipe(arguments).items() if name not in left_out}


def on_resume(arguments: Arguments) -> dict[str, OnResume]:
    """Returns what each flag means on a resume, by name. Fields of the model's config are not among them."""
    return {name: meaning.on_resume for name, meaning in _all_meanings(arguments).items()}


def before_they_existed(arguments: Arguments) -> dict[str, Any]:
    """Returns what runs did before a flag existed, for each flag that declares it."""
    meanings = _all_meanings(arguments).items()
    return {name: meaning.before for name, meaning in meanings if meaning.before is not None}


def _all_meanings(arguments: Arguments) -> dict[str, Meaning]:
    return {name: meaning for part in _parts(arguments) for name, meaning in _meanings(part).items()}


def _parts(arguments: Arguments) -> list[Any]:
    return [arguments.run, arguments.data, *([] if arguments.extra is None else [arguments.extra])]


def _meanings(values: Any) -> dict[str, Meaning]:
    """Returns what each field of a dataclass declares. KeyError for a field that is not made by [`flag`]."""
    return {entry.name: entry.metadata["meaning"] for entry in fields(values)}
