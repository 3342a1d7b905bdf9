"""The only training loop.

An entry point describes what is its own in an [`Objective`]; everything else happens here, in the order of the
lines of [`train`], with a room for each part:

    objective.py    what an entry point provides
    devices.py      devices, threads, precision
    processes.py    what the processes of a run tell each other
    sharding.py     a model spread over them
    output.py       the output folder
    resume.py       which checkpoint to go on from; checkpoint.py: how it lies on the disk
    phases.py       forward, backward and update of a step
    progress.py     the run's length, its clock, signals
    status.py       metrics.jsonl, trackers, progress bar
    measure.py      evaluation and samples
    report.py       results.json and the plot

To resume, run the same command again.
"""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hfgen.cards import write_card

from .checkpoint import storage
from .checkpoint.resume import check_same_run, feed_state, find_checkpoint, read_tensors, restore, training_tensors
from .checkpoint.storage import Checkpoint, StoredTensors
from .config.flags import Arguments, RunArguments, as_recipe
from .config.parser import command_to_resume
from .data.batches import GlobalBatch
from .distributed.devices import build_accelerator, prepare_model, prepare_sharded
from .distributed.fsdp import gather_model, is_sharded, sharding_asked_for
from .distributed.processes import Processes, join_after_restart
from .distributed.signals import StopRequest
from .evaluation.evaluate import draw_samples, evaluate, evaluation_mode
from .evaluation.means import RunningMeans
from .objective import Objective, Phase
from .optim import EMA, learning_rate_schedule
from .output.hub_push import HubPusher
from .output.metrics_log import MetricsLog, end_trackers, json_numbers, start_trackers
from .output.plots import plot_losses
from .output.progress_bar import progress_bar
from .output.results import describe_results
from .output.run_folder import (
    check_output_dir,
    is_finished,
    prepare_output_dir,
    read_results,
    save_staged,
    write_results,
)
from .progress import Clock, Pace, Progress, run_length
from .randomness import derive_seed
from .run_script import run_script
from .step import NonFiniteError, PhaseTrainer


__all__ = ["NonFiniteError", "Objective", "Phase", "run_script", "train"]
logger = logging.getLogger(__name__)


