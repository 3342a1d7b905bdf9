"""Settings of every test."""

import os


# Three workers of pytest share two cores, and so do the processes that they start: more threads would only spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
