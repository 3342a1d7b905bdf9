"""Settings of every test."""

import gc
import os


# Three workers of pytest share two cores, and so do the processes that they start: more threads would only spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests are collected by importing nearly everything; a fifth of that time would go into looking for garbage.
gc.disable()


def pytest_collection_finish() -> None:
    """What was imported stays, and no search for garbage has to go through it again."""
    gc.freeze()
    gc.enable()
