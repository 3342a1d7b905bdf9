"""A rare batch does not undo a training of the Ladder VAE."""

from __future__ import annotations

from pathlib import Path

from tests.runs import Fault, before_calls, metrics, train


STEPS = 60
EXPLODES_AT = 41


def one_gradient_explodes() -> None:
    """A level whose latents have become certain gives a gradient of thousands of times the usual one."""
    from training.step import PhaseTrainer

    def explode(trainer: PhaseTrainer) -> None:
        for parameter in trainer.module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(1e6)

    before_calls(PhaseTrainer, "_clip", [EXPLODES_AT], explode)


def losses(folder: Path, *flags: object, fault: Fault | None = None) -> list[float]:
    """Of every step."""
    run = train("ladder_vae", folder, "--max_train_steps", STEPS, "--logging_steps", 1, *flags, fault=fault)
    assert run.code == 0, run.output
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def test_one_gradient_of_a_million_times_the_usual_one_changes_little(tmp_path: Path) -> None:
    """Without a limit, Muon's momentum keeps its direction, and its updates are as large whatever the gradient is."""
    usual = losses(tmp_path / "usual")
    limited = losses(tmp_path / "limited", fault=Fault(patch=one_gradient_explodes))
    unlimited = losses(tmp_path / "unlimited", "--max_grad_norm_ratio", 0, fault=Fault(patch=one_gradient_explodes))

    assert limited[:EXPLODES_AT] == usual[:EXPLODES_AT]
    last = range(STEPS - 5, STEPS)
    worse = [sum(run[step] - usual[step] for step in last) / 5 for run in (limited, unlimited)]
    assert abs(worse[0]) < 0.1 < 0.5 < worse[1]
