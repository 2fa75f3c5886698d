"""Packaging. Bounds are lower bounds only: Python 3.11 and 3.12 resolve to different jax and flax releases."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "([^"]+)"', (here / "specialize/__init__.py").read_text()).group(1)

torch = ["torch>=2.4", "transformers>=4.56", "peft>=0.17"]
tensorboard = ["tensorboardX>=2.6.4"]
serve = [
    "fastapi>=0.115",
    "prometheus-client>=0.21",
    "python-multipart>=0.0.18",
    "uvicorn>=0.34",
]
sweep = ["optuna>=4"]

test = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.7",
    "beartype>=0.22",
    "last-asr>=0.0.4",  # an oracle for the transducer loss
    "tensorboard>=2.18",
    "espeakng-loader==0.2.4",  # speaks the synthetic corpus, which another version says a little differently
    "flask-cors>=5",  # of moto's server
    "gcp-storage-emulator>=2024.8",  # a Google Cloud Storage on loopback, for a store in a bucket
    "gcsfs>=2024.10",
    "httpx>=0.27",
    "jsonschema>=4.20",  # the schema that job files are to satisfy
    "moto[s3]>=5",  # an S3 on loopback, likewise
    "openai>=1.60",  # the client that the server is to satisfy
    "ruff>=0.14",
    "s3fs>=2024.10",
    "selenium>=4.25",  # the page, where Chromium and its driver are
    "pyright>=1.1.400",
    *serve,
    *sweep,
    *tensorboard,
]

tf = [
    "pydub>=0.25.1",  # with which TFDS decodes audio
    "tensorflow>=2.20",
]

setup(
    name="specialize",
    version=version,
    description="One frozen speech recogniser, and a small Submodel for each person, trained many at a time.",
    long_description=(here / "README.md").read_text() if (here / "README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["specialize", "specialize.*", "launch", "launch.*"]),
    package_data={
        "launch": ["py.typed"],
        "specialize": ["py.typed"],
        "specialize.score": ["*.jinja"],
        "specialize.serve": ["page/*"],
        "specialize.sweep": ["*.jinja"],
        "specialize.embedded": ["README.md", "*.json", "*.jsonl", "audio/**", "base/**"],
    },
    python_requires=">=3.11",
    install_requires=[
        "array_record>=0.8",
        "etils[epath]>=1.12",
        "flatbuffers>=24.3",  # jax.export writes programs with it
        "flax>=0.12",
        "grain>=0.2.15",
        "huggingface_hub>=0.34",
        "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
        "jax>=0.10",
        "jaxtyping>=0.3.4",
        "jinja2>=3.1",
        "jiwer>=4.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "pyyaml>=6",
        "rich>=14",
        "safetensors>=0.6",
        "soundfile>=0.13",
        "soxr>=1.0",
        "tensorflow-datasets>=4.9.9",
        "tensorstore>=0.1.70",
        "tokenizers>=0.22",
        "tyro>=0.9.30",
        "whisper-normalizer>=0.1.12",
        "zstandard>=0.23",
    ],
    extras_require={
        "gpu": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "bucket": ["gcsfs>=2024.10", "s3fs>=2024.10"],
        "serve": serve,
        "sweep": sweep,
        "tensorboard": tensorboard,
        "wandb": ["wandb>=0.21"],
        "tf": tf,
        "torch": torch,
        "test": test,
        "dev": [*test, *torch, "pre-commit>=4"],
    },
    entry_points={"console_scripts": ["specialize = specialize.cli:main"]},
    classifiers=[
        "Intended Audience :: Developers",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)
