"""Runs an entry point; errors that a user can fix are printed as one paragraph."""

from __future__ import annotations

import errno
import gc
import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from hfgen.cli import replace_unprintable_characters

from .data.sources.splits import one_line
from .distributed import launcher
from .distributed.processes import lost_a_process


# What an error begins with that is of no use: where torch noticed it, and the kind of one that another process sent.
PREAMBLE = re.compile(r"^(\w*Error: |\[enforce fail[^]]*\] err == 0\. )+")
# What torch (for CPUs, CUDA, cuBLAS and Windows) and numpy say when memory runs out, and the names of such errors.
OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|out of memory|_ALLOC_FAILED|not enough memory|unable to allocate|OutOfMemory|MemoryError",
    flags=re.IGNORECASE,
)


def run_script(main: Callable[[], None]) -> None:
    """Runs an entry point. User errors are printed as one paragraph without a traceback, exit status 1.

    The environment variable HFGEN_DEBUG=1 brings the traceback back.
    """
    # Imported packages are half a million objects that stay to the end; each search for garbage goes through them all.
    gc.freeze()
    gc.enable()
    rank = launcher.rank()
    replace_unprintable_characters()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s")
    for noisy in ("httpx", "httpx2", "datasets", "matplotlib", "fsspec", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    name = Path(sys.argv[0]).name + (f" (process {rank})" if rank else "")
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        _exit(end.code)
    except Exception as error:
        reason = _explain(error)
        if reason is None or os.environ.get("HFGEN_DEBUG"):
            raise
        _exit(reason, f"\n{name}: ")
    except KeyboardInterrupt:
        _exit("interrupted. The last checkpoint, if there is one, is whole.", f"\n{name}: ", status=130)


def _exit(reason: str, prefix: str = "", status: int = 1) -> None:
    if _is_first_to_say(reason):
        print(f"{prefix}{reason}", file=sys.stderr)
    sys.exit(status)


def _is_first_to_say(reason: str) -> bool:
    """True unless another process of the run has reported the same. `hfgen train` names a folder to agree in."""
    folder = os.environ.get("HFGEN_REPORTS")
    if not folder:
        return True
    words = f"{launcher.restarts()} {reason}"
    try:
        (Path(folder) / hashlib.sha256(words.encode(errors="replace")).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # to say it twice is better than not at all
        pass
    return True


def _explain(error: Exception) -> str | None:
    """Returns what is wrong and what to do; None for an error that nobody foresaw."""
    if _ran_out_of_memory(error):
        return (
            f"memory ran out ({PREAMBLE.sub('', one_line(error))}). Try half the --per_device_train_batch_size with "
            "twice the --gradient_accumulation_steps: the run stays the same, and resumes from its checkpoint if it "
            "has one. Otherwise, try --gradient_checkpointing for a GPT, a smaller model, a smaller --image_size or "
            "--max_position_embeddings, or --streaming for a large dataset."
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        problem = one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]
        return (
            f"torch.compile cannot compile the model ({problem}). Leave out --torch_compile. If a compiler is "
            "missing, you can also install one: g++ with `apt install g++ python3-dev`, or clang with `xcode-select "
            "--install` on a Mac."
        )
    if isinstance(error, (ValueError, OSError, SafetensorError)):
        return str(error)
    return _explain_dead_process(error) if isinstance(error, RuntimeError) else None


def _ran_out_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_kind = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_kind or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None)


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
