"""The words around the pictures and texts of a page."""

from typing import NamedTuple


class Words(NamedTuple):
    """What stands above a picture, below it and in its place."""

    title: str
    caption: str
    alt: str


# What `hfgen.models.Architecture.samples` says of a model -> words for the samples of its run.
SAMPLES = {
    "images": Words(
        "Samples",
        "Drawn by the model from the same random numbers each time, and not selected.",
        "Images drawn by the model",
    ),
    "text": Words("Samples", "Written by the model, starting from nothing, and not selected.", "Text by the model"),
}
DECODED = Words(
    "Reconstructions",
    "Rows of images that the model was not trained on, each above a row of what the model made of them.",
    "Images and their reconstructions",
)
# The name of another sample, as in step-000500-NAME.png -> words
PICTURES = {
    "reconstructions": Words(
        "Reconstructions",
        "Rows of images that the model was not trained on, each above a row of what comes back when they are encoded "
        "and decoded.",
        "Rows of images above rows of their reconstructions",
    ),
    "map": Words(
        "Map of the latents",
        "A point for each held-out image, near those with similar latents. A color is a class, if there are classes.",
        "Points in the plane, one for each image",
    ),
    "traversal": Words(
        "Directions of the latents",
        "Each row moves one image along one direction of the latents, the strongest direction first, from −3 to +3 "
        "standard deviations.",
        "Rows of images that change gradually from left to right",
    ),
    "interpolation": Words(
        "From one image to another",
        "Real images at both ends of each row, and between them the path from the latents of one to those of the "
        "other, decoded.",
        "Rows of images that turn into each other",
    ),
    "anomalies": Words(
        "Anomalies",
        "The strangest images and the most normal ones, each row above the same images, red where the model finds "
        "them unusual.",
        "Images above the same images with red areas",
    ),
    "rate-distortion": Words(
        "Rate and distortion",
        "The quality that a number of bits buys, beside other codecs: higher and further left is better.",
        "Peak signal-to-noise ratio over bits per pixel, a curve for each codec",
    ),
}
