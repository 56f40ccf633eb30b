"""tools/bench/bench_features.py, small: both sides train the same, and the report holds what a reader needs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "bench" / "bench_features.py"


@pytest.mark.slow
def test_both_sides_train_the_same(run: Callable, tmp_path: Path) -> None:
    words = ["--clips", 4, "--num_frames", 2, "--steps", 3, "--image_size", 48, "--text_width", 64, "--text_layers", 1]
    words += ["--tower_width", 64, "--tower_heads", 2, "--tower_layers", 2, "--stored", "float32"]
    done = run([sys.executable, TOOL, *words, "--json", tmp_path / "bench.json"], timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "bench.json").read_text())
    rates = result["samples_per_second"]
    assert result["ratio"] == pytest.approx(rates["cache"] / rates["pixels"])
    assert result["largest_loss_difference"] < 1e-5
    assert result["cache"]["bytes"] == 4 * 2 * 9 * 64 * 4, "clips x frames x patches x width x float32"
    assert result["machine"]["cores"] and result["versions"]["torch"] and len(result["runs"]["cache"][0]["losses"]) == 3
    assert "ratio" in done.stdout and "patches a frame" in done.stdout


def test_too_few_rows_are_told(run: Callable) -> None:
    done = run([sys.executable, TOOL, "--steps", 1])
    assert done.returncode == 2 and "--steps must be at least 2" in done.stderr
