"""What is read of the machine, from files written as Linux writes them."""

from pathlib import Path

import pytest

from drive_vlm.launch import machine


def test_limits_of_a_job_stand_above_its_group_in_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").write_text("0::/system.slice/job_7/step_0\n")
    step = tmp_path / "groups" / "system.slice" / "job_7" / "step_0"
    step.mkdir(parents=True)
    for folder, cores, bytes_ in ((step, "max 100000", "max"), (step.parent, "250000 100000", str(8 << 30))):
        (folder / "cpu.max").write_text(cores)
        (folder / "memory.max").write_text(bytes_)
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "groups")
    assert machine.cgroup_cores() == 2.5 and machine.cgroup_memory() == 8 << 30


def test_limits_of_a_container_in_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").write_text("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n")
    for name, files in {
        "cpu": {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000"},
        "memory": {"memory.limit_in_bytes": str(4 << 30)},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.cgroup_cores() == 1.5 and machine.cgroup_memory() == 4 << 30
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert machine.cgroup_cores() is None and machine.cgroup_memory() is None


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("flags\t\t: fpu sse avx2 avx512f\n", False),
        ("flags\t\t: fpu avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd\n", False),
        # A word that only begins like one.
        ("flags\t\t: avx512_bf16x\n", False),
        ("processor\t: 0\n", None),
    ],
)
def test_bf16_units_by_the_processors_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, known: bool | None
) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.bf16_units() is None and machine.slow_bf16() is None, "no such file: nothing is claimed"
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.bf16_units() is known
    assert (machine.slow_bf16() is not None) == (known is False)


def test_the_flags_say_what_torch_finds() -> None:
    torch = pytest.importorskip("torch")
    if not hasattr(torch.cpu, "_is_avx512_bf16_supported") or machine.bf16_units() is None:
        pytest.skip("torch or this system does not say it")
    if torch.cpu._is_avx512_bf16_supported():
        assert machine.bf16_units()


def test_a_container_has_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal:       25165824 kB\nMemFree: 1 kB\nMemAvailable:   20971520 kB\n")
    monkeypatch.setattr(machine, "cgroup_memory", lambda: None)
    assert machine.machine_memory() == machine.MachineMemory(24 << 30, 20 << 30, None)
    assert machine.machine_memory().usable == 24 << 30
    for limit, usable in ((8 << 30, 8 << 30), (64 << 30, 24 << 30)):
        monkeypatch.setattr(machine, "cgroup_memory", lambda limit=limit: limit)
        assert machine.machine_memory().usable == usable
