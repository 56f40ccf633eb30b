"""What the tests of the synthesis steps' commands share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def _lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def synth_step(run_here: Callable, tmp_path: Path) -> Callable[..., Any]:
    """`synth_step("detect", "--data", ...)`: the lines of tmp_path/detect.jsonl and the audit; with `code=2` the one line of the error."""

    def start(name: str, *words: object, code: int = 0, out: str | None = None) -> Any:
        path = tmp_path / (out or f"{name}.jsonl")
        done = run_here(f"tools/synth_{name}.py", *words, "--out", path)
        assert done.returncode == code, done.stdout + done.stderr
        if code:
            assert "Traceback" not in done.stderr
            return next(line for line in done.stderr.splitlines() if "error: " in line)
        return _lines_of(path), json.loads(path.with_name(f"{path.name}.audit.json").read_text())

    return start
