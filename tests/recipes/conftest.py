"""An environment in which a dry run prints the same on every machine, and a stand-in for scontrol where Slurm is absent."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Two nodes that no name service knows: their addresses come from `scontrol show node`.
SCONTROL = """#!/bin/bash
case "$*" in
  "show hostnames gpu[07-08]") printf 'gpu07.invalid\\ngpu08.invalid\\n' ;;
  "show hostnames gpu07") printf 'gpu07.invalid\\n' ;;
  "-o show node gpu07.invalid") echo "NodeName=gpu07 NodeAddr=10.0.0.7 NodeHostName=gpu07" ;;
  "-o show node gpu08.invalid") echo "NodeName=gpu08 NodeAddr=10.0.0.8 NodeHostName=gpu08" ;;
  *) exit 1 ;;
esac
"""
OWNED = (
    "NPROC_PER_NODE",
    "NNODES",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "LAUNCHER",
    "MAX_RESTARTS",
    "RESUME",
    "TMPDIR",
    "PLAN",
)


@pytest.fixture
def kill_chain() -> Callable[..., str]:
    """`kill_chain(command, cwd, env, out, pattern)`: start a recipe, kill all of it once a file below `out` fits; what it printed."""

    def start_and_kill(command: list[str], cwd: Path, env: dict[str, str], out: Path, pattern: str) -> str:
        log = cwd / "killed.log"
        with log.open("w") as file:
            chain = subprocess.Popen(
                command, cwd=cwd, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            deadline = time.monotonic() + 600
            while not any(out.glob(pattern)) and time.monotonic() < deadline:
                assert chain.poll() is None, log.read_text()[-3000:]
                time.sleep(0.02)
            os.killpg(chain.pid, signal.SIGKILL)
            chain.wait()
        return log.read_text()

    return start_and_kill


@pytest.fixture
def dry(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """`dry(recipe, *words, **env)`: what DRY_RUN=1 prints, on a machine without GPUs."""
    for name in [name for name in os.environ if name in OWNED or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(SCONTROL)
    scontrol.chmod(0o755)
    fixed = {
        "DRY_RUN": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }

    def print_command(recipe: object, *words: object, **env: str):
        return run(["bash", recipe, *words], **{**fixed, **env})

    return print_command
