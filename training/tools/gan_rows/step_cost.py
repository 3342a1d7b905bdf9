"""The row `cost`: what does the gradient penalty add to a step?

A step is that of `hfgen train`, with both networks, in the precision and memory layout that are fast on the machine.
Three models take turns in one process, so that whatever else slows the machine down meets all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator, PartialState

from hfgen import GANConfig

from ...config.parser import parse
from ...config.scripts import SCRIPTS
from ...data.feeds.batches import GlobalBatch
from ...distributed import launcher
from ...distributed.processes import Processes
from ...hardware.choices import Choices, choose
from ...hardware.devices import build_accelerator
from ...state import build_state
from ...train_gan import GANObjective
from ..measuring.rows import Lines, Session
from ..measuring.runs import answer_task, as_words, run_task
from .on_mnist import chosen_data


SECONDS = 40.0
STEPS_PER_TURN = 3
PLAIN = "step without penalty"
KINDS = {
    PLAIN: ["--gradient_penalty_weight", "0"],
    "step with R1 + R2 on the whole batch": ["--penalized_share", "1"],
    "step with R1 + R2 on a quarter": ["--penalized_share", "0.25"],
}
Step = Callable[[], None]


def measure_cost(session: Session, row: str) -> Lines:
    """Measures steps without penalty, with the exact one, and with the one on a part of the batch."""
    flags = [*as_words(chosen_data(session)), *session.flags]
    task = {"flags": flags, "seconds": session.seconds or SECONDS}
    found = run_task("training.tools.gan_rows.step_cost", task, environment=session.environment)
    for kind, figures in found["kinds"].items():
        yield kind, [{"seed": 0, "choices": found["choices"], **figures}]


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Times the steps; returns the figures by kind of step, and the choices of the run."""
    PartialState(cpu=launcher.on_cpu())
    processes, common = Processes(), ["--output_dir", "unused", "--max_train_steps", "1", *task["flags"]]
    steps: dict[str, Step] = {}
    choices: Choices | None = None
    accelerator: Accelerator | None = None
    for kind, flags in KINDS.items():
        arguments = parse(SCRIPTS["gan"], [*common, *flags], config_class=GANConfig)
        objective = GANObjective(arguments)
        if choices is None or accelerator is None:  # the same for all
            choices = choose(arguments.run, objective.model)
            accelerator = build_accelerator(arguments.run, choices)
        state = build_state(objective, arguments, choices, None, accelerator, processes)
        global_batch = GlobalBatch(arguments.run.per_device_train_batch_size)
        feed = objective.data.train.batches(0, global_batch, accelerator.device)
        steps[kind] = _step_of(state, feed, global_batch)
    assert choices is not None
    turns = take_turns(steps, task["seconds"])
    return {"choices": choices.to_json(), "kinds": summarize(turns)}


def _step_of(state: Any, feed: Any, global_batch: GlobalBatch) -> Step:
    """A function that takes the next step of a run."""

    def step() -> None:
        batches, number = [next(feed)], state.progress.step
        for phase in state.phases:
            phase.step(batches, global_batch, number, lr_factor=0.1, progress=0.5)
        state.progress.step += 1
        if state.ema is not None:
            state.ema.update(state.progress.step)

    return step


def take_turns(steps: dict[str, Step], seconds: float) -> dict[str, list[float]]:
    """Lets steps of each kind take turns for a time; returns seconds per step of each turn, without the first one."""
    turns: dict[str, list[float]] = {kind: [] for kind in steps}
    started, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - started < seconds:
        for kind, step in steps.items():
            before = time.perf_counter()
            for _ in range(STEPS_PER_TURN):
                step()
            if count:  # in the first turn, kernels are chosen and memory is found
                turns[kind].append((time.perf_counter() - before) / STEPS_PER_TURN)
        count += 1
    return turns


def summarize(turns: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """The median seconds per step of each kind, and the ratios to the plain step of the same turn, none for itself."""
    found = {}
    for kind, seconds in turns.items():
        ratios = [] if kind == PLAIN else [own / plain for own, plain in zip(seconds, turns[PLAIN], strict=True)]
        found[kind] = {"seconds_per_step": statistics.median(seconds), "times_plain": ratios, "turns": len(seconds)}
    return found


if __name__ == "__main__":
    answer_task(__doc__, measure)
