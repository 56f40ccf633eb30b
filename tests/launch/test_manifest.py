import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from drive_vlm.launch.manifest import complete_manifest, git_state, start_manifest, versions


@dataclasses.dataclass
class _Facts:
    rate: float
    path: Path


def test_a_manifest_is_started_and_completed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    start_manifest(path, stage="sft", config=_Facts(0.5, Path("a/b")), data=(1, 2))
    started = json.loads(path.read_text())
    assert started["config"] == {"rate": 0.5, "path": "a/b"} and started["data"] == [1, 2]
    assert started["machine"]["cores"] >= 1 and started["command"] and started["started"] and "ended" not in started
    complete_manifest(path, peak_memory_gib=1.5)
    ended = json.loads(path.read_text())
    assert ended["peak_memory_gib"] == 1.5 and ended["ended"] and ended["stage"] == "sft"


def test_versions_name_what_decides_results() -> None:
    assert {"python", "torch", "transformers", "deepspeed"} <= set(versions())


def test_git_state_of_a_checkout_or_nothing() -> None:
    state = git_state()
    assert state is None or len(state["commit"]) == 40


def test_peak_memory_of_a_child_is_its_own() -> None:
    ballast = b"x" * (400 << 20)  # resident in this process, which the child must not report
    code = "from drive_vlm.launch.manifest import peak_resident_bytes; print(peak_resident_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(ballast) == 400 << 20 and int(done.stdout) < 200 << 20
