"""Every layout in ds_configs trains on two ranks and saves a model; zero2 and zero3 are held to one rank's curve elsewhere."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.supports("internvl sft zero1", "internvl sft zero2 offload", "internvl sft zero3 offload")
def test_the_layouts_learn_the_same(sft: Callable, fresh: Any) -> None:
    curves = {}
    for layout in ("zero1", "zero2_offload", "zero3_offload"):
        run = sft(fresh(layout), "--deepspeed", layout, "--max_steps", 3, launcher="torchrun", timeout=300)
        assert (run.out / "model.safetensors").is_file(), layout
        curves[layout] = run.curve()
    assert len(curves["zero1"]) == 3
    assert curves["zero2_offload"] == pytest.approx(curves["zero1"], abs=1e-4)
    assert curves["zero3_offload"] == pytest.approx(curves["zero1"], abs=1e-4)
