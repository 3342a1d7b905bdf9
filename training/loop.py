"""The only training loop.

An entry point describes what is its own in an [`Objective`]: the model, the phases of a step, how to measure and how to
draw samples. Everything else is here: devices, precision and processes (accelerate), accumulation, the learning rate,
logging, evaluation, checkpoints, and the folder that a run leaves.

To resume, run the same command again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from training import checkpoint as checkpoints
from training.arguments import Arguments, as_recipe
from training.data import Batch, Feed, Share
from training.optim import MovingAverage, build_optimizer, learning_rate_schedule
from training.randomness import Draw, derive_seed
from training.report import describe_machine, plot_losses, save_staged, write_results


logger = logging.getLogger(__name__)


class NonFiniteError(ValueError):
    """A loss or gradient was not finite; the message names the step, the phase and the modules."""


@dataclass
class Phase:
    """One optimizer's part of a step: the GAN has two, the other models one.

    Attributes:
        name: unique within the objective.
        loss: module that is called with (batch, draw) and returns the loss and the values to log. Its parameters are
            the ones that are optimized; networks that only take part are not registered in it.
        learning_rate: None for the run's.
        repeats: how often the phase is run in a step, on the same examples with fresh random numbers.
    """

    name: str
    loss: nn.Module
    learning_rate: float | None = None
    repeats: int = 1


@dataclass
class Objective:
    """What an entry point adds to the loop.

    Attributes:
        model: what is published.
        phases: run in order in every step.
        feed: training examples.
        eval_batches: (batch size, device) -> every evaluation example once.
        evaluate: (model, batch, draw, is_final) -> metric name -> one value an item; the loop averages over all items
            of all processes.
        summarize: averages -> all metrics, with those that derive from averages.
        headline: the metric that the progress bar and the plot show.
        dataset: what results.json says of the data: name, revision, split.
        draw_samples: (model, path without suffix) -> writes one file of samples.
        final_metrics: model -> metrics that need all samples at once, at the end, in the main process.
        save_extras: (folder) -> writes image processor or tokenizer beside the model.
        averaged: prefixes of the weights whose moving average is published.
    """

    model: PreTrainedModel
    phases: list[Phase]
    feed: Feed
    eval_batches: Callable[[int, torch.device], Iterator[Batch]]
    evaluate: Callable[[PreTrainedModel, Batch, Draw, bool], dict[str, Tensor]]
    summarize: Callable[[dict[str, float]], dict[str, float]]
    headline: str
    dataset: dict[str, Any]
    draw_samples: Callable[[PreTrainedModel, Path], None]
    save_extras: Callable[[Path], None]
    final_metrics: Callable[[PreTrainedModel], dict[str, float]] | None = None
    averaged: tuple[str, ...] = ("",)


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    compute_seconds: float = 0.0
    skipped_steps: int = 0
    log_position: int = 0


@dataclass
class Limits:
    """The lengths of a run; the first one that is reached ends it."""

    max_steps: int | None
    max_seconds: float | None

    def share(self, progress: Progress, seconds: float) -> float:
        """Progress in [0, 1]."""
        shares = [0.0]
        if self.max_steps is not None:
            shares.append(progress.step / self.max_steps)
        if self.max_seconds is not None:
            shares.append(seconds / self.max_seconds)
        return min(1.0, max(shares))


def train(make_objective: Callable[[Arguments], Objective], arguments: Arguments) -> None:
    """Runs a training from the first step, or from the last checkpoint, to the published folder.

    Args:
        make_objective: builds model and data; called once in each process, after the output folder was found usable and
            before anything is written.
        arguments: what the command line said.

    Raises:
        ValueError: the arguments, the data or a checkpoint will not do; nothing was written.
        NonFiniteError: a loss or gradient was not finite; the checkpoints before it are whole.
    """
    run = arguments.run
    output_dir = Path(run.output_dir or "")

    # Validate
    if is_finished(output_dir, arguments):
        print(f"{output_dir} holds this finished run. Give another --output_dir, a longer run, or --overwrite_output_dir.")
        return
    check_output_dir(output_dir, run.overwrite_output_dir)

    # Build
    torch.manual_seed(derive_seed(run.seed, "initial weights"))
    accelerator = build_accelerator(arguments)
    device = accelerator.device
    objective = make_objective(arguments)
    model = objective.model
    run_to_resume = None if run.overwrite_output_dir else find_checkpoint(output_dir, run.resume_from_checkpoint)
    if run_to_resume is not None:
        check_same_run(run_to_resume, objective, arguments)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        prepare_output_dir(output_dir, run.overwrite_output_dir)
    if run.channels_last and model.main_input_name != "input_ids":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.to(device).train()
    average = MovingAverage(model, run.ema_decay, objective.averaged) if run.ema_decay else None
    if run.torch_compile:
        for phase in objective.phases:
            for network in phase.loss.children():
                network.compile()
    trainers = [PhaseTrainer(phase, accelerator, arguments) for phase in objective.phases]
    share = Share(run.per_device_train_batch_size, run.gradient_accumulation_steps, accelerator.process_index,
                  accelerator.num_processes)  # fmt: skip
    limits = find_limits(arguments, objective.feed, share)
    schedule = learning_rate_schedule(run.lr_scheduler_type, run.warmup_ratio)
    start_trackers(accelerator, arguments)

    # Load
    progress = Progress()
    if run_to_resume is not None:
        progress = restore(run_to_resume, model, average, trainers)
        logger.info("Resuming from %s", run_to_resume.path)
    log = MetricsLog(output_dir / "metrics.jsonl", progress.log_position, accelerator)
    reporter = Reporter(objective, accelerator, arguments, log, average)

    def save_checkpoint() -> None:
        progress.log_position = log.position()
        if accelerator.is_main_process:
            state = {"progress": vars(progress), "arguments": as_recipe(arguments), "config": model.config.to_dict(),
                     "examples_a_step": share.total}  # fmt: skip
            tensors = training_tensors(model, average, trainers)
            checkpoints.save(output_dir / "checkpoints", progress.step, state, tensors, run.checkpoints_total_limit)
        accelerator.wait_for_everyone()

    # Train
    feed = objective.feed.batches(progress.step, share, device)
    saved_step = progress.step if run_to_resume is not None else -1
    logged: dict[str, Tensor] = {}
    logged_steps = 0
    clock = Clock(progress.seconds)
    fraction = limits.share(progress, clock.seconds)
    eval_steps = run.eval_steps or (max(1, limits.max_steps // 4) if limits.max_steps else None)
    next_eval = 0.25  # of a run whose length is given in seconds
    with StopRequest() as stop, reporter.progress_bar() as bar:
        while fraction < 1 and not stop.requested:
            # One step: every phase on the same examples
            torch.manual_seed(derive_seed(run.seed, "step", progress.step, accelerator.process_index))
            micro_batches = [next(feed) for _ in range(run.gradient_accumulation_steps)]
            learning_rate = run.learning_rate * schedule(fraction)
            started = time.perf_counter()
            for trainer in trainers:
                values = trainer.step(micro_batches, share, progress, schedule(fraction), run.on_nonfinite)
                for name, value in values.items():
                    logged[name] = logged[name] + value if name in logged else value
            progress.step += 1
            logged_steps += 1
            if average is not None:
                average.update(progress.step)
            progress.compute_seconds += time.perf_counter() - started
            fraction, interrupted = synchronize(limits, progress, clock, stop, accelerator)
            is_over = fraction >= 1 or interrupted

            # Status
            if progress.step % run.logging_steps == 0 or is_over:
                means = mean_over_processes(logged, logged_steps, accelerator)
                logged, logged_steps = {}, 0
                progress.seconds = clock.seconds
                rate = share.total * (progress.step - clock.first_step(progress.step)) / clock.since_start()
                log.write({"step": progress.step, "seconds": round(clock.seconds, 3), **means,
                           "learning_rate": learning_rate, "examples_per_second": round(rate, 1)})  # fmt: skip
                reporter.show(bar, progress, fraction, means, clock)

            # Evaluation and samples, off the clock
            due_by_time = eval_steps is None and fraction >= next_eval and not is_over
            due_by_step = eval_steps is not None and progress.step % eval_steps == 0 and not is_over
            if due_by_step or due_by_time:
                next_eval += 0.25
                with clock.paused():
                    reporter.evaluate(progress.step)
            samples_due = run.sample_steps and progress.step % run.sample_steps == 0
            if (samples_due if run.sample_steps else due_by_step or due_by_time) and not is_over:
                with clock.paused():
                    reporter.draw_samples(progress.step)

            # Checkpoint
            if progress.step % run.checkpointing_steps == 0 or is_over:
                progress.seconds = clock.seconds
                with clock.paused():
                    save_checkpoint()
                saved_step = progress.step
            if interrupted:
                break

    # Finish
    if fraction < 1:
        if saved_step != progress.step:
            save_checkpoint()
        if accelerator.is_main_process:
            print(f"\nStopped after step {progress.step}. To go on:\n\n    {arguments.command}\n")
    else:
        finish(reporter, progress, share, clock)
    close(accelerator)


class PhaseTrainer:
    """A phase with its optimizer, prepared for the devices and processes of the run."""

    def __init__(self, phase: Phase, accelerator: Accelerator, arguments: Arguments):
        self.phase, self.accelerator, self.seed = phase, accelerator, arguments.run.seed
        self.max_grad_norm = arguments.run.max_grad_norm or math.inf
        self.learning_rate = phase.learning_rate or arguments.run.learning_rate
        self.names = {id(parameter): name for name, parameter in phase.loss.named_parameters()}
        self.optimizer_inside = build_optimizer(phase.loss, arguments.run, self.learning_rate)
        self.module, self.optimizer = accelerator.prepare(phase.loss, self.optimizer_inside)

    def step(self, micro_batches: list[Batch], share: Share, progress: Progress, factor: float, on_nonfinite: str
             ) -> dict[str, Tensor]:  # fmt: skip
        """Forward, backward and update; the values to log, averaged over this process's examples."""
        logged: dict[str, Tensor] = {}
        for repeat in range(self.phase.repeats):
            for micro_step, batch in enumerate(micro_batches):
                is_last = micro_step == len(micro_batches) - 1
                key = (self.seed, "draw", progress.step, self.phase.name, repeat)
                draw = Draw(key, share.total, share.rows(micro_step), self.accelerator.device)
                with nullcontext() if is_last else self.accelerator.no_sync(self.module):
                    loss, values = self.module(batch, draw)
                    self.accelerator.backward(loss / len(micro_batches))
                for name, value in values.items():
                    part = value.detach().float() / (len(micro_batches) * self.phase.repeats)
                    logged[name] = logged[name] + part if name in logged else part
            self._update(progress, factor, on_nonfinite, logged)
        return logged

    def _update(self, progress: Progress, factor: float, on_nonfinite: str, logged: dict[str, Tensor]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        # With fp16 an overflow is part of the method: the scaler skips the step by itself.
        if self.accelerator.scaler is None and not math.isfinite(float(norm)):
            if on_nonfinite == "stop":
                raise NonFiniteError(self._explain(progress, logged))
            progress.skipped_steps += 1
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _explain(self, progress: Progress, logged: dict[str, Tensor]) -> str:
        bad = [
            self.names.get(id(parameter), "?")
            for parameter in self.phase.loss.parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        modules = sorted({name.rpartition(".")[0] for name in bad})
        values = ", ".join(f"{name} {float(value):.6g}" for name, value in logged.items())
        return (
            f"Step {progress.step + 1} ({self.phase.name}) has a gradient that is not finite in "
            f"{', '.join(modules[:5]) or 'no single module'}{' and others' if len(modules) > 5 else ''}; losses: {values}. "
            "The weights were not changed by it. Try a smaller --learning_rate, --max_grad_norm 1, "
            "--mixed_precision no, or --on_nonfinite skip; the last checkpoint is whole and the same command resumes it."
        )


class Reporter:
    """Measures and shows: evaluation, samples, progress bar."""

    def __init__(self, objective: Objective, accelerator: Accelerator, arguments: Arguments, log: MetricsLog,
                 average: MovingAverage | None):  # fmt: skip
        self.objective, self.accelerator, self.arguments, self.log = objective, accelerator, arguments, log
        self.average = average
        self.output_dir = Path(arguments.run.output_dir or "")
        self.headline: float | None = None

    def published(self) -> PreTrainedModel:
        """The model as it would be published now: with averaged weights if there are such."""
        return self.average.published() if self.average is not None else self.objective.model

    def evaluate(self, step: int, is_final: bool = False) -> dict[str, float]:
        """All metrics over the evaluation split, each example counted once whatever the number of processes."""
        objective, accelerator = self.objective, self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        model = self.published()
        was_training = model.training
        model.eval()
        sums: dict[str, Tensor] = {}
        batch_size = self.arguments.run.per_device_eval_batch_size
        with torch.no_grad():
            for index, batch in enumerate(objective.eval_batches(batch_size, accelerator.device)):
                # A process without a batch of its own takes part with weight 0, so that all know the metrics' names.
                weight = 1.0 if index % processes == rank else 0.0
                if not weight and (index or not self._is_idle(rank, batch_size)):
                    continue
                rows = len(next(iter(batch.values())))
                key = (self.arguments.run.seed, "evaluation", index)
                draw = Draw(key, rows, slice(0, rows), accelerator.device)
                for name, values in objective.evaluate(model, batch, draw, is_final).items():
                    part = torch.stack([values.double().sum(), values.new_tensor(values.numel(), dtype=torch.float64)])
                    sums[name] = sums.get(name, 0) + weight * part.cpu()
        totals = torch.stack(list(sums.values())).to(accelerator.device)
        if processes > 1:
            totals = accelerator.reduce(totals, "sum")  # type: ignore[assignment]
        means = {name: float(total / count) for name, (total, count) in zip(sums, totals.tolist())}
        metrics = objective.summarize(means)
        model.train(was_training)
        self.headline = metrics.get(objective.headline)
        self.log.write({"step": step, **{f"eval_{name}": value for name, value in metrics.items()}})
        return metrics

    def _is_idle(self, rank: int, batch_size: int) -> bool:
        batches = self.objective.eval_batches(batch_size, torch.device("cpu"))
        return sum(1 for _, _ in zip(range(rank + 1), batches)) <= rank

    def draw_samples(self, step: int) -> None:
        """Writes samples/step-XXXXXX; a failure is reported and does not stop the run."""
        if not self.accelerator.is_main_process:
            return
        model = self.published()
        was_training = model.training
        model.eval()
        folder = self.output_dir / "samples"
        folder.mkdir(exist_ok=True)
        with torch.no_grad(), torch.random.fork_rng():
            self.objective.draw_samples(model, folder / f"step-{step:06d}")
        model.train(was_training)

    @contextmanager
    def progress_bar(self) -> Iterator[Any]:
        """A bar over the whole run, whether its length is given in steps or in seconds."""
        hidden = self.arguments.run.disable_tqdm or not self.accelerator.is_main_process
        layout = "{percentage:3.0f}% |{bar:24}| {postfix}"
        with tqdm(total=1.0, bar_format=layout, disable=hidden, leave=True, file=sys.stderr) as bar:
            yield bar

    def show(self, bar: Any, progress: Progress, fraction: float, means: dict[str, float], clock: Clock) -> None:
        """Updates the bar: step, losses, rate and time left."""
        rate = (progress.step - clock.first_step(progress.step)) / clock.since_start()
        left = clock.since_start() * (1 - fraction) / max(1e-9, fraction - clock.first_fraction(fraction))
        losses = ", ".join(f"{name} {value:.4g}" for name, value in list(means.items())[:3])
        headline = "" if self.headline is None else f", eval {self.objective.headline} {self.headline:.4g}"
        bar.n = fraction
        bar.set_postfix_str(
            f"step {progress.step}, {losses}{headline}, {rate:.1f} steps/s, {int(left) // 60}:{int(left) % 60:02d} left"
        )


class MetricsLog:
    """metrics.jsonl: one JSON object a logged or evaluated step; on resume it goes on where the checkpoint was."""

    def __init__(self, path: Path, position: int, accelerator: Accelerator):
        self.path, self.accelerator = path, accelerator
        if accelerator.is_main_process:
            path.touch()
            with open(path, "r+b") as file:
                file.truncate(position)

    def position(self) -> int:
        """Bytes written."""
        return self.path.stat().st_size if self.accelerator.is_main_process else 0

    def write(self, values: dict[str, Any]) -> None:
        """Appends a line and tells the trackers, whose failures never stop a run."""
        if not self.accelerator.is_main_process:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        try:
            self.accelerator.log({k: v for k, v in values.items() if k != "step"}, step=int(values["step"]))
        except Exception as error:
            logger.warning("A tracker failed and is ignored: %s", error)


@dataclass
class Clock:
    """Seconds of training; evaluation, samples and checkpoints do not count."""

    before: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    off: float = 0.0
    _first_step: int | None = None
    _first_fraction: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training in all, those before a resume included."""
        return self.before + self.since_start()

    def since_start(self) -> float:
        """Seconds of training in this process's life."""
        return max(1e-9, time.perf_counter() - self.started - self.off)

    def first_step(self, step: int) -> int:
        """The step at which this process began, told by the first call."""
        if self._first_step is None:
            self._first_step = step - 1
        return self._first_step

    def first_fraction(self, fraction: float) -> float:
        """The progress at which this process began."""
        if self._first_fraction is None:
            self._first_fraction = 0.0
        return self._first_fraction

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Takes what happens inside off the clock."""
        started = time.perf_counter()
        yield
        self.off += time.perf_counter() - started


class StopRequest:
    """SIGTERM and SIGINT ask for a checkpoint and an end after the step; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])


