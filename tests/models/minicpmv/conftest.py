"""The golden data of MiniCPM-Llama3-V-2_5 and its tiny model."""

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
