"""What the tests of the tools share."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
# Fixtures of the tests of clarify_eval.
from clarify_rows import evaluate, world  # noqa: F401


@pytest.fixture
def tool_with(run_here: Callable) -> Callable[..., Callable[..., Any]]:
    """`tool_with("tools/x.py", *flags)(*more, ok=True)`: the finished tool, which has succeeded, or with `ok=False` has not."""

    def of(tool: str, *flags: object) -> Callable[..., Any]:
        def start(*more: object, ok: bool = True) -> Any:
            done = run_here(tool, *flags, *more)
            assert (done.returncode == 0) is ok, done.stderr
            return done

        return start

    return of


@pytest.fixture
def evaluator_with(tool_with: Callable, tmp_path: Path) -> Callable[..., Callable[..., Any]]:
    """`evaluator_with("tools/x_eval.py", *flags)(*more)`: (what --json holds, what is printed); with `ok=False` stderr."""

    def of(tool: str, *flags: object) -> Callable[..., Any]:
        out = tmp_path / "scores.json"
        started = tool_with(tool, *flags, "--json", out)

        def start(*more: object, ok: bool = True) -> Any:
            done = started(*more, ok=ok)
            return (json.loads(out.read_text()), done.stdout) if ok else done.stderr

        return start

    return of


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