def synchronize(limits: Limits, progress: Progress, clock: Clock, stop: StopRequest, accelerator: Accelerator
                ) -> tuple[float, bool]:  # fmt: skip
    """Progress and whether to stop, the same in every process: their clocks and signals differ."""
    seconds, requested = clock.seconds, stop.requested
    if accelerator.num_processes > 1:
        status = torch.tensor([seconds, float(requested)], dtype=torch.float64, device=accelerator.device)
        torch.distributed.all_reduce(status, torch.distributed.ReduceOp.MAX)
        seconds, requested = float(status[0]), bool(status[1])
    return limits.share(progress, seconds), requested


def mean_over_processes(sums: dict[str, Tensor], steps: int, accelerator: Accelerator) -> dict[str, float]:
    """Averages of logged values over steps and processes; the one place where the loop waits for the device."""
    values = torch.stack([value.double() for value in sums.values()]) / max(1, steps)
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, "mean")  # type: ignore[assignment]
    return dict(zip(sums, values.tolist()))


def build_accelerator(arguments: Arguments) -> Accelerator:
    """accelerate, set up as the flags say."""
    run = arguments.run
    precision = run.mixed_precision
    if precision == "auto":
        precision = "bf16" if multiplies_bf16() else "no"
    trackers = [name for name in run.report_to if name != "none"]
    # Every process has the same buffers, except batch normalisation's, whose running averages may differ a little:
    # sending them around in each forward pass would also break a second forward pass before the backward one.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(
        mixed_precision=precision,
        log_with="all" if trackers == ["all"] else trackers or None,  # type: ignore[arg-type]
        project_dir=run.output_dir,
        kwargs_handlers=[ddp],
    )


