"""One real Slurm of two nodes for the tests of this folder, and slurm/submit.sh on it."""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _load_cluster() -> Any:
    spec = importlib.util.spec_from_file_location("slurm_test_cluster", Path(__file__).with_name("cluster.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Skipped where Slurm is not installed; with DRIVE_VLM_REQUIRE_SLURM=1 (CI) that is a failure."""
    module = _load_cluster()
    if missing := module.missing_programs():
        words = f"Slurm is not installed ({', '.join(missing)}): apt-get install {module.PACKAGES}"
        pytest.fail(words) if os.environ.get("DRIVE_VLM_REQUIRE_SLURM") else pytest.skip(words)
    root = Path(tempfile.mkdtemp(prefix="slurm_", dir="/tmp"))  # munge's socket needs a short path
    try:
        with module.Cluster(root) as running:
            yield running
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def submit(cluster: Any, run: Callable, tmp_path: Path) -> Callable[..., Any]:
    """`submit(recipe, *options, flags=(...), parsable=True, **env)`: the job id, or the finished process of submit.sh."""
    env = {name: value for name, value in cluster.env.items() if name not in os.environ or os.environ[name] != value}
    env["PATH"] = f"{Path(sys.executable).parent}:{cluster.env['PATH']}"

    def start(recipe: object, *options: object, flags: tuple[object, ...] = (), parsable: bool = True, **more: str):
        words = ["bash", ROOT / "slurm/submit.sh", recipe, "--gpus-per-node", 0, "--cpus-per-task", 2, *options]
        done = run([*words, *(["--parsable"] if parsable else []), "--", *flags], cwd=tmp_path, **env | more)
        if not parsable:
            return done
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return start


@pytest.fixture
def log(tmp_path: Path) -> Callable[[int], str]:
    """The text of a job's log."""

    def read(job: int) -> str:
        return "".join(path.read_text() for path in (tmp_path / "runs/slurm").glob(f"*-{job}.out"))

    return read
