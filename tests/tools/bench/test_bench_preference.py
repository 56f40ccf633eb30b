"""tools/bench/bench_preference.py with tiny settings: every side runs; no time is asserted."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "bench" / "bench_preference.py"
TINY = ("--image_size", 56, "--patch_size", 14, "--hidden_size", 32, "--text_layers", 1, "--vision_layers", 1)


@pytest.mark.slow
def test_every_side_runs(run: Callable, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    flags = (*TINY, "--pairs", 16, "--batch_size", 4, "--steps", 2, "--repeats", 1)
    done = run([sys.executable, TOOL, *flags, "--json", out, "--work", tmp_path / "work"], timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["speed_up"]["live"] == 1 and result["speed_up"]["packed"] > 0
    assert result["reference"]["computed"] == 16
    for side in ("live", "cached", "packed"):
        assert result[side]["pairs_per_second"] > 0 and result[side]["peak_memory_gib"] > 0.1
        facts = json.loads((tmp_path / "work" / f"{side}0" / "run.json").read_text())
        assert facts["reference"]["kind"] == ("live" if side == "live" else "cached")
    assert json.loads((tmp_path / "work" / "packed0" / "run.json").read_text())["config"]["data"]["packing"]


def test_model_and_data_belong_together(run: Callable, tmp_path: Path) -> None:
    done = run([sys.executable, TOOL, "--model", tmp_path])
    assert done.returncode == 2 and "--model and --data belong together" in done.stderr
