"""The flags of a run, as dataclasses. Each flag says itself what a change of it means on a resume."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


OnResume = Literal["refuse", "warn", "free"]

# Config fields whose default is what the data has.
FROM_DATA = ("image_size", "num_channels", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


class Meaning(NamedTuple):
    """What hfgen knows of a flag beyond its type, default and help.

    Attributes:
        on_resume: with another value, a checkpoint is of another run ("refuse"), is used with a warning ("warn"), or
            is used ("free"), because the flag changes no weights or cannot be compared.
        in_recipe: whether the flag says what is computed. If not, it says where or how a run is carried out, and
            neither a card's recipe nor the comparison with a finished run includes it.
        allowed: range of a number; None for any.
    """

    on_resume: OnResume
    in_recipe: bool
    allowed: Literal["above 0", "at least 0", "in [0, 1)"] | None


def flag(
    default: Any,
    help: str,
    *,
    on_resume: OnResume,
    in_recipe: bool = True,
    allowed: Literal["above 0", "at least 0", "in [0, 1)"] | None = None,
    **metadata: Any,
) -> Any:
    """Returns a dataclass field that becomes a flag.

    Args:
        default: its value without the flag; a list is copied.
        help: the text that --help shows.
        on_resume, in_recipe, allowed: see `Meaning`.
        metadata: for argparse.
    """
    metadata |= {"help": help, "meaning": Meaning(on_resume, in_recipe, allowed)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def switch(default: bool | None, help: str, **meaning: Any) -> Any:
    """Returns a field for a flag that may stand without a value: `--name`, `--name true`, `--name false`."""
    return flag(default, help, **meaning, nargs="?", const=True)


@dataclass
class DataArguments:
    """The examples."""

    _argument_group_name = "data"

    dataset_name: str | None = flag(
        None,
        "Name of a dataset on the Hub, a local dataset folder, a folder of images, a text file or a folder of them, "
        "or a built-in that needs no download: digits (1,797 images of 8 x 8 pixels), python-docs (465,000 "
        "characters). "
        "Default: the built-in that fits the model.",
        on_resume="refuse",
    )
    dataset_path: str | None = flag(
        None,
        "Local copy of dataset_name: a folder or file that is read instead, if it exists.",
        on_resume="free",
        in_recipe=False,
    )
    dataset_config_name: str | None = flag(
        None, "Configuration of the dataset, if it has several.", on_resume="refuse"
    )
    dataset_revision: str | None = flag(None, "Branch, tag or commit of a dataset on the Hub.", on_resume="refuse")
    train_split: str = flag("train", "Name of the split to train on.", on_resume="refuse")
    eval_split: str | None = flag(
        None,
        "Name of the split to evaluate on. Default: test or validation if there is one, otherwise a tenth held out of "
        "train_split.",
        on_resume="free",
    )
    image_column: str | None = flag(
        None, "Name of the column with images. Default: the only column of that type.", on_resume="refuse"
    )
    label_column: str | None = flag(
        None, "Name of the column with class labels. Default: label, labels or fine_label.", on_resume="refuse"
    )
    text_column: str = flag("text", "Name of the column with text.", on_resume="refuse")
    streaming: bool = flag(
        False, "Read the dataset while training instead of downloading or loading it first.", on_resume="refuse"
    )
    shuffle_buffer_size: int = flag(
        10_000,
        "Number of examples that each process and worker holds and shuffles at a time when streaming.",
        on_resume="refuse",
        allowed="above 0",
    )
    in_memory: bool | None = switch(
        None,
        "Hold the whole dataset in memory. Default: if it needs less than 2 GB, as 500 MB of text do at 4 bytes per "
        "token. Otherwise images are decoded by workers, and text is tokenized once into a memory-mapped file.",
        on_resume="free",
    )
    dataloader_num_workers: int | None = flag(
        None,
        "Number of processes that read and decode a dataset that is not in memory. Default: one per core, at most 4. "
        "When streaming, the default is 0: their number decides the order of the examples and must stay the same on a "
        "resume.",
        on_resume="free",  # checked for streams by checkpoint/resume.py
        allowed="at least 0",
    )
    max_train_samples: int | None = flag(
        None, "Maximum number of training examples to use.", on_resume="refuse", allowed="above 0"
    )
    max_eval_samples: int | None = flag(
        None,
        "Maximum number of evaluation examples to use. Default: all; when streaming, 10,000 images or 1,000 texts.",
        on_resume="free",
        allowed="above 0",
    )

    def problems(self) -> list[str]:
        """Returns everything that is wrong with the values beyond their ranges."""
        if self.streaming and self.in_memory:
            return ["--streaming and --in_memory exclude each other. Give one of them"]
        return []


@dataclass
class RunArguments:
    """Training length, hardware and outputs."""

    _argument_group_name = "run"

    output_dir: str = flag(
        "",
        "Folder for the model, its card, results, samples and checkpoints. Required.",
        on_resume="free",
        in_recipe=False,
    )
    overwrite_output_dir: bool = flag(
        False, "Delete what an earlier run left in output_dir and start over.", on_resume="free", in_recipe=False
    )
    model_name_or_path: str | None = flag(
        None, "Model whose weights to start from: a folder or a Hub repository.", on_resume="free"
    )
    max_train_steps: int | None = flag(None, "Maximum number of optimizer steps.", on_resume="free", allowed="above 0")
    num_train_epochs: float | None = flag(
        None, "Maximum number of passes over the training data.", on_resume="free", allowed="above 0"
    )
    max_train_seconds: float | None = flag(
        None,
        "Maximum number of seconds of training; the learning rate decays in time for the end. Default: 60 if no other "
        "length is given. With several lengths, the first one that is reached ends the run.",
        on_resume="free",
        allowed="above 0",
    )
    per_device_train_batch_size: int = flag(
        128, "Batch size per process and micro-batch.", on_resume="free", allowed="above 0"
    )
    per_device_eval_batch_size: int = flag(
        256, "Batch size per process in evaluation.", on_resume="free", allowed="above 0"
    )
    gradient_accumulation_steps: int = flag(
        1, "Number of micro-batches per optimizer step.", on_resume="free", allowed="above 0"
    )
    learning_rate: float = flag(1e-3, "Peak learning rate.", on_resume="warn", allowed="above 0")
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "warmup_stable_decay"
    ] = flag("linear", "Learning rate schedule, a name of transformers.get_scheduler.", on_resume="warn")
    warmup_ratio: float = flag(
        0.02, "Fraction of the run during which the learning rate rises from 0.", on_resume="warn", allowed="in [0, 1)"
    )
    optimizer: Literal["adamw", "muon"] = flag(
        "adamw", "adamw, or muon for the matrices of hidden layers and adamw for all else.", on_resume="refuse"
    )
    adam_beta1: float = flag(0.9, "Decay rate of AdamW's first moment.", on_resume="warn", allowed="in [0, 1)")
    adam_beta2: float = flag(0.99, "Decay rate of AdamW's second moment.", on_resume="warn", allowed="in [0, 1)")
    weight_decay: float = flag(
        0.0, "Decoupled weight decay of matrices and kernels.", on_resume="warn", allowed="at least 0"
    )
    max_grad_norm: float = flag(
        0.0, "Clip the gradient norm to this value; 0 disables clipping.", on_resume="warn", allowed="at least 0"
    )
    ema_decay: float = flag(
        0.0,
        "Decay rate of the exponential moving average of the weights, which is then published; 0 disables it.",
        on_resume="warn",  # on or off is refused by checkpoint/resume.py
        allowed="in [0, 1)",
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = flag(
        "auto",
        "Precision of forward and backward passes. auto is bf16 if the processor or GPU multiplies it natively, "
        "otherwise no.",
        on_resume="warn",
    )
    cpu_threads: int | None = flag(
        None,
        "Number of threads per process on a CPU. Default: the cores of the machine divided by its processes.",
        on_resume="warn",
        in_recipe=False,
        allowed="above 0",
    )
    channels_last: bool = flag(
        True, "Store images with channels last, the faster memory layout for convolutions.", on_resume="warn"
    )
    torch_compile: bool = flag(
        False, "Compile the model. Takes 10 to 60 s once and pays off in long runs.", on_resume="warn"
    )
    gradient_checkpointing: bool = flag(
        False, "Recompute activations in the backward pass to save memory.", on_resume="warn"
    )
    seed: int = flag(0, "Seed of all random numbers.", on_resume="refuse", allowed="at least 0")
    full_determinism: bool = flag(
        False,
        "Use deterministic kernels on a GPU too, so that a run resumes to the bit there; slower. On a CPU all kernels "
        "are deterministic.",
        on_resume="warn",
    )
    eval_steps: int | None = flag(
        None,
        "Number of steps between evaluations. Default: a quarter of the run.",
        on_resume="free",
        allowed="above 0",
    )
    logging_steps: int = flag(50, "Number of steps between lines of metrics.", on_resume="free", allowed="above 0")
    sample_steps: int | None = flag(
        None, "Number of steps between samples. Default: with each evaluation.", on_resume="free", allowed="above 0"
    )
    checkpointing_steps: int = flag(
        500,
        "Number of steps between checkpoints; one is always written at the end.",
        on_resume="free",
        allowed="above 0",
    )
    checkpoints_total_limit: int | None = flag(
        2, "Maximum number of checkpoints to keep, the newest ones.", on_resume="free", in_recipe=False,
        allowed="above 0",
    )  # fmt: skip
    resume_from_checkpoint: str | None = flag(
        None,
        "Checkpoint to resume from: a folder, a Hub repository, or latest. Default: the latest one in output_dir, if "
        "there is one.",
        on_resume="free",
        in_recipe=False,
    )
    on_nonfinite: Literal["stop", "skip"] = flag(
        "stop", "What to do with an update whose loss or gradient is not finite.", on_resume="free"
    )
    report_to: list[str] = flag(  # noqa: RUF009, as flag copies the list
        ["none"], "Trackers: tensorboard, wandb, trackio, all, none, ...", on_resume="free", in_recipe=False
    )
    disable_tqdm: bool = flag(False, "Disable the progress bar.", on_resume="free", in_recipe=False)
    push_to_hub: bool = flag(False, "Publish the model on the Hub.", on_resume="free", in_recipe=False)
    hub_model_id: str | None = flag(
        None, "Repository to publish to. Default: the name of output_dir.", on_resume="free", in_recipe=False
    )
    hub_private_repo: bool = flag(False, "Make the repository private.", on_resume="free", in_recipe=False)
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = flag(
        "end",
        "What to publish when, as in transformers: the finished model; the model with every checkpoint; the latest "
        "checkpoint too; all checkpoints.",
        on_resume="free",
        in_recipe=False,
    )

    def problems(self) -> list[str]:
        """Returns everything that is wrong with the values beyond their ranges."""
        found = []
        if not self.output_dir:
            found.append("--output_dir must be given: the folder for the model and all that belongs to it")
        if self.resume_from_checkpoint and self.overwrite_output_dir:
            found.append("--resume_from_checkpoint and --overwrite_output_dir exclude each other. Give one of them")
        return found


@dataclass
class Arguments:
    """A parsed command line.

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


