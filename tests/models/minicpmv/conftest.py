"""The golden data of MiniCPM-Llama3-V-2_5 and its tiny model."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drive_vlm.models.minicpmv.family import register


@pytest.fixture(scope="session")
def golden(kit: Path) -> Path:
    """The folder of golden data; the test is skipped where the kit is absent."""
    return kit.parent / "golden" / "minicpm_v_2_5"


@pytest.fixture(scope="session")
def recorded(golden: Path) -> Callable[[str], dict[str, torch.Tensor]]:
    return lambda name: load_file(golden / f"{name}.safetensors")


@pytest.fixture
def golden_model(golden: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    register()
    model = AutoModelForImageTextToText.from_pretrained(golden, dtype=torch.float32, image_token_id=3)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_2_6(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from drive_vlm.models.tiny.minicpmv import build_tiny_minicpmv

    return build_tiny_minicpmv(tmp_path_factory.mktemp("tiny") / "minicpmv_2_6", ["the car stops"] * 3, version="2.6")


@pytest.fixture(scope="session")
def published_names() -> Callable[[Any], dict[str, str]]:
    """{name on disk: name in the module} of a model's parameters."""
    from drive_vlm.models.minicpmv.modeling import RENAMINGS

    back = [("^" + re.escape(ours), source.strip("^").replace("\\", "")) for source, ours in RENAMINGS]

    def names_of(model: Any) -> dict[str, str]:
        names = {}
        for name, _ in model.named_parameters():
            pattern, theirs = next(pair for pair in back if re.match(pair[0], name))
            names[re.sub(pattern, theirs, name)] = name
        return names

    return names_of
