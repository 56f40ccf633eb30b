import importlib.metadata
import os
import time
from pathlib import Path

import pytest

from drive_vlm.doctor import hardware, software, storage
from drive_vlm.doctor.finding import Check, Finding, Setting
from drive_vlm.launch import machine

SETTING = Setting(Path("runs"))


def only(check: Check, setting: Setting = SETTING) -> Finding:
    (finding,) = check(setting)
    return finding


def test_versions_against_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "numpy<1",
        "pillow>=1",
        "torch>=2.6",
        "not-there>=3",
        "rich<1; extra == 'eval'",
        "absent; extra == 'eval'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found = {item.check: item for item in software.packages(SETTING)}
    assert {name: item.verdict for name, item in found.items()} == {
        "numpy": "fail",
        "not-there": "fail",
        "rich": "warn",
        "packages": "ok",
    }
    assert "pip install 'numpy<1'" in found["numpy"].todo and "torch 2." in found["packages"].seen


def test_the_ranges_are_those_of_the_installed_project() -> None:
    finding = only(software.packages)
    assert finding.verdict == "ok" and "all in the ranges" in finding.seen


def test_torch_and_torchvision_are_a_pair() -> None:
    assert only(software.torchvision_match).verdict == "ok"


def test_a_built_op_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "cpu_adam.so").touch()
    finding = only(software.deepspeed_ops)
    assert finding.seen.startswith("0.") and "built: cpu_adam" in finding.seen


def test_the_processor_line_says_whether_bf16_is_slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(hardware, "driver_gpus", lambda: [])
    monkeypatch.setattr(hardware, "cgroup_cores", lambda: None)
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512f\n")
    without = only(hardware.processors)
    assert without.verdict == "warn" and "no bf16 units" in without.seen and "several times slower" in without.todo
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512f avx512_bf16\n")
    assert only(hardware.processors).verdict == "ok" and "with bf16 units" in only(hardware.processors).seen
    # A GPU computes: what the processor knows decides nothing.
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2\n")
    monkeypatch.setattr(hardware, "driver_gpus", lambda: [["H200", "143771 MiB", "570.1"]])
    assert "slower" not in only(hardware.processors).todo


def test_gpus_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    monkeypatch.setattr(hardware, "driver_gpus", lambda: [["NVIDIA H200", "143771 MiB", "570.1"]] * 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert only(hardware.gpus).verdict == "fail" and "8 x NVIDIA H200" in only(hardware.gpus).seen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert only(hardware.gpus).verdict == "warn"


def test_the_file_system_of_a_path() -> None:
    assert storage.file_system(Path("/proc/self")) == "proc"
    assert storage.file_system(Path("/dev/shm")) == "tmpfs"


def test_a_disk_in_memory_is_warned_of(tmp_path: Path) -> None:
    finding = only(storage.output_directory, Setting(Path("/dev/shm/drive_vlm/not/there")))
    assert finding.verdict in ("warn", "fail") and finding.seen.startswith("/dev/shm: tmpfs")


def test_promises_of_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.broken_promises(tmp_path) == [] and list(tmp_path.iterdir()) == []

    def no_links(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert storage.broken_promises(tmp_path) == ["hard links"]


def test_a_file_in_the_place_of_the_directory_fails(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    assert only(storage.output_directory, Setting(tmp_path / "runs" / "a")).verdict == "fail"


def test_a_lock_that_an_aborted_compilation_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    verdicts = {item.check: item.verdict for item in storage.caches(SETTING)}
    assert verdicts["TORCH_EXTENSIONS_DIR"] == "ok", "a compilation may be running"
    os.utime(lock, (time.time() - 3600, time.time() - 3600))
    (finding,) = [item for item in storage.caches(SETTING) if item.check == "TORCH_EXTENSIONS_DIR"]
    assert finding.verdict == "warn" and f"rm {lock}" in finding.todo
