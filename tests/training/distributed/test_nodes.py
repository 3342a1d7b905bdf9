"""Several machines, each with its own `accelerate launch`; launchers that restart workers; signals to launchers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runs import (
    COMMON,
    ONE,
    OWN,
    ROOT,
    TWO,
    Fault,
    differences,
    everything,
    free_port,
    resume_command,
    shared_run,
    train,
)
from tests.training.distributed.test_processes import EACH_STEP, numbers, wait_until


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
          "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
RESTARTS = ["--max_restarts", "5"]
FLAGS = [*TWO, *EACH_STEP, "--cpu_threads", "1"]
# Faults, each in the middle of the seventh step of one process; there are checkpoints after steps 4 and 8.
WORKER_DIES = "os.kill(os.getpid(), signal.SIGKILL)"
NODE_DIES = "os.kill(os.getppid(), signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)"


@dataclass
class Node:
    """Where a launcher runs.

    Attributes:
        prefix: of a command that is to run there.
        interface: for gloo, if the host name does not lead to it.
        address: of the first node.
    """

    prefix: list[str] = field(default_factory=list)
    interface: str | None = None
    address: str = "127.0.0.1"


class Launchers:
    """Starts launchers with their output in files, and leaves no process behind."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started: list[tuple[subprocess.Popen, Path]] = []

    def start(self, *argv: object, node: Node | None = None, env: dict[str, str] | None = None) -> subprocess.Popen:
        node = node or Node()
        env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(env or {})}
        if node.interface:
            env["GLOO_SOCKET_IFNAME"] = node.interface
        log = self.folder / f"launcher-{len(self.started)}.log"
        with open(log, "w") as file:
            process = subprocess.Popen([*node.prefix, *map(str, argv)], cwd=ROOT, env=env, stdout=file, stderr=file)
        self.started.append((process, log))
        return process

    def start_pair(self, script: list[str], nodes: list[Node]) -> None:
        """Starts a launcher on each of two nodes."""
        port = free_port()
        for rank, node in enumerate(nodes):
            self.start(*LAUNCH, "--num_machines", 2, "--machine_rank", rank, "--main_process_ip", node.address,
                       "--main_process_port", port, *script, node=node)  # fmt: skip

    def codes(self, timeout: float = 120) -> list[int]:
        """Exit statuses of those started since the last call, in that order."""
        return [process.wait(timeout) for process, _ in self.started if process.returncode is None]

    @property
    def output(self) -> str:
        return "\n".join(log.read_text() for _, log in self.started)

    def processes(self) -> list[psutil.Process]:
        """All processes that work on this test's folder: launchers and workers, including orphans."""
        return [process for process in psutil.process_iter() if str(self.folder) in " ".join(command_line(process))]

    def end(self) -> None:
        for process in self.processes():
            process.kill()
        for process, _ in self.started:
            process.wait(30)


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []


def script(output_dir: Path, *more: object) -> list[str]:
    """The tiny training as the arguments of a launcher."""
    flags = [*FLAGS, *map(str, more), "--output_dir", str(output_dir)]
    return [str(ROOT / "training" / "train_vae.py"), *COMMON, *OWN["vae"], *flags]


def with_fault(folder: Path, fault: str, command: list[str]) -> list[str]:
    """The same training, but a fault happens to its second process, the first time it is started."""
    code = f"""
import os, runpy, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.runs import before_calls
from training.step import PhaseTrainer
marker = Path({str(folder / "first-life-is-over")!r})
def strike(*_):
    marker.touch()
    {fault}
if os.environ["RANK"] == "1" and not marker.exists():
    before_calls(PhaseTrainer, "update", [7], strike)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    (folder / "faulty.py").write_text(code)
    return [str(folder / "faulty.py"), *command]


@pytest.fixture
def launchers(tmp_path: Path) -> Iterator[Launchers]:
    started = Launchers(tmp_path)
    try:
        yield started
    finally:
        started.end()


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    """All that two processes compute when nothing happens to them."""
    return everything(shared_run("vae", *FLAGS, processes=2).folder)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two networks joined by a cable: 10.213.0.1 and 10.213.0.2, with loopback interfaces of their own.

    The loopback interface of this machine if it does not allow that.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        yield [Node(), Node()]
        return
    names = [f"hfgen-{os.getpid()}-{rank}" for rank in (0, 1)]
    commands = [["netns", "add", name] for name in names]
    commands.append(["link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns",
                     names[1]])  # fmt: skip
    for rank, name in enumerate(names):
        commands += [["-n", name, "address", "add", f"10.213.0.{rank + 1}/24", "dev", "cable"],
                     ["-n", name, "link", "set", "cable", "up"], ["-n", name, "link", "set", "lo", "up"]]  # fmt: skip
    try:
        for command in commands:
            done = subprocess.run(["ip", *command], capture_output=True, text=True)
            if done.returncode:
                yield [Node(), Node()]
                return
        yield [Node(["ip", "netns", "exec", name], "cable", "10.213.0.1") for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_two_networks_compute_what_one_process_computes(
    nodes: list[Node], launchers: Launchers, tmp_path: Path
) -> None:
    """Launchers with addresses of their own: they share nothing but the disk, not even the loopback interface."""
    launchers.start_pair(script(tmp_path / "run"), nodes)
    one = numbers(shared_run("vae", *ONE, *EACH_STEP).folder)
    assert launchers.codes() == [0, 0], launchers.output
    assert json.loads((tmp_path / "run" / "results.json").read_text())["processes"] == 2
    assert launchers.output.count("Load it with") == 1  # only one process has written
    for expected, line in zip(one, numbers(tmp_path / "run"), strict=True):
        assert line == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.slow
def test_nodes_without_a_shared_disk_resume_to_the_bit(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """The first node has the checkpoints; the other one finds none in its own folder and is sent the state."""
    here, there = tmp_path / "here", tmp_path / "there"
    two_nodes: dict[str, Any] = {
        "processes": 2,
        "environment": {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"},
    }
    stopped = train("vae", [here, there], *FLAGS, fault=Fault(signal.SIGTERM, at_step=6, rank=1), **two_nodes)
    assert stopped.code == 0 and "Stopped after step 7" in stopped.output, stopped.output
    assert not (there / "checkpoints").exists()
    resumed = train("vae", [here, there], *FLAGS, **two_nodes)
    assert resumed.code == 0 and "after step 7, from" in resumed.output, resumed.output
    assert not (there / "results.json").exists()
    assert differences(uninterrupted, everything(here)) == []


@pytest.mark.slow
def test_restarted_workers_end_with_the_weights_of_an_uninterrupted_run(
    launchers: Launchers, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """A worker dies in the middle of a step; the launcher restarts all of them, and they find the checkpoint.

    In full: HFGEN_LAUNCHES=20.
    """
    for number in range(int(os.environ.get("HFGEN_LAUNCHES", "1"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = with_fault(folder, WORKER_DIES, script(folder / "run"))
        launchers.start(*LAUNCH, "--main_process_port", free_port(), *RESTARTS, *command)
        assert launchers.codes() == [0], launchers.output
        assert (folder / "first-life-is-over").exists() and "after step 4, from" in launchers.output
        assert differences(uninterrupted, everything(folder / "run")) == []


@pytest.mark.slow
def test_a_node_that_died_is_replaced_by_the_same_commands(
    launchers: Launchers, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """The other node's launcher ends by itself, with its worker: it neither hangs nor trains on alone."""
    launchers.start_pair(with_fault(tmp_path, NODE_DIES, script(tmp_path / "run")), [Node(), Node()])
    assert launchers.codes() == [1, -signal.SIGKILL], launchers.output
    assert launchers.processes() == []
    # What the launchers would start: the launchers themselves have been tested above.
    resumed = train("vae", tmp_path / "run", *FLAGS, processes=2)
    assert resumed.code == 0 and "after step 4, from" in resumed.output, resumed.output
    assert differences(uninterrupted, everything(tmp_path / "run")) == []


