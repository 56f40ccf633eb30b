"""What all tests share: an environment without hub and GPU surprises, a small data set, a tiny model, the command line.

The data set and the model are built once for a whole test run: xdist workers share them through a file lock.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
KIT = ROOT.parent / "shared" / "kit"


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports torch or transformers; the processes that tests start inherit it."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    if shutil.which("nvidia-smi") is None:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if not hasattr(config, "workerinput"):  # workers of xdist inherit the folder of the process that started them
        cache = tempfile.mkdtemp(prefix="drive_vlm_cache_")
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))
        os.environ["DRIVE_VLM_CACHE"] = cache


def _build_once(factory: pytest.TempPathFactory, name: str, *words: object) -> Path:
    """`python WORDS --out FOLDER`, run by the first worker that asks; the folder is kept for the whole test run."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = shared / name
    with FileLock(f"{out}.lock"):
        if not out.exists():
            part = shared / f"{name}.part"
            subprocess.run([sys.executable, *map(str, words), "--out", part], check=True, cwd=ROOT, timeout=300)
            part.rename(out)
    return out


@pytest.fixture(scope="session")
def synthetic_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built data set: 60 scenes of 64 x 64 pixels and 4 clips of 4 frames. Read only: copy what a test changes."""
    flags = ("--scenes", 60, "--clips", 4, "--num_frames", 4, "--size", 64, "--workers", 1)
    return _build_once(tmp_path_factory, "synthetic_data", "tools/build_synthetic.py", *flags)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """A tiny random InternVL whose tokenizer knows the words of `synthetic_data`: 56 pixels and 16 tokens a tile, 4 tiles."""
    corpus = sorted(synthetic_data.glob("*train.jsonl"))
    return _build_once(
        tmp_path_factory, "tiny_model", "tools/build_tiny_model.py", "--image_size", 56, "--corpus", *corpus
    )


@pytest.fixture(scope="session")
def kit() -> Path:
    """The kit of real pictures and models beside the project; the test is skipped where it is absent."""
    if not KIT.is_dir():
        pytest.skip("the kit of real pictures and models is not beside the project (../shared/kit)")
    return KIT


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A ChatServer (tests/chat_server.py) that answers "OK" until the test gives it another `answer` or `faults`."""
    monkeypatch.setenv("NO_PROXY", "*")
    spec = importlib.util.spec_from_file_location("tests_chat_server", Path(__file__).with_name("chat_server.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.ChatServer(lambda body: "OK")
    yield server
    server.stop()


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on, for the rendezvous of one test's ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run([sys.executable, "tools/x.py", ...], timeout=120, **env)`: a finished process with its text; any exit code."""

    def start(
        words: list[object], timeout: float = 120, cwd: Path = ROOT, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, words)),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
            env=os.environ | env,
        )

    return start
