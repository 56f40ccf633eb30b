"""The memory of sampling, scoring and learning in `plan grpo` against a real run of a small model, through the tool that publishes the error."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.fresh("its memory is measured")
def test_planned_memory_is_near_the_measured(run: Callable, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    words = ["--cases", "lora", "--hidden_size", 256, "--completion", 48, "--work", tmp_path, "--json", out]
    done = run([sys.executable, "tools/bench_plan_grpo.py", *words], timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(out.read_text())["cases"]
    print(done.stdout)
    for phase in ("sampling", "scoring", "learning"):
        beside = [row[side][phase] - row[side]["static"] for side in ("predicted", "measured")]
        assert beside[0] == pytest.approx(beside[1], rel=0.4), (
            phase
        )  # of what a phase adds, without what lies there anyway
        assert abs(row["error"][phase]) < 0.1
