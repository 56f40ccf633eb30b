"""A request to stop between and within the commands of a recipe, such as the steps of a chain of rounds."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
set -euo pipefail
source {root}/recipes/_launch.sh
run touch first
{between}
run touch second
launch {command}
run touch third
"""
# Stands for `python -m drive_vlm`: says which command it is, and knows the stages.
PYTHON = """#!/usr/bin/env bash
case "$3" in stages) echo sft ;; *) touch "launched-$3" ;; esac
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where recipes run; `python` in it trains nothing."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("DRIVE_VLM_CONTROL_DIR", str(tmp_path / "control"))
    monkeypatch.setenv("NPROC_PER_NODE", "1")
    (tmp_path / "control").mkdir()
    return tmp_path


def start(folder: Path, between: str = ":", command: str = "generate") -> subprocess.Popen:
    script = RECIPE.format(root=ROOT, between=between, command=command)
    return subprocess.Popen(["bash", "-c", script], cwd=folder, stderr=subprocess.PIPE, text=True)


def made(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("between", "command", "done"),
    [
        (":", "generate", ["first", "launched-generate", "second", "third"]),
        ("touch control/stop", "generate", ["first"]),
        ("echo 'time limit' >control/stop", "sft", ["first"]),
        # A training begins, and saves at its first step.
        ("run() { touch control/stop; }", "sft", ["first", "launched-sft"]),
        ("run() { touch control/stop; }", "generate", ["first"]),
    ],
)
def test_the_next_command_does_not_begin(recipe: Path, between: str, command: str, done: list[str]) -> None:
    """It would take the request for one that is older than itself."""
    process = start(recipe, between, command)
    _, said = process.communicate(timeout=60)
    assert made(recipe) == done, said
    if "control/stop" not in between:
        assert process.returncode == 0
    elif done == ["first"]:
        assert process.returncode == 1 and "stopped on request" in said and "give the same command again" in said
        assert not (recipe / "control" / "stop").exists()


def test_bash_outlives_sigterm_until_its_command_has_ended(recipe: Path) -> None:
    """A judge finishes the questions that are paid for; a Slurm step would end with its shell."""
    slow = "run bash -c 'trap \"sleep 0.5; touch kept; exit 1\" TERM; touch ready; while :; do sleep 0.05; done'"
    process = start(recipe, slow)
    end = time.monotonic() + 30
    while not (recipe / "ready").exists() and time.monotonic() < end:
        time.sleep(0.02)
    (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    for pid in (process.pid, child):
        os.kill(pid, signal.SIGTERM)
    assert process.wait(30) == 143
    assert made(recipe) == ["first", "kept", "ready"]
    assert process.stderr is not None
    process.stderr.close()