def range_problems(part: Any) -> list[str]:
    """Returns a sentence for each value of a dataclass of flags that is outside of its allowed range."""
    tests = {"above 0": lambda x: x > 0, "at least 0": lambda x: x >= 0, "in [0, 1)": lambda x: 0 <= x < 1}
    given = {name: (rule.allowed, getattr(part, name)) for name, rule in _meanings(part).items() if rule.allowed}
    return [
        f"--{name} must be {allowed}, got {value}"
        for name, (allowed, value) in given.items()
        if value is not None and not (math.isfinite(value) and tests[allowed](value))
    ]


def on_resume(arguments: Arguments) -> dict[str, OnResume]:
    """Returns what another value means on a resume, by flag. Config fields are not flags of their own here."""
    return {name: rule.on_resume for part in _parts(arguments) for name, rule in _meanings(part).items()}


def as_recipe(arguments: Arguments) -> dict[str, Any]:
    """Returns all settings of the run as one flat mapping."""
    values = [vars(arguments.run), vars(arguments.data), arguments.model]
    values += [vars(arguments.extra)] if arguments.extra is not None else []
    return {name: value for part in values for name, value in part.items()}


def without_surroundings(settings: dict[str, Any], arguments: Arguments) -> dict[str, Any]:
    """Returns only those of a run's settings that say what is computed: what a recipe needs to repeat the run."""
    kept_out = {n for part in _parts(arguments) for n, rule in _meanings(part).items() if not rule.in_recipe}
    return {name: value for name, value in settings.items() if name not in kept_out}


def _parts(arguments: Arguments) -> list[Any]:
    return [part for part in (arguments.run, arguments.data, arguments.extra) if part is not None]


def _meanings(part: Any) -> dict[str, Meaning]:
    return {entry.name: entry.metadata["meaning"] for entry in dataclasses.fields(part)}
