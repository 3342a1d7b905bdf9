"""Images without loss, with a VAE: content of kind `LOSSLESS_IMAGES`.

lossless_files.py goes from images to a file and back, over vae_image_codec.py (what the file holds), image_plan.py
(what a decoder must know), vae_networks.py (what the networks say), lattice.py and pixel_symbols.py (latents and
pixels as symbols) and stack_coder.py (these as bits).
"""
