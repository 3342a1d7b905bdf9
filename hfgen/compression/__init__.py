"""Compression with hfgen's models: text without loss, with a GPT, and images with a codec, or without loss with a VAE.

    compress("book.txt", "book.txt.hfz", model="me/gpt")
    decompress("book.txt.hfz")          # book.txt, byte for byte
    compress_images(["a.jpg", "b.png"], "photos.hfz", model="me/codec", quality=0.5)
    decompress("photos.hfz")            # a folder with a.png and b.png
    compress_lossless(["scans"], "scans.hfz", model="me/ladder-vae")
    describe("book.txt.hfz")            # model, sizes, checksums

FORMAT.md describes a `.hfz` file byte by byte. The modules, from the outside in: files.py goes from file to file,
container.py is what every such file has, and identity.py says which model it needs. Each kind of content has a codec.
Text: gpt_text_codec.py, over text_tokens.py (a text as tokens), gpt_predictor.py (what the network expects),
logit_levels.py (its numbers made exact) and entropy_coder.py (symbols as bits). Images: image_codec.py, which
image_files.py reads and writes. Lossless images: vae_image_codec.py, which lossless_files.py reads and writes, over
image_plan.py (what a decoder must know), vae_networks.py (what the networks say), lattice.py and pixel_symbols.py
(latents and pixels as symbols) and stack_coder.py (these as bits). self_test.py tells machines apart. new_files.py
lets files appear whole or not at all.
"""

from .files import compress, compress_files, decompress, describe
from .image_files import compress_images
from .lossless_files import compress_lossless


__all__ = ["compress", "compress_files", "compress_images", "compress_lossless", "decompress", "describe"]
