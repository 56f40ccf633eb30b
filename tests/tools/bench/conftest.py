"""What the tests of the benchmarks share."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[3] / "tools" / "bench"


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], ModuleType]]:
    """`load("bench_sft")`: the tool as a module; the files next to it can be imported, as when it is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module


@pytest.fixture
def bench(run: Callable, tmp_path: Path) -> Callable[..., Any]:
    """`bench(name, *flags, timeout=300) -> (content of --json, text)`: the command; its work folder is tmp_path/work."""

    def start(name: str, *flags: object, timeout: float = 300) -> Any:
        out = tmp_path / "bench.json"
        words = [sys.executable, BENCH / f"{name}.py", *flags]
        done = run([*words, "--json", out, "--work", tmp_path / "work"], timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads(out.read_text())
        assert {"machine", "versions", "settings", "load_average"} <= set(result)
        return result, done.stdout

    return start


@pytest.fixture
def refused(run: Callable) -> Callable[..., str]:
    """`refused(name, *flags) -> the one line of the error`."""

    def start(name: str, *flags: object) -> str:
        done = run([sys.executable, BENCH / f"{name}.py", *flags])
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    return start
