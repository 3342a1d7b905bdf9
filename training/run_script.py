"""Runs an entry point; errors that a user can fix are printed as one paragraph."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from .data.sources import one_line
from .distributed import launcher
from .distributed.processes import lost_a_process


def run_script(main: Callable[[], None]) -> None:
    """Runs an entry point. User errors are printed as one paragraph without a traceback, exit status 1.

    The environment variable HFGEN_DEBUG=1 brings the traceback back.
    """
    rank = launcher.rank()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s")
    for noisy in ("httpx", "httpx2", "datasets", "matplotlib", "fsspec", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        main()
    except (ValueError, OSError, SafetensorError) as error:
        if os.environ.get("HFGEN_DEBUG"):
            raise
        _exit(str(error), rank)
    except RuntimeError as error:
        reason = _explain_dead_process(error)
        if reason is None:
            raise
        _exit(reason, rank)
    except KeyboardInterrupt:
        _exit("interrupted. The last checkpoint, if there is one, is whole.", rank, status=130)


def _exit(reason: str, rank: int, status: int = 1) -> None:
    name = Path(sys.argv[0]).name + (f" (process {rank})" if rank else "")
    print(f"\n{name}: {reason}", file=sys.stderr)
    sys.exit(status)


def _explain_dead_process(error: RuntimeError) -> str | None:
    """Returns what to do if a process that the run needs is gone; None for any other error."""
    if lost_a_process(error):
        return (
            "another process of this run has died, and this one ends. Run the same command again to resume from the "
            "last checkpoint, or have the launcher do it: accelerate launch --max_restarts 5."
        )
    if "DataLoader worker" in str(error):  # raised by the signal of a worker's death, wherever the training is
        return (
            f"a process that loads data has died: {one_line(error)} If it was killed, memory may have run out: use "
            "fewer --dataloader_num_workers or a smaller --shuffle_buffer_size, then run the same command again to "
            "resume from the last checkpoint."
        )
    return None
