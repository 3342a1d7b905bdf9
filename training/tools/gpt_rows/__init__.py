"""The rows of `training/tools/gpt.py`.

race.py trains to a loss and takes the time, beside bare_gpt.py, the usual small GPT in a bare PyTorch loop.
generation.py measures how fast a text is written. figures.py puts what was measured in words.
"""
