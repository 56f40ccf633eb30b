"""The memory model against real training of a small model, through the tool that publishes the error."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", ["one_process", "zero2_2ranks", "zero3_2ranks"])
def test_planned_memory_is_near_the_measured(run: Callable, tmp_path: Path, case: str) -> None:
    out = tmp_path / "bench.json"
    words = ["--cases", case, "--hidden_size", 256, "--max_length", 256, "--work", tmp_path, "--json", out]
    done = run([sys.executable, "tools/bench_plan.py", *words], timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(out.read_text())["cases"]
    print(done.stdout)
    assert abs(row["error"]["static"]) < 0.1
    assert abs(row["error"]["peak"]) < 0.25


def test_an_unknown_case_is_refused(run: Callable) -> None:
    done = run([sys.executable, "tools/bench_plan.py", "--cases", "zero9"])
    assert done.returncode == 2 and "zero9: not known here" in done.stderr
