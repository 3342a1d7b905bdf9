"""Text without loss, with a GPT: content of kind `TEXT`.

text_files.py goes from a text to a file and back, over gpt_text_codec.py (what the file holds), text_tokens.py (a text
as tokens) and gpt_predictor.py (what the network expects).
"""
