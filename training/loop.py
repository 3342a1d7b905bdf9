"""The training loop, the only one: validate, build, load, train, finish.

An entry point describes what is its own in an [`Objective`]; everything else happens here, in the order of the lines
of [`train`]. To resume a run, run the same command again.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from transformers import PreTrainedModel

from hfgen.cards import write_card
from hfgen.model_folder import read_json

from .checkpoint import storage
from .checkpoint.resume import accumulation_steps, check_same_run, feed_state_of, find_checkpoint
from .checkpoint.storage import Checkpoint
from .config.flags import Arguments, as_recipe
from .config.parser import command_to_resume
from .data.feeds.batches import Batch, GlobalBatch
from .distributed import launcher
from .distributed.fsdp import fsdp_plugin, whole_model
from .distributed.processes import Processes, join_after_restart
from .distributed.signals import StopRequest
from .evaluation.evaluate import draw_samples, evaluate, evaluation_mode, measure_config, report_missing
from .hardware.choices import Choices, choose
from .hardware.cores import CoreWatch
from .hardware.devices import build_accelerator
from .objective import Metrics, Objective, Watch
from .optim import learning_rate_schedule
from .output import film
from .output.hub_push import HubPusher
from .output.metrics_log import MetricsLog, end_trackers, start_trackers
from .output.plots import plot_losses
from .output.progress_bar import ProgressBar, progress_bar
from .output.report.page import write_report
from .output.results import describe_run
from .output.run_folder import (
    FolderLock,
    check_output_dir,
    is_finished,
    is_measured,
    lock_if_in_use,
    prepare_output_dir,
    write_model_folder,
    write_results,
)
from .progress import Clock, Pace, due_actions, eval_limit, have_time_for_evaluation, have_time_for_samples, run_length
from .randomness import derive_seed
from .state import TrainState, build_state
from .watching import describe_course, find_watch, note_gradients, watch_evaluation


logger = logging.getLogger(__name__)


@dataclass
class Context:
    """The objects around a training state. Every process builds its own when it starts; none of them is saved."""

    arguments: Arguments
    choices: Choices
    objective: Objective[Any]
    watch: Watch | None
    model_class: type[PreTrainedModel]
    accelerator: Accelerator
    processes: Processes
    output_dir: Path
    global_batch: GlobalBatch
    log: MetricsLog
    clock: Clock
    cores: CoreWatch
    stop: StopRequest
    bar: ProgressBar
    pusher: HubPusher | None


def train(make_objective: Callable[[Arguments], Objective[Any]], arguments: Arguments) -> None:
    """Runs a training from the first step, or from the last checkpoint, to the published folder.

    Args:
        make_objective: builds model and data. Called once in each process, after the output folder was found usable
            and before anything is written.
        arguments: the parsed command line.

    Raises:
        ValueError: arguments, data or checkpoint cannot be used; nothing was written.
        NonFiniteError: a loss or gradient was not finite; the checkpoints before it are whole.
    """
    run, output_dir = arguments.run, Path(arguments.run.output_dir)

    # Set up: processes, devices
    join_after_restart()
    plugin = fsdp_plugin()
    PartialState(cpu=launcher.on_cpu())  # joins the processes; what else accelerate needs is chosen below
    processes = Processes()
    pusher = None
    if run.push_to_hub:
        pusher = HubPusher(output_dir, run.hub_model_id, run.hub_private_repo, run.hub_strategy)

    # Validate: the main process looks at the output folder, which the other machines may not see
    if processes.on_main(_holds_this_run, output_dir, arguments):
        return report_finished(output_dir, processes, pusher)
    lock = FolderLock(output_dir)
    checkpoint = processes.on_main(_checkpoint_to_resume, output_dir, arguments, lock)

    # Build: data and model, then everything that follows from both
    torch.manual_seed(derive_seed(run.seed, "initial weights"))
    objective = make_objective(arguments)
    watch = find_watch(objective, run)
    accumulation = accumulation_steps(run, checkpoint, processes)
    global_batch = GlobalBatch(run.per_device_train_batch_size, accumulation, processes.rank, processes.count)
    length = run_length(run, objective.data.train, global_batch)
    if checkpoint is not None:
        check_same_run(checkpoint, objective.model.config.to_dict(), arguments, global_batch.size)
    before = None if checkpoint is None else checkpoint.state.get("choices")
    choices = processes.on_main(choose, run, objective.model, before)
    accelerator = build_accelerator(run, choices)
    model_class = type(objective.model)  # before it is sharded, which changes its class
    state = build_state(objective, arguments, choices, plugin, accelerator, processes)
    schedule = learning_rate_schedule(run.lr_scheduler_type, run.warmup_ratio)

    # Load
    feed_state, metrics_text = None, ""
    if checkpoint is not None:
        feed_state, metrics_text = feed_state_of(checkpoint, arguments, global_batch), checkpoint.state["metrics"]
        state.restore(checkpoint, processes)
        logger.info("Resuming after step %d, from %s", state.progress.step, checkpoint.path)
    progress = state.progress
    if watch is None or not watch.publishes_best:  # even if it was asked for before
        progress.stop_reason, progress.best_step, state.best = None, None, {}
    if watch is not None:
        watch.follow(progress.history)
    fraction = length.fraction_done(progress.step, progress.seconds)
    is_over = fraction >= 1 or progress.stop_reason is not None
    if is_over and processes.on_main(is_measured, output_dir, progress.step):
        return report_finished(output_dir, processes, pusher)

    # Train: from here on, the run writes
    processes.on_main(prepare_output_dir, output_dir, run.overwrite_output_dir, lock)
    processes.on_main(start_trackers, accelerator, arguments)
    processes.on_main(film.forget_after, output_dir, progress.step)
    log = MetricsLog(output_dir / "metrics.jsonl", metrics_text, accelerator)
    feed = objective.data.train.batches(progress.step, global_batch, accelerator.device, feed_state)
    clock, pace = Clock(progress.seconds, progress.other_seconds), Pace()
    clock.others["start"] = clock.others.get("start", 0.0) + launcher.seconds_since_start()
    may_change = length.max_seconds is not None and not choices.threads_were_given
    cores = CoreWatch(choices.cpu_threads if accelerator.device.type == "cpu" else 1, fixed=not may_change)
    pace.mark(clock.seconds, progress.step, fraction)
    hidden = run.disable_tqdm or not processes.is_main
    with StopRequest(processes) as stop:
        with progress_bar(hidden) as bar:
            context = Context(
                arguments, choices, objective, watch, model_class, accelerator, processes, output_dir, global_batch,
                log, clock, cores, stop, bar, pusher,
            )  # fmt: skip
            stopped = not evaluate_and_sample(state, context)  # what a signal cut short before a resume
            while fraction < 1 and not stopped and progress.stop_reason is None:
                # One step: every phase on the same examples
                lr_factor = schedule(fraction)
                take_step(state, context, feed, lr_factor, fraction)
                cores.look()

                # How far all processes are: their clocks and signals differ
                stopped, seconds = stop.agree(clock.seconds)
                previous, fraction = fraction, length.fraction_done(progress.step, seconds)

                # Status
                if progress.step % run.logging_steps == 0 or fraction >= 1:
                    means = state.means.take()
                    pace.mark(seconds, progress.step, fraction)
                    rate = round(pace.steps_per_second * global_batch.size, 1)
                    rates = {"learning_rate": run.learning_rate * lr_factor, "examples_per_second": rate}
                    log.write({"step": progress.step, "seconds": round(seconds, 3), **means, **rates})
                    bar.show(progress.step, fraction, means, pace)

                # Evaluation and samples, off the clock
                progress.due = what_is_due(state, context, previous, fraction, seconds) if fraction < 1 else []
                stopped = stopped or not evaluate_and_sample(state, context)

                # Checkpoint, off the clock
                is_last = fraction >= 1 or stopped or progress.stop_reason is not None
                if progress.step % run.checkpointing_steps == 0 or is_last:
                    with clock.paused("checkpoints"):
                        save_checkpoint(state, context)
                        if not is_last:
                            push(state, context)

        # Finish: the finished model, or the best one, is evaluated and sampled by the same lines
        if not stopped and watch is not None and watch.publishes_best:
            if progress.stop_reason is None:
                progress.due = ["evaluation"]
                stopped = not evaluate_and_sample(state, context)
            state.return_to_best()
        if not stopped:
            progress.due = ["evaluation", "samples"]
            stopped = not evaluate_and_sample(state, context, at_end=True)
            if not stopped:
                write_finished_run(state, context)
    if stopped:
        accelerator.print(f"\nStopped after step {progress.step}. To resume:\n\n    {command_to_resume(arguments)}\n")
    del state, context, feed  # models first, then the process group: gloo can abort at exit otherwise
    close(accelerator, processes)
    # Without the other processes, which would wait for the Hub at a barrier that times out.
    if pusher is not None and processes.is_main:
        pusher.cancel() if stopped else push_at_end(pusher)


def _holds_this_run(output_dir: Path, arguments: Arguments) -> bool:
    """True if the folder holds the results of this very command."""
    return not arguments.run.overwrite_output_dir and is_finished(output_dir, arguments)


def _checkpoint_to_resume(output_dir: Path, arguments: Arguments, lock: FolderLock) -> Checkpoint | None:
    """Locks a folder that holds a run; returns the checkpoint to resume from, or None to start from the first step.

    Raises:
        ValueError: the output folder or the checkpoint cannot be used.
    """
    run = arguments.run
    check_output_dir(output_dir, run.overwrite_output_dir, storage.exist(output_dir / "checkpoints"))
    lock_if_in_use(output_dir, lock)
    return None if run.overwrite_output_dir else find_checkpoint(output_dir, run.resume_from_checkpoint)


def take_step(
    state: TrainState, context: Context, feed: Iterator[Batch], lr_factor: float, fraction: float
) -> None:  # fmt: skip
    """Runs every phase on the next global batch; `fraction` of the run is done."""
    progress, global_batch = state.progress, context.global_batch
    torch.manual_seed(derive_seed(context.arguments.run.seed, "step", progress.step, context.processes.rank))
    micro_batches = [next(feed) for _ in range(global_batch.accumulation)]
    started = time.perf_counter()
    for phase in state.phases:
        result = phase.step(micro_batches, global_batch, progress.step, lr_factor, fraction)
        progress.skipped_steps += result.skipped
        if context.watch is not None:
            note_gradients(progress, phase.name, result)
        for values in result.values:
            state.means.add(values)
    progress.step += 1
    if state.ema is not None:
        state.ema.update(progress.step)
    progress.compute_seconds += time.perf_counter() - started


def what_is_due(state: TrainState, context: Context, previous: float, fraction: float, seconds: float) -> list[str]:
    """Returns "evaluation" and "samples" if they are due after this step. Collective call.

    Args:
        state, context: of the run.
        previous, fraction: progress before and after the step, in [0, 1].
        seconds: of training.
    """
    run, progress = context.arguments.run, state.progress
    watch = context.watch
    due = due_actions(run, progress.step, previous, fraction, 4 if watch is None else watch.evaluations)
    # The main process decides, because the processes measured different times for what was done before.
    if "evaluation" in due and not context.processes.on_main(have_time_for_evaluation, run, progress, seconds):
        due.remove("evaluation")
    if "samples" in due and not context.processes.on_main(have_time_for_samples, run, progress, seconds):
        due.remove("samples")
    if watch is not None and watch.draws_film and film.is_due(previous, fraction):
        # A run whose length is given in steps must draw the same frames, however long they take.
        training = math.inf if run.max_train_seconds is None else seconds
        drawing = progress.other_seconds.get("film", 0.0)
        due += ["frame"] if context.processes.on_main(film.is_cheap, drawing, training) else []
    return due


def evaluate_and_sample(state: TrainState, context: Context, at_end: bool = False) -> bool:
    """Does what is due: evaluation, samples, or both. Collective call.

    Returns:
        False if a signal came first; what is still due is then part of the next checkpoint.
    """
    objective, progress, clock = context.objective, state.progress, context.clock
    model = state.model_to_save() if progress.due else state.model
    draws = not {"samples", "frame"}.isdisjoint(progress.due)
    whole = whole_model(model, context.model_class, context.processes) if draws else None
    if whole is not None and "frame" in progress.due:
        with clock.paused("film"):
            draw_samples(objective.draw_samples, whole, context.output_dir / film.FOLDER, progress.step)
    if "evaluation" in progress.due:
        is_first = context.watch is not None and not progress.history
        with clock.paused("final evaluation" if at_end else "first evaluation" if is_first else "evaluation"):
            metrics = measure(state, context, model, at_end)
            if metrics is None:
                return False
            if at_end and whole is not None:
                with evaluation_mode(whole):
                    metrics |= objective.measure_samples(whole)
        state.latest = metrics
        values = {f"eval_{name}": value for name, value in metrics.by_name().items()}
        context.log.write({"step": progress.step, **values})
        report_missing(metrics)
        if context.watch is not None:
            if at_end:
                state.latest = metrics | describe_course(state, context.watch)
            else:
                watch_evaluation(state, context.watch, metrics)
        if (value := metrics.values.get(objective.primary_metric)) is not None:
            context.bar.primary_metric = f"eval {objective.primary_metric} {value:.4g}"
    if whole is not None and "samples" in progress.due:
        with clock.paused("samples"):
            folder = context.output_dir / "samples"
            samples = draw_samples(objective.draw_samples, whole, folder, progress.step)
            if at_end:
                samples |= draw_samples(objective.draw_finished, whole, folder, progress.step)
            context.log.show(samples, progress.step)
    progress.due = []
    return True


def measure(state: TrainState, context: Context, model: PreTrainedModel, at_end: bool) -> Metrics | None:
    """Evaluates a model: at the end on the whole split, before that on a part of it that costs little.

    Returns:
        the metrics, or None if a signal came first.
    """
    run, progress = context.arguments.run, state.progress
    if not at_end and progress.eval_limit is None:
        progress.eval_limit = eval_limit(run, progress.step * context.global_batch.size)
    limit = None if at_end else progress.eval_limit
    return evaluate(
        context.objective, model, run, context.accelerator.device, context.stop, at_end, limit, context.cores.look,
        context.accelerator.autocast,
    )  # fmt: skip


def save_checkpoint(state: TrainState, context: Context) -> None:
    """Saves all that is needed to resume after this step to the bit. Collective call."""
    run, processes = context.arguments.run, context.processes
    state.progress.seconds = context.clock.seconds
    content = {
        **state.to_json(), "arguments": as_recipe(context.arguments), "config": state.model.config.to_dict(),
        "choices": context.choices.to_json(),
        "examples_a_step": context.global_batch.size, "processes": processes.count, "metrics": context.log.text(),
        "feed": processes.gather(context.objective.data.train.state()),
    }  # fmt: skip
    folder = context.output_dir / "checkpoints"
    storage.save(folder, state.progress.step, content, state.tensors(), run.checkpoints_total_limit, processes)


def push(state: TrainState, context: Context) -> None:
    """Pushes the current model in the background if --hub_strategy asks for it. Collective call."""
    pusher = context.pusher
    if pusher is None or not pusher.pushes_while_training:
        return
    model = whole_model(state.model_to_save(), context.model_class, context.processes)
    if model is not None:
        with evaluation_mode(model):
            write_model_folder(model, context.output_dir, context.objective.save_extras)
        results = _results(state, context, model)
        write_card(context.output_dir, context.arguments.run.hub_model_id, {**results, "finished": False})
        pusher.push(state.progress.step)


def write_finished_run(state: TrainState, context: Context) -> None:
    """Fills the folder that is published. results.json is written last and marks it as complete. Collective call."""
    model = whole_model(state.model_to_save(), context.model_class, context.processes)
    if model is None:
        return
    output_dir, progress = context.output_dir, state.progress
    with context.clock.paused("model and card"):
        measured = measure_config(context.objective, model)
        with evaluation_mode(model):
            write_model_folder(model, output_dir, context.objective.save_extras)
        last_step = progress.step if progress.best_step is None else progress.best_step
        film.write_film(output_dir, last_step, output_dir / "samples" / f"step-{progress.step:06d}.png")
        plot_losses(context.log.path, output_dir / "plots" / "loss.png", context.objective.primary_metric)
    results = _results(state, context, model) | measured
    write_card(output_dir, context.arguments.run.hub_model_id, results)
    with context.clock.paused("report"):
        report = write_report(output_dir, results, context.objective, model)
    write_results(output_dir, results)
    shown = ", ".join(f"{name} {value:.5g}" for name, value in state.latest.values.items())
    examples = progress.step * context.global_batch.size
    code = ", trust_remote_code=True" if "auto_map" in read_json(output_dir / "config.json") else ""
    print(f"\n{output_dir}: {shown}\nTrained {progress.seconds:.0f} s on {examples} examples, "
          f"{progress.wall_seconds:.0f} s with everything else. "
          f"Load it with AutoModel.from_pretrained({str(output_dir)!r}{code}).")  # fmt: skip
    if report is not None:
        print(f"Open {report} in a browser to look at it.")


def _results(state: TrainState, context: Context, model: PreTrainedModel) -> dict[str, Any]:
    """Returns what results.json and the card say."""
    return describe_run(
        model, context.objective.data.describe(), state.latest, state.progress, context.global_batch,
        context.arguments, context.choices, context.accelerator,
    )  # fmt: skip


def report_finished(output_dir: Path, processes: Processes, pusher: HubPusher | None) -> None:
    """Reports that the run is finished; completes a pending push."""
    if processes.is_main:
        print(
            f"{output_dir} holds this finished run. Give another --output_dir, a longer run, or "
            "--overwrite_output_dir."
        )
    close(None, processes)
    if pusher is not None and processes.is_main:
        push_at_end(pusher)


def push_at_end(pusher: HubPusher) -> None:
    """Publishes the finished folder. Exits with status 1 if the push failed (the reason was printed)."""
    if not pusher.push_at_end():
        sys.exit(1)


def close(accelerator: Accelerator | None, processes: Processes) -> None:
    """Ends the trackers, frees models, and leaves the process group; in another order gloo can abort at exit."""
    if accelerator is not None:
        end_trackers(accelerator)
        accelerator.free_memory()
    processes.barrier()
    PartialState().destroy_process_group()
