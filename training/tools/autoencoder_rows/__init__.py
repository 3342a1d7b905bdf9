"""The rows of `training/tools/autoencoder.py`: each file has what measures some of them, and their tables.

reconstruction.py has `start` and `reduction`, over reduction.py (principal components and nearest neighbors).
one_class.py finds anomalies where one class is normal, beside the methods of baselines.py. lossy_images.py,
lossless_images.py, beside opponents.py, and texts.py have the files of `hfgen compress`, over models.py, which says
which models are measured.
"""