def multiplies_bf16() -> bool:
    """Whether the device has instructions for bf16 matrix products; emulated ones would be slower than fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return False
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(has_tiles and has_tiles())


def start_trackers(accelerator: Accelerator, arguments: Arguments) -> None:
    """Starts --report_to; one that cannot start is named and left out."""
    config = {k: v for k, v in as_recipe(arguments).items() if isinstance(v, (int, float, str, bool))}
    try:
        accelerator.init_trackers(Path(arguments.run.output_dir or "hfgen").name, config=config)
    except Exception as error:
        logger.warning("A tracker could not be started and is left out: %s", error)
        accelerator.trackers = []


def find_limits(arguments: Arguments, feed: Feed, share: Share) -> Limits:
    """The run's length in steps and seconds.

    Raises:
        ValueError: a length in epochs is asked of a stream that does not tell its size.
    """
    run = arguments.run
    steps = [run.max_train_steps] if run.max_train_steps is not None else []
    if run.num_train_epochs is not None:
        if feed.num_examples is None:
            raise ValueError(
                "--num_train_epochs needs the number of examples, which a streamed dataset does not tell: use "
                "--max_train_steps or --max_train_seconds."
            )
        steps.append(max(1, math.ceil(run.num_train_epochs * feed.num_examples / share.total)))
    return Limits(min(steps) if steps else None, run.max_train_seconds)


# Output folder


def is_finished(output_dir: Path, arguments: Arguments) -> bool:
    """Whether the folder holds the results of this very run."""
    path = output_dir / "results.json"
    if arguments.run.overwrite_output_dir or not path.is_file():
        return False
    try:
        before = json.loads(path.read_text(encoding="utf-8")).get("arguments", {})
    except ValueError:
        return False
    lengths = ("max_train_steps", "num_train_epochs", "max_train_seconds")
    return all(before.get(name) == getattr(arguments.run, name) for name in lengths)


def check_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Refuses a folder with content that is not a run of hfgen.

    Raises:
        ValueError: says what was found and what to do.
    """
    if output_dir.is_file():
        raise ValueError(f"--output_dir {output_dir} is a file: expected a folder, or a name that is not taken.")
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    is_run = (output_dir / "checkpoints").is_dir() or (output_dir / "metrics.jsonl").is_file()
    if not is_run:
        found = ", ".join(sorted(path.name for path in output_dir.iterdir())[:5])
        raise ValueError(
            f"--output_dir {output_dir} is not empty and is not a run of hfgen that could be resumed: it holds {found}. "
            "Give another folder, or empty this one."
        )
    if not overwrite and not any((output_dir / "checkpoints").glob("step-*")):
        raise ValueError(
            f"--output_dir {output_dir} holds a run without a checkpoint to resume from. Give another folder, or "
            "--overwrite_output_dir to start anew."
        )


