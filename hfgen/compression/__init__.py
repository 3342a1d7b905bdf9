"""Compression with hfgen's models: text without loss, with a GPT, and images with a codec, or without loss with a VAE.

    compress("book.txt", "book.txt.hfz", model="me/gpt")
    decompress("book.txt.hfz")          # book.txt, byte for byte
    compress_images(["a.jpg", "b.png"], "photos.hfz", model="me/codec", quality=0.5)
    decompress("photos.hfz")            # a folder with a.png and b.png
    compress_lossless(["scans"], "scans.hfz", model="me/ladder-vae")
    describe("book.txt.hfz")            # model, sizes, checksums

FORMAT.md describes a `.hfz` file byte by byte. Each folder has what belongs to one kind of content: text/, lossy/ and
lossless/, whose docstrings name their files. Beside them is what they share. files.py goes from file to file and
chooses among them. container.py is what every such file has, and identity.py says which model it needs.
entropy_coder.py turns symbols into bits, logit_levels.py makes the numbers of a network exact, and self_test.py tells
machines apart. new_files.py lets files appear whole or not at all.
"""

from .files import compress_files, decompress, describe
from .lossless.lossless_files import compress_lossless
from .lossy.image_files import compress_images
from .text.text_files import compress


__all__ = ["compress", "compress_files", "compress_images", "compress_lossless", "decompress", "describe"]
