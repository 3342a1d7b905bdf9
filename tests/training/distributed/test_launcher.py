"""What is known of the command that started this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest


# A process that says how long ago its command was started.
COMMAND = "from training.distributed import launcher; print(launcher.seconds_since_start())"
LAUNCHER = 'import os, subprocess, sys; subprocess.run([sys.executable, "-c", os.environ["COMMAND"]], check=True)'
EARLIER = "import time; began = time.process_time()\nwhile time.process_time() < began + 0.5: pass"


def measure(*command: str, **variables: str) -> tuple[float, float]:
    """What a command prints, and how long it took."""
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_MIXED_PRECISION"}
    scripts = {"COMMAND": COMMAND, "LAUNCHER": LAUNCHER, "EARLIER": EARLIER}
    environment |= {"PYTHON": sys.executable, **scripts, **variables}
    started = time.perf_counter()
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return float(printed.stdout), time.perf_counter() - started


def test_a_command_starts_when_its_process_does() -> None:
    waiting = f"import time; time.sleep(0.5); {COMMAND}"

    since_start, seconds = measure(sys.executable, "-c", waiting)

    assert 0.5 <= since_start < seconds + 0.02  # Linux counts hundredths of a second


def test_a_launched_command_starts_when_its_launcher_does() -> None:
    """This process stands for the launcher."""
    waiting = LAUNCHER.replace("subprocess.run(", "import time; time.sleep(0.5); subprocess.run(", 1)

    since_start, seconds = measure(sys.executable, "-c", waiting, ACCELERATE_MIXED_PRECISION="no")

    assert 0.5 <= since_start < seconds + 0.02


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("last", ["COMMAND", "LAUNCHER"])
def test_earlier_commands_of_a_shell_that_becomes_the_command_do_not_count(last: str) -> None:
    variables = {"ACCELERATE_MIXED_PRECISION": "no"} if last == "LAUNCHER" else {}

    since_start, seconds = measure(
        "bash", "-c", f'"$PYTHON" -c "$EARLIER" && exec "$PYTHON" -c "${last}"', **variables
    )

    assert 0 < since_start < seconds - 0.5
