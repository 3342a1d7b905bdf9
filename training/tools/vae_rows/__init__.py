"""What `training/tools/vae.py` compares with: pythae_vae.py, the models of pythae; bare_vae.py, a bare PyTorch loop.

figures.py puts what was measured in words.
"""
