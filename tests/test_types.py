"""Every annotation of the package and the tools holds; mypy's settings stand in pyproject.toml."""

import sys
from collections.abc import Callable

import pytest


@pytest.mark.slow
def test_mypy_is_clean(run: Callable) -> None:
    done = run([sys.executable, "-m", "mypy", "drive_vlm", "tools"], timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
