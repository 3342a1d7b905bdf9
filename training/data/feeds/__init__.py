"""Which examples each step of each process sees, and how they are read.

batches.py        `Feed`, and which rows of a global batch belong to a process; the order of an epoch
indexed.py        feeds of indexed examples: in memory, mapped, or decoded by workers
mapped_tokens.py  the tokens of a corpus in a memory-mapped file
streams.py        the feed that reads while training, and resumes anywhere
workers.py        DataLoader workers: how many, and which signals they obey
"""
