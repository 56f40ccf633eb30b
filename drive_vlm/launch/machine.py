"""Processor and memory of the machine that this process runs on, as its control group limits them; no torch.

A container may see all cores and the whole memory of its host and still get a part of both: its control group decides.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")
# cgroup v1 says "no limit" with a number near 2**63.
_UNLIMITED = 1 << 60
# The names that Linux gives to units that multiply bf16: Intel and AMD, Intel's tiles, ARM, ARM's vectors.
_BF16_UNITS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}


def own_groups(controller: str) -> Iterator[Path]:
    """Directories of this process's control group and those above it: of `controller` in v1, of the one tree in v2.

    In a Slurm job the limits stand some levels down, in a container at the top.
    """
    for line in _OWN_CGROUP.read_text().splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        top = _CGROUP / controller if names else _CGROUP
        inner = top / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(top) and folder.is_dir())


def cgroup_cores() -> float | None:
    """CPU quota of this process in cores, None without one."""
    quotas = []
    for group in own_groups("cpu"):
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
            quotas += [] if quota == "max" else [int(quota) / int(period)]
        elif (group / "cpu.cfs_quota_us").is_file():
            microseconds = int((group / "cpu.cfs_quota_us").read_text())
            quotas += [microseconds / int((group / "cpu.cfs_period_us").read_text())] if microseconds > 0 else []
    return min(quotas, default=None)


def cgroup_memory() -> int | None:
    """Memory limit of this process in bytes, None without one."""
    texts = []
    for group in own_groups("memory"):
        files = (group / "memory.max", group / "memory.limit_in_bytes")
        texts += [file.read_text().strip() for file in files if file.is_file()]
    return min((int(text) for text in texts if text != "max" and int(text) < _UNLIMITED), default=None)


@dataclasses.dataclass(frozen=True)
class MachineMemory:
    """Bytes of the machine, what of it is available now, and the control group's limit (None without one)."""

    total: int
    available: int
    limit: int | None

    @property
    def usable(self) -> int:
        """What this process and its children may hold at most."""
        return min(self.total, self.limit or self.total)


def machine_memory() -> MachineMemory:
    """Memory of this machine. Raises OSError where there is no /proc/meminfo (not Linux)."""
    lines = (line.split() for line in _MEMINFO.read_text().splitlines())
    kibibytes = {words[0]: int(words[1]) for words in lines}
    return MachineMemory(kibibytes["MemTotal:"] * 1024, kibibytes["MemAvailable:"] * 1024, cgroup_memory())


def knows_memory() -> bool:
    """Whether this system says what memory it has (Linux does)."""
    return _MEMINFO.is_file()


def bf16_units() -> bool | None:
    """Whether this processor multiplies bf16 in units of its own; None where that is not known (no /proc/cpuinfo).

    Without them every product of bf16 is converted and computed in fp32, and is slower than in fp32 from the start.
    """
    if not _CPUINFO.is_file():
        return None
    for line in _CPUINFO.read_text().splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return bool(_BF16_UNITS & set(words.split()))
    return None


def slow_bf16() -> str | None:
    """What to say of a training in bf16 on this processor; None where nothing speaks against it."""
    if bf16_units() is not False:
        return None
    return (
        "this processor has no bf16 units (avx512_bf16, amx_bf16, bf16): bf16 is several times slower than fp32 on it. "
        "Leave --bf16 (and --dtype bfloat16) out: --bf16 false."
    )
