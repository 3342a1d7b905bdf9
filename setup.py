"""hfgen: the classic generative models in the Hugging Face world."""

import re
from pathlib import Path

from setuptools import setup


HERE = Path(__file__).parent
TRAINING = ("config", "data", "checkpoint", "distributed", "evaluation", "output", "tools")
# What training needs beside the models.
TRAINING_REQUIRES = [
    "accelerate>=1.12,<2",
    "datasets>=4.4,<6",
    "matplotlib>=3.8",
    "pyyaml>=6.0",
    "scikit-learn>=1.4",
    "tqdm>=4.66",
]

setup(
    name="hfgen",
    version=re.search(r'__version__ = "(.+?)"', (HERE / "hfgen" / "__init__.py").read_text(encoding="utf-8"))[1],
    description="Auto-Encoder, VAE, GAN and GPT as ordinary Hugging Face models, trained well in a minute.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        "hfgen",
        "hfgen.models",
        "hfgen.model_cards",
        "hfgen.training",
        *(f"hfgen.training.{name}" for name in TRAINING),
    ],
    # Card templates and training code are at the top level of the repository, where people look for them.
    package_dir={"hfgen.model_cards": "model_cards", "hfgen.training": "training"},
    package_data={
        "hfgen.model_cards": ["template_*.md"],
        "hfgen.training": ["recipes/*.yaml", "slurm.sbatch", "README.md"],
    },
    install_requires=[
        # The upper bound keeps an install from pulling CUDA builds of several GB where a CPU build is at hand.
        "torch>=2.11,<2.14",
        # 5.17 asks for torchvision to import AutoImageProcessor.
        "transformers>=5.18,<6",
        "huggingface_hub>=1.20,<3",
        "safetensors>=0.6",
        "numpy>=1.26",
        "pillow>=10.4",
        "jinja2>=3.1",
    ],
    entry_points={"console_scripts": ["hfgen=hfgen.cli:main"]},
    extras_require={
        "training": TRAINING_REQUIRES,
        "diffusers": ["diffusers>=0.36,<1"],
        "test": [
            *TRAINING_REQUIRES,
            "diffusers>=0.36,<1",
            "hypothesis>=6.100",
            "mypy>=1.15",
            "pytest>=8.2",
            "ruff>=0.12",
            "setuptools>=77",
            "tensorboard>=2.16",
            "types-pyyaml",
            "types-tqdm",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