def test_signal_to_a_launcher_of_two_processes_saves_and_leaves_no_orphan(
    launchers: Launchers, tmp_path: Path
) -> None:
    """The launcher forwards SIGTERM and waits; its own exit status is 1 although the workers ended with 0."""
    launcher = launchers.start(*LAUNCH, "--main_process_port", free_port(),
                               *script(tmp_path / "run", "--max_train_steps", 1_000_000))  # fmt: skip
    wait_until(lambda: len(lines(tmp_path / "run" / "metrics.jsonl")) > 3)
    launcher.terminate()
    assert launchers.codes() == [1]
    assert launchers.processes() == []
    assert "--output_dir" in resume_command(launchers.output)
    steps = [json.loads(line)["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    saved = max(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert int(saved.removeprefix("step-")) >= steps[-1]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# Stand-ins for SLURM's commands: srun starts the tasks, scancel signals only them, as the real ones do.
SRUN = """
tasks=()
for node in $(seq 0 $((SLURM_NNODES - 1))); do
    SLURM_NODEID=$node "$@" &
    tasks+=($!)
done
echo "${tasks[@]}" > "$FOLDER/tasks"
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit $status
"""
SCANCEL = 'echo "scancel $*" >> "$FOLDER/calls"; kill -TERM $(cat "$FOLDER/tasks")'
SCONTROL = 'if [ "$1" = show ]; then echo localhost; echo other; else echo "scontrol $*" >> "$FOLDER/calls"; fi'


def write_commands(folder: Path) -> None:
    """Writes SLURM's commands and `accelerate` to a folder that goes first on the path."""
    folder.mkdir()
    accelerate = f'exec {sys.executable} -m accelerate.commands.launch "${{@:2}}"'
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL, "accelerate": accelerate}.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(stat.S_IRWXU)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="the batch script is one for bash")
def test_slurm_job_saves_before_its_time_limit_and_queues_again(launchers: Launchers, tmp_path: Path) -> None:
    """The batch script with stand-ins for SLURM's commands, on two nodes: only the script gets the signal."""
    write_commands(tmp_path / "bin")
    slurm = {"SLURM_JOB_ID": 40000 + os.getpid() % 9999, "SLURM_NNODES": 2, "SLURM_GPUS_ON_NODE": 1,
             "SLURM_JOB_NODELIST": "node[1-2]", "FOLDER": tmp_path}  # fmt: skip
    path = f"PATH={tmp_path / 'bin'}:{os.environ['PATH']}"
    command = script(tmp_path / "run", "--max_train_steps", 1_000_000)
    batch = launchers.start("env", path, *(f"{name}={value}" for name, value in slurm.items()), "bash",
                            ROOT / "training" / "slurm.sbatch", *command)  # fmt: skip
    wait_until(lambda: len(lines(tmp_path / "run" / "metrics.jsonl")) > 3)
    batch.terminate()
    launchers.codes()
    wait_until(lambda: launchers.processes() == [])
    job = slurm["SLURM_JOB_ID"]
    assert lines(tmp_path / "calls") == [f"scancel --signal=TERM {job}", f"scontrol requeue {job}"], launchers.output
    assert "Stopped after step" in launchers.output
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
