"""Imported once by the server that tiny runs are forked from."""

import accelerate.tracking  # noqa: F401
import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import sklearn.datasets  # noqa: F401

import training.train_autoencoder
import training.train_gan
import training.train_gpt
import training.train_vae  # noqa: F401