def prepare_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Makes the folder; with overwrite, deletes an earlier run's files, and no others."""
    if overwrite and output_dir.is_dir():
        for name in ("checkpoints", "samples", "plots", "logs"):
            shutil.rmtree(output_dir / name, ignore_errors=True)
        for name in ("metrics.jsonl", "results.json"):
            (output_dir / name).unlink(missing_ok=True)
    (output_dir / "checkpoints").mkdir(parents=True, exist_ok=True)


# Checkpoints


def find_checkpoint(output_dir: Path, wanted: str | None) -> checkpoints.Checkpoint | None:
    """The checkpoint to go on from, or None to start anew.

    Raises:
        CheckpointError: the one that was asked for is not there or is damaged, or all of them are.
    """
    if wanted is not None and wanted != "latest":
        return checkpoints.load(Path(wanted))
    folder = output_dir / "checkpoints"
    found = checkpoints.latest(folder) if folder.is_dir() else None
    if found is None and folder.is_dir() and any(folder.glob("step-*")):
        raise checkpoints.CheckpointError(
            f"Every checkpoint in {folder} is damaged, as reported above. Use --overwrite_output_dir to start anew."
        )
    if found is None and wanted == "latest":
        raise checkpoints.CheckpointError(f"There is no checkpoint to resume from in {folder}.")
    return found


