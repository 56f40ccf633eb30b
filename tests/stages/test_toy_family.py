"""A family that lives in tests/ (toy_family.py) goes through every command: one file, one line, no edit in drive_vlm.

On two busy cores: 158 s for training, merging and answering, 20 s for the feature cache, 3 s for the plan, without fixtures.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The one line that a family outside the package needs; inside, it is a line of MODELS.
LINE = "llava=tests.stages.toy_family:FAMILY"


@pytest.fixture
def toy(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.models.tiny.tiny import corpus_of

    monkeypatch.setenv("DRIVE_VLM_MODELS", LINE)
    monkeypatch.syspath_prepend(str(ROOT))
    # The commands and tools are processes of their own.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return importlib.import_module("tests.stages.toy_family").build_tiny(
        tmp_path / "toy", corpus_of(JsonlFile(world.train))
    )


@pytest.mark.slow
def test_it_trains_under_zero_2_and_3_packs_merges_and_answers(
    toy: Path, sft: Callable, inside: Callable, world: Any, tmp_path: Path
) -> None:
    """Rows with one picture, two and none on 2 ranks; packed with LoRA under ZeRO-2, whole with sharded weights under ZeRO-3."""
    flags = ("--model", toy, "--max_steps", 3)
    adapter = ("--packing", "true", "--lora_rank", 4)
    two = sft(tmp_path / "two", *flags, *adapter, "--deepspeed", "zero2", launcher="torchrun")
    three = sft(tmp_path / "three", *flags, "--deepspeed", world.zero3, launcher="torchrun")
    for run in (two, three):
        assert len(run.curve()) == 3 and run.curve()[-1] < run.curve()[0]
    inside("merge", "--checkpoint", two.out, "--out", tmp_path / "merged")
    words = ("--data", world.eval, "--limit", 3, "--max_new_tokens", 4)
    for model in (tmp_path / "merged", three.out):
        inside("generate", "--model", model, *words, "--out", tmp_path / f"{model.name}.jsonl")
        assert len((tmp_path / f"{model.name}.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_features_are_cached_and_trained_from(toy: Path, sft: Callable, world: Any, tmp_path: Path) -> None:
    """The feature cache gives the curve of the pixels."""
    words = ("--model", toy, "--data", world.train, "--stored", "float32", "--out", tmp_path / "cache")
    tool = [sys.executable, ROOT / "tools/cache_features.py", *words]
    subprocess.run(list(map(str, tool)), check=True, capture_output=True, cwd=ROOT, timeout=300)
    flags = ("--model", toy, "--max_steps", 2, "--use_cpu", "true")
    pixels = sft(tmp_path / "pixels", *flags)
    features = sft(tmp_path / "features", *flags, "--feature_cache", tmp_path / "cache")
    assert features.curve() == pytest.approx(pixels.curve(), abs=1e-5)


def test_it_is_planned(toy: Path, world: Any, capsys: pytest.CaptureFixture) -> None:
    """The plan counts the weights that load_family loads, and the tokens that the encoder makes."""
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family, load_processor
    from drive_vlm.plan.command import main

    main(["sft", "--model", str(toy), "--data", str(world.train), "--json", "true", "--output_dir", "out"])
    plan = json.loads(capsys.readouterr().out)
    family = load_family(ModelConfig(model=str(toy)), torch.float32)
    total = sum(weight.numel() for weight in family.model.parameters())
    assert plan["parameters"]["all"]["total"] == total
    # What is not known of it is not counted in silence.
    assert "its projector keeps for the backward pass is a guess" in plan["model"]["note"]
    vision = load_processor(ModelConfig(model=str(toy))).vision
    assert vision is not None and vision.tiling.tokens(vision.layout(720, 1280, 1, None)) == 16 == len(
        vision.image_ids(1)
    )
