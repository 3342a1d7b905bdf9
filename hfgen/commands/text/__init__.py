"""Behind the command that writes text: model.py (a language model and its tokenizer), stream.py (what is on the screen
while it writes)."""
