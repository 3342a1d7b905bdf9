"""Where datasets come from, and how they are opened.

splits.py           opens a dataset by name, chooses the evaluation split, or holds one out
built_in.py         `digits` and `python-docs`, which need no network, and `binarized-mnist`
binarized_mnist.py  Larochelle's binarization of MNIST, from its text files
downloads.py        a file at a URL, once and whole, in the cache
local_files.py      what a path on this machine holds: files and folders of the usual kinds
layout.py           what names of files and folders say: split, class, mask
image_folder.py     a folder of images as a dataset, with the classes of its folders, and masks beside images
corpus.py           text documents, read in pieces
cached_tables.py    the cache of what is computed from a dataset once
"""
