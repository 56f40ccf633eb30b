"""LoRA, bf16 and gradient checkpointing through the real command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "sft_curve.json"

pytestmark = pytest.mark.slow


@pytest.mark.supports("internvl sft lora")
def test_lora_trains_and_saves_only_the_adapter(sft: Callable, fresh: Callable, world: Any) -> None:
    out = fresh("lora")
    flags = ("--freeze", "vision_tower", "projector", "--lora_rank", 4, "--learning_rate", 1e-2)
    run = sft(out, *flags, "--save_strategy", "steps", "--save_steps", 8)
    assert run.curve()[-1] < run.curve()[0] - 0.1
    for folder in (out, out / "checkpoint-8"):
        assert (folder / "adapter_model.safetensors").stat().st_size < 200_000
        assert not (folder / "model.safetensors").exists()
    counts = json.loads((out / "run.json").read_text())["parameters"]
    assert 0 < counts["all"]["trainable"] == counts["language_model"]["trainable"] < counts["all"]["total"] / 10
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family

    family = load_family(ModelConfig(model=str(out)), torch.float32)
    adapted = [p for name, p in family.model.named_parameters() if "lora_B" in name]
    assert adapted and all(p.abs().sum() > 0 for p in adapted)


@pytest.mark.parametrize(
    ("flags", "launcher"), [((), "python"), (("--deepspeed", "zero2"), "torchrun")], ids=["plain", "zero2"]
)
def test_bf16_runs_on_a_cpu(sft: Callable, fresh: Callable, flags: tuple, launcher: str) -> None:
    run = sft(fresh("bf16"), "--bf16", *flags, launcher=launcher)
    golden = json.loads(GOLDEN.read_text())["loss"]
    assert run.curve() == pytest.approx(golden, abs=0.05)  # bf16 has 8 bits of mantissa
    assert run.curve() != pytest.approx(golden, abs=1e-6)  # and is really in use


def test_gradient_checkpointing_keeps_the_curve(sft: Callable, fresh: Callable) -> None:
    run = sft(fresh("checkpointing"), "--gradient_checkpointing", "--chunk_tokens", 7)
    golden = json.loads(GOLDEN.read_text())["loss"]
    assert run.curve() == pytest.approx(golden, abs=1e-3)


def test_evaluation_rows_are_evaluated_without_checkpoints(sft: Any, world: Any, tmp_path: Path) -> None:
    """70 rows, 16 a step: an epoch ends after step 5, the run in the middle of the second."""
    run = sft(tmp_path / "run", "--eval_data", world.eval, "--max_steps", 6, "--save_strategy", "no")
    assert [row["step"] for row in run.metrics if "eval_loss" in row] == [5, 6]
    assert not list(run.out.glob("checkpoint-*"))