def train(make_objective: Callable[[Arguments], Objective[Any]], arguments: Arguments) -> None:
    """Runs a training from the first step, or from the last checkpoint, to the published folder.

    Args:
        make_objective: builds model and data; called once in each process, after the output folder was found usable
            and before anything is written.
        arguments: what the command line said.

    Raises:
        ValueError: the arguments, the data or a checkpoint will not do; nothing was written.
        NonFiniteError: a loss or gradient was not finite; the checkpoints before it are whole.
    """
    run = arguments.run
    output_dir = Path(run.output_dir or "")
    join_after_restart()
    sharding = sharding_asked_for()
    accelerator = build_accelerator(run)
    processes = Processes()

    # Validate: the main process looks, and the others, which may be on machines that do not see its disk, are told
    pusher = None
    if run.push_to_hub:
        pusher = HubPusher(output_dir, run.hub_model_id, run.hub_private_repo, run.hub_strategy)
    if processes.on_main(lambda: not run.overwrite_output_dir and is_finished(output_dir, arguments)):
        return report_finished(output_dir, accelerator, processes, pusher)
    processes.on_main(lambda: check_output_dir(output_dir, run.overwrite_output_dir))
    found = processes.on_main(
        lambda: None if run.overwrite_output_dir else find_checkpoint(output_dir, run.resume_from_checkpoint)
    )

    # Build
    torch.manual_seed(derive_seed(run.seed, "initial weights"))
    objective = make_objective(arguments)
    model, model_class = objective.model, type(objective.model)
    copied = copy.deepcopy(model) if run.ema_decay else None
    if sharding is None or processes.count == 1:
        prepare_model(model, run, accelerator.device)
        if copied is not None:
            prepare_model(copied, run, accelerator.device)
    else:
        prepare_sharded(model, copied, run, accelerator, sharding)
    accumulation = accumulation_steps(run, found, processes)
    global_batch = GlobalBatch(run.per_device_train_batch_size, accumulation, processes.rank, processes.count)
    length = run_length(run, objective.feed, global_batch)
    if found is not None:
        check_same_run(found, model.config.to_dict(), arguments, global_batch.size)
    if run.torch_compile:
        for phase in objective.phases:
            for network in phase.loss.children():
                network.compile()
    trainers = [PhaseTrainer(phase, model, accelerator, arguments) for phase in objective.phases]
    # After the phases were prepared: accelerate puts other buffers in the place of a model's when there are processes.
    average = None if copied is None else EMA(model, copied, run.ema_decay, objective.ema_prefixes)
    schedule = learning_rate_schedule(run.lr_scheduler_type, run.warmup_ratio)

    # Load
    progress, means, lines, position = Progress(), RunningMeans(accelerator), "", None
    if found is not None:
        position = feed_state(found, arguments, global_batch)
        progress = restore(found, model, average, trainers, processes)
        means.restore(dict(read_tensors(found.tensors.get("means", StoredTensors()), processes)))
        if accelerator.scaler is not None and "scaler" in found.state:
            accelerator.scaler.load_state_dict(found.state["scaler"])
        lines = found.state["metrics"]
        logger.info("Going on after step %d, from %s", progress.step, found.path)
    fraction = length.fraction_done(progress.step, progress.seconds)
    if fraction >= 1 and processes.on_main(lambda: read_results(output_dir).get("steps")) == progress.step:
        return report_finished(output_dir, accelerator, processes, pusher)

    # Write, from here on
    processes.on_main(lambda: prepare_output_dir(output_dir, run.overwrite_output_dir))
    processes.on_main(lambda: start_trackers(accelerator, arguments))
    log = MetricsLog(output_dir / "metrics.jsonl", lines, accelerator)
    feed = objective.feed.batches(progress.step, global_batch, accelerator.device, position)
    clock, pace = Clock(progress.seconds), Pace()
    pace.mark(clock.seconds, progress.step, fraction)

    latest: dict[str, float] = {}

    def measured() -> PreTrainedModel:
        """The model that is evaluated: the average, where there is one. Spread over processes if the training is."""
        return model if average is None else average.published()

    def published() -> PreTrainedModel | None:
        """The same as an ordinary model, where files are written: on the main process. All have to call this."""
        if is_sharded(model):
            return gather_model(measured(), model_class, processes)
        return measured() if processes.is_main else None

    def save_checkpoint() -> None:
        progress.seconds = clock.seconds
        tensors = {**training_tensors(model, average, trainers), "means": means.state()}
        state = {"progress": vars(progress), "arguments": as_recipe(arguments), "config": model.config.to_dict(),
                 "examples_a_step": global_batch.size, "processes": processes.count, "metrics": log.text(),
                 "feed": processes.gather(objective.feed.state())}  # fmt: skip
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler.state_dict()
        storage.save(output_dir / "checkpoints", progress.step, state, tensors, run.checkpoints_total_limit, processes)

    def push() -> None:
        """Has the model as it is now published in the background, if the run is to be published while it goes on."""
        if pusher is None or not pusher.pushes_while_training:
            return
        whole = published()
        if whole is not None:
            fill_folder(objective, whole, output_dir)
            results = describe_run(objective, whole, latest, progress, global_batch, 0.0, arguments, accelerator)
            write_card(output_dir, run.hub_model_id, {**results, "finished": False})
            pusher.push(progress.step)

    def do_what_is_due() -> bool:
        """Evaluation and samples; False if a signal came before all was done."""
        if "evaluation" in progress.due:
            metrics = evaluate(objective, measured(), accelerator, run, stop)
            if metrics is None:
                return False
            latest.update(metrics)
            log.write({"step": progress.step, **{f"eval_{name}": value for name, value in metrics.items()}})
            bar.primary_metric = f"eval {objective.primary_metric} {metrics[objective.primary_metric]:.4g}"
        if "samples" in progress.due:
            whole = published()
            if whole is not None:
                draw_samples(objective, whole, output_dir / "samples" / f"step-{progress.step:06d}")
        progress.due = []
        return True

    with StopRequest(processes) as stop:
        with progress_bar(run.disable_tqdm or not accelerator.is_main_process) as bar:
            stopped = not do_what_is_due()
            while fraction < 1 and not stopped:
                # One step: every phase on the same examples
                torch.manual_seed(derive_seed(run.seed, "step", progress.step, accelerator.process_index))
                micro_batches = [next(feed) for _ in range(global_batch.accumulation)]
                factor = schedule(fraction)
                started = time.perf_counter()
                for trainer in trainers:
                    progress.skipped_steps += trainer.step(micro_batches, global_batch, progress.step, factor, means)
                progress.step += 1
                if average is not None:
                    average.update(progress.step)
                progress.compute_seconds += time.perf_counter() - started

                # How far all processes are: their clocks and signals differ
                stopped, seconds = stop.agree(clock.seconds)
                before, fraction = fraction, length.fraction_done(progress.step, seconds)

                # Before anything is written: was the update one to write about?
                is_logged = progress.step % run.logging_steps == 0 or fraction >= 1
                is_saved = progress.step % run.checkpointing_steps == 0 or fraction >= 1 or stopped
                due = what_is_due(run, progress.step, before, fraction) if fraction < 1 else []

                # Status
                if is_logged:
                    averages = means.take()
                    pace.mark(seconds, progress.step, fraction)
                    rate = round(pace.steps_per_second * global_batch.size, 1)
                    log.write({"step": progress.step, "seconds": round(seconds, 3), **averages,
                               "learning_rate": run.learning_rate * factor, "examples_per_second": rate})  # fmt: skip
                    bar.show(progress.step, fraction, averages, pace)

                # Evaluation and samples, off the clock
                progress.due = due
                if due and not stopped:
                    with clock.paused():
                        stopped = not do_what_is_due()

                # Checkpoint, off the clock
                if is_saved or stopped:
                    with clock.paused():
                        save_checkpoint()
                        if fraction < 1 and not stopped:
                            push()

        # Finish: every process measures, the main one writes
        if not stopped:
            started = time.perf_counter()
            metrics = evaluate(objective, measured(), accelerator, run, stop, is_final=True)
            stopped = metrics is None
            whole = None if stopped else published()
            if metrics is not None and whole is not None:
                publish(objective, whole, metrics, progress, global_batch, started, arguments, accelerator, log)
    if stopped:
        accelerator.print(f"\nStopped after step {progress.step}. To go on:\n\n    {command_to_resume(arguments)}\n")
    trainers.clear()
    close(accelerator, processes)
    # Without the other processes, which would wait for the Hub at a barrier that does not wait forever.
    if pusher is not None and accelerator.is_main_process:
        pusher.cancel() if stopped else finish_push(pusher)


