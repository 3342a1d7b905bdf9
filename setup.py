"""hfgen: the classic generative models in the Hugging Face world."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "hfgen" / "__init__.py").read_text(encoding="utf-8"))[1]

TRAINING = [
    "accelerate>=1.12,<2",
    "datasets>=4.4,<6",
    "matplotlib>=3.8",
    "psutil>=5.9",
    "scikit-learn>=1.6",
    "tqdm>=4.66",
]
EMBEDDING = ["datasets>=4.4,<6", "scikit-learn>=1.6", "tqdm>=4.66"]
DIFFUSERS = ["diffusers>=0.36,<1"]
COMPRESSION = ["constriction>=0.5,<0.6"]  # another minor version may write other bits
DOCS = ["pdoc>=16,<17"]
GGUF = ["gguf>=0.19,<1"]
ONNX = ["onnx>=1.18,<2", "onnxruntime>=1.22,<2", "onnxscript>=0.6,<1"]
TEST = [
    *TRAINING,
    *DIFFUSERS,
    *COMPRESSION,
    *GGUF,
    *DOCS,
    *ONNX,
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "mypy>=1.15",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "peft>=0.18",
    "playwright>=1.50",
    "pytest>=8.2",
    "pytest-xdist>=3.5",
    "ruff>=0.12",
    "setuptools>=77",
    "tensorboard>=2.16",
    "types-pyyaml",
    "types-tqdm",
]

# Card templates and training scripts are at the top level of the repository, where people look for them, and inside
# the package once installed.
ELSEWHERE = {"hfgen.model_cards": "model_cards"}
for folder in sorted({path.parent for path in (HERE / "training").rglob("__init__.py")}):
    relative = folder.relative_to(HERE)
    ELSEWHERE[".".join(("hfgen", *relative.parts))] = relative.as_posix()

setup(
    name="hfgen",
    version=VERSION,
    description="Auto-Encoder, VAE, GAN and GPT as ordinary Hugging Face models, trained well in minutes.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(str(HERE), include=["hfgen", "hfgen.*"]), *ELSEWHERE],
    package_dir=ELSEWHERE,
    package_data={
        "hfgen": ["look.css"],
        "hfgen.compression": ["FORMAT.md"],
        "hfgen.demo": ["page/*"],
        "hfgen.model_cards": ["template_*.md", "notebook.md", "*/results.json"],
        "hfgen.training": ["notebooks/*.ipynb", "recipes/*.yaml", "slurm.sbatch", "README.md"],
        "hfgen.training.output.report": ["report.html.jinja", "report.css", "report.js"],
    },
    install_requires=[
        # The upper bound keeps pip from replacing an installed CPU build by CUDA builds of several GB.
        "torch>=2.11,<2.14",
        # 5.17 needs torchvision to import AutoImageProcessor.
        "transformers>=5.18,<6",
        "huggingface_hub>=1.20,<3",
        "safetensors>=0.6",
        "numpy>=1.26",
        "pillow>=10.4",
        "jinja2>=3.1",
        "pyyaml>=6.0",
    ],
    entry_points={"console_scripts": ["hfgen=hfgen.cli:main"]},
    extras_require={
        "training": TRAINING,
        "embedding": EMBEDDING,
        "diffusers": DIFFUSERS,
        "compression": COMPRESSION,
        "docs": DOCS,
        "gguf": GGUF,
        "onnx": ONNX,
        "test": TEST,
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
