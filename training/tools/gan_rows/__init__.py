"""The rows of `training/tools/gan.py`.

on_mnist.py trains what the rows on MNIST compare, and bare_dcgan.py is the bare PyTorch loop beside them. step_cost.py
has the price of the gradient penalty. variations.py trains on many kinds of images, and sample_check.py measures what
came of it. stacked_digits.py counts the modes of stacked MNIST; image_sets.py writes the datasets that nobody
publishes. course.py looks at runs that stop by themselves or go wrong. figures.py puts what was measured in words.
"""