def check_same_run(found: checkpoints.Checkpoint, objective: Objective, arguments: Arguments) -> None:
    """Refuses a checkpoint of another model or with other settings that decide what the run computes.

    Raises:
        CheckpointError: lists every difference.
    """
    config, saved_config = json.loads(json.dumps(objective.model.config.to_dict())), found.state.get("config", {})
    if saved_config.get("model_type") != config.get("model_type"):
        raise checkpoints.CheckpointError(
            f"{found.path} is a checkpoint of a {saved_config.get('model_type')} model, and this script trains "
            f"{config.get('model_type')}. Resume with the script that wrote it, or give another --output_dir."
        )
    ignored = {"transformers_version", "auto_map", "architectures", "_name_or_path", "dtype"}
    differences = [
        f"config {name}: {saved_config.get(name)!r} before, {config.get(name)!r} now"
        for name in sorted({*config, *saved_config} - ignored)
        if config.get(name) != saved_config.get(name)
    ]
    settings, saved = as_recipe(arguments), found.state.get("arguments", {})
    for name in ("seed", "dataset_name", "dataset_config_name", "train_split", "optimizer", "ema_decay"):
        if settings.get(name) != saved.get(name):
            differences.append(f"--{name}: {saved.get(name)!r} before, {settings.get(name)!r} now")
    if differences:
        raise checkpoints.CheckpointError(
            f"{found.path} is a checkpoint of another run. " + "; ".join(differences) + ". Repeat the run's own command to "
            "resume it, or give another --output_dir."
        )


