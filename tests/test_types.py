"""The annotations hold: mypy over the package and the tools, with the settings of pyproject.toml."""

import sys
from collections.abc import Callable

import pytest


@pytest.mark.slow
def test_mypy_is_content(run: Callable) -> None:
    done = run([sys.executable, "-m", "mypy", "drive_vlm", "tools"], timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