def accumulation_steps(run: RunArguments, found: Checkpoint | None, processes: Processes) -> int:
    """Micro-steps of a step: the flag, or as many as keep the examples of a step when the run goes on with a
    different number of processes."""
    steps = run.gradient_accumulation_steps
    if found is None or found.state.get("processes", processes.count) == processes.count:
        return steps
    needed, rest = divmod(found.state["examples_a_step"], run.per_device_train_batch_size * processes.count)
    if rest or not needed or needed == steps:
        return steps
    logger.warning(
        "Going on with %d processes instead of %d, and %d micro-steps a step instead of %d: a step has %d examples as "
        "before.", processes.count, found.state["processes"], needed, steps, found.state["examples_a_step"],
    )  # fmt: skip
    return needed


def what_is_due(run: RunArguments, step: int, before: float, fraction: float) -> list[str]:
    """ "evaluation" and "samples" if their time has come: after so many steps, else with each quarter of the run.

    Args:
        run: the flags.
        step: steps done.
        before: progress before the step, in [0, 1].
        fraction: progress now.
    """
    evaluation = step % run.eval_steps == 0 if run.eval_steps else int(4 * before) < int(4 * fraction)
    samples = step % run.sample_steps == 0 if run.sample_steps else evaluation
    return ["evaluation"] * evaluation + ["samples"] * samples


def publish(
    objective: Objective[Any],
    model: PreTrainedModel,
    metrics: dict[str, float],
    progress: Progress,
    global_batch: GlobalBatch,
    started: float,
    arguments: Arguments,
    accelerator: Accelerator,
    log: MetricsLog,
) -> None:
    """Fills the folder that is published; results.json comes last and means that all else is there."""
    output_dir = log.path.parent
    draw_samples(objective, model, output_dir / "samples" / f"step-{progress.step:06d}")
    with evaluation_mode(model):
        if objective.final_metrics is not None:
            metrics = metrics | objective.final_metrics(model)
    fill_folder(objective, model, output_dir)
    log.write({"step": progress.step, **{f"eval_{name}": value for name, value in metrics.items()}})
    plot_losses(log.path, output_dir / "plots" / "loss.png", objective.primary_metric)
    seconds = time.perf_counter() - started
    results = describe_run(objective, model, metrics, progress, global_batch, seconds, arguments, accelerator)
    write_card(output_dir, arguments.run.hub_model_id, results)
    write_results(output_dir, results)
    shown = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
    examples = progress.step * global_batch.size
    print(f"\n{output_dir}: {shown}\nTrained {progress.seconds:.0f} s on {examples} examples. "
          f"Load it with AutoModel.from_pretrained({str(output_dir)!r}, trust_remote_code=True).")  # fmt: skip


def fill_folder(objective: Objective[Any], model: PreTrainedModel, output_dir: Path) -> None:
    """Puts the model, and what is needed beside it, into the folder: all of it or nothing."""
    with evaluation_mode(model), save_staged(output_dir) as staging:
        model.save_pretrained(staging, max_shard_size="1GB")
        objective.save_extras(staging)


def describe_run(
    objective: Objective[Any],
    model: PreTrainedModel,
    metrics: dict[str, float],
    progress: Progress,
    global_batch: GlobalBatch,
    seconds_evaluated: float,
    arguments: Arguments,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """What results.json and the card say."""
    return {
        "model_type": model.config.model_type,
        **objective.dataset,
        "metrics": json_numbers(metrics),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        **describe_results(progress, global_batch, seconds_evaluated, accelerator),
        "command": arguments.command,
        "arguments": as_recipe(arguments),
    }


def finish_push(pusher: HubPusher) -> None:
    """Publishes the finished folder; a failure has told what to do, and is the exit status."""
    if not pusher.finish():
        sys.exit(1)


def report_finished(
    output_dir: Path, accelerator: Accelerator, processes: Processes, pusher: HubPusher | None
) -> None:
    """Says that there is nothing to do, but for a push that is outstanding."""
    accelerator.print(
        f"{output_dir} holds this finished run. Give another --output_dir, a longer run, or --overwrite_output_dir."
    )
    close(accelerator, processes)
    if pusher is not None and accelerator.is_main_process:
        finish_push(pusher)


def close(accelerator: Accelerator, processes: Processes) -> None:
    """Ends trackers, models and the process group in this order; gloo can abort at exit otherwise."""
    end_trackers(accelerator)
    accelerator.free_memory()
    processes.wait()
    accelerator.state.destroy_process_group()