def training_tensors(model: PreTrainedModel, average: MovingAverage | None, trainers: list[PhaseTrainer]
                     ) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """Everything of a run that is a tensor, by file."""
    tensors = {"model": unshared(model)}
    if average is not None:
        tensors["average"] = unshared(average.model)
    for trainer in trainers:
        tensors[f"optimizer-{trainer.phase.name}"] = checkpoints.optimizer_tensors(
            trainer.optimizer_inside, trainer.names
        )
    return tensors


def unshared(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once: safetensors has no shared tensors."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def restore(found: checkpoints.Checkpoint, model: PreTrainedModel, average: MovingAverage | None,
            trainers: list[PhaseTrainer]) -> Progress:  # fmt: skip
    """Puts a checkpoint back; everything is checked before anything is changed.

    Raises:
        CheckpointError: tensors are missing, too many, or of another shape.
    """
    targets = {"model": unshared(model)}
    if average is not None:
        targets["average"] = unshared(average.model)
    for file, tensors in targets.items():
        saved = found.tensors.get(file, {})
        wrong = [name for name in {*tensors, *saved}
                 if name not in tensors or name not in saved or tensors[name].shape != saved[name].shape]  # fmt: skip
        if wrong:
            raise checkpoints.CheckpointError(
                f"{found.path / file}.safetensors does not fit the model: {', '.join(sorted(wrong)[:5])}."
            )
    for trainer in trainers:
        state = found.tensors.get(f"optimizer-{trainer.phase.name}", {})
        checkpoints.load_optimizer_tensors(trainer.optimizer_inside, trainer.names, state)
    with torch.no_grad():
        for file, tensors in targets.items():
            for name, tensor in tensors.items():
                tensor.copy_(found.tensors[file][name])
    return Progress(**found.state["progress"])


