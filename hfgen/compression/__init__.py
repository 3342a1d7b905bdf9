"""Compression with hfgen's models: text without loss, with a GPT.

    compress("book.txt", "book.txt.hfz", model="me/gpt")
    decompress("book.txt.hfz")          # book.txt, byte for byte
    describe("book.txt.hfz")            # model, sizes, checksums

FORMAT.md describes a `.hfz` file byte by byte. The modules, from the outside in: files.py goes from file to file,
container.py is what every such file has, and identity.py says which model it needs. Each kind of content has a codec:
gpt_text_codec.py for text, over text_tokens.py (a text as tokens), gpt_predictor.py (what the network expects),
logit_levels.py (its numbers made exact) and entropy_coder.py (symbols as bits).
"""

from .files import compress, decompress, describe


__all__ = ["compress", "decompress", "describe"]