# Finish


def finish(reporter: Reporter, progress: Progress, share: Share, clock: Clock) -> None:
    """Final evaluation, and the folder that is published."""
    accelerator, objective, arguments = reporter.accelerator, reporter.objective, reporter.arguments
    output_dir = reporter.output_dir
    evaluation_started = time.perf_counter()
    metrics = reporter.evaluate(progress.step, is_final=True)
    reporter.draw_samples(progress.step)
    if accelerator.is_main_process:
        model = reporter.published().eval()
        if objective.final_metrics is not None:
            metrics |= objective.final_metrics(model)
        results = {
            "model_type": model.config.model_type,
            **objective.dataset,
            "metrics": metrics,
            "steps": progress.step,
            "skipped_steps": progress.skipped_steps,
            "examples_seen": progress.step * share.total,
            "seconds_trained": round(progress.seconds, 1),
            "seconds_evaluated": round(time.perf_counter() - evaluation_started, 1),
            "share_outside_compute": round(max(0.0, 1 - progress.compute_seconds / progress.seconds), 4),
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "mixed_precision": accelerator.mixed_precision,
            **describe_machine(accelerator.num_processes, accelerator.device),
            "command": arguments.command,
            "arguments": as_recipe(arguments),
        }
        with save_staged(output_dir) as staging:
            model.save_pretrained(staging)
            objective.save_extras(staging)
        plot_losses(output_dir / "metrics.jsonl", output_dir / "plots" / "loss.png", objective.headline)
        write_results(output_dir, results)
        shown = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
        print(f"\n{output_dir}: {shown}\nTrained {progress.seconds:.0f} s on {progress.step * share.total} examples. "
              f"Load it with AutoModel.from_pretrained({str(output_dir)!r}, trust_remote_code=True).")  # fmt: skip
    accelerator.wait_for_everyone()


def close(accelerator: Accelerator) -> None:
    """Ends trackers and the process group in order; gloo can abort at exit otherwise."""
    try:
        accelerator.end_training()
    except Exception as error:
        logger.warning("A tracker failed at the end and is ignored: %s", error)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def run_script(main: Callable[[], None]) -> None:
    """Runs an entry point; what a user can mend is told in one paragraph, without a traceback, with exit status 1."""
    logging.basicConfig(level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR,
                        format="%(message)s")  # fmt: skip
    for noisy in ("httpx", "datasets", "matplotlib", "fsspec", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("HFGEN_DEBUG"):
            raise
        print(f"\n{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(1)


def quoted(command: list[str]) -> str:
    """A command line that a shell reads back as these words."""
    return shlex.join(command)
