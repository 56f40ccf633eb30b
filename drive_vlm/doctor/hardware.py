"""GPUs and how they reach each other, processors, memory, shared memory, limits."""

import os
import resource
import shutil
from collections.abc import Iterator

from drive_vlm.doctor.finding import Finding, Setting, judge, ok, output_of
from drive_vlm.launch.machine import bf16_units, cgroup_cores, machine_memory, slow_bf16

_GIB = 2**30


def driver_gpus() -> list[list[str]]:
    """Name, memory and driver of every GPU of this machine, whatever CUDA_VISIBLE_DEVICES says; empty without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return [[part.strip() for part in line.split(",")] for line in output_of(words, timeout=20).splitlines() if line]


def gpus(setting: Setting) -> Iterator[Finding]:
    """Each GPU that torch sees; GPUs that the driver sees and torch does not are a failure."""
    import torch

    driver = driver_gpus()
    if not torch.cuda.is_available():
        hidden = not os.environ.get("CUDA_VISIBLE_DEVICES", "x")
        todo = "Install the CUDA build (constraints/cuda.txt), or a driver that is new enough for it."
        if not driver:
            yield ok("gpu", "none: runs go to the CPU")
        elif hidden:
            yield Finding(
                "gpu", "warn", f"{len(driver)} hidden by an empty CUDA_VISIBLE_DEVICES", "Unset it to use them."
            )
        else:
            seen = f"{len(driver)} x {driver[0][0]}, driver {driver[0][2]}, but torch sees none"
            yield Finding("gpu", "fail", seen, todo)
        return
    for i in range(torch.cuda.device_count()):
        unit = torch.cuda.get_device_properties(i)
        free = torch.cuda.mem_get_info(i)[0]
        seen = (
            f"{unit.name}, {unit.total_memory / _GIB:.0f} GiB ({free / _GIB:.0f} free), "
            f"compute capability {unit.major}.{unit.minor}, driver {driver[0][2] if driver else 'unknown'}"
        )
        yield judge(
            f"gpu {i}",
            seen,
            (unit.major < 8, "warn", "No bf16 arithmetic: train with --fp16, or in fp32."),
            (free < 0.9 * unit.total_memory, "warn", "Another process holds memory on it: see nvidia-smi."),
        )


def peer_to_peer(setting: Setting) -> Iterator[Finding]:
    """Whether the GPUs reach each other's memory; without it NCCL goes through the host."""
    import torch

    count = torch.cuda.device_count()
    apart = [f"{i}-{j}" for i in range(count) for j in range(i) if not torch.cuda.can_device_access_peer(i, j)]
    seen = f"no peer access between {', '.join(apart)}" if apart else f"all {count} reach each other's memory"
    todo = (
        "Gradients go through host memory: prefer larger --global_batch_size to ZeRO-3, and see `nvidia-smi topo -m`."
    )
    if count > 1:
        yield judge("gpu peers", seen, (apart, "warn", todo))


def processors(setting: Setting) -> Iterator[Finding]:
    """Cores of the machine, of this process, and of its cgroup."""
    mine = len(os.sched_getaffinity(0))
    quota = cgroup_cores()
    seen = f"{os.cpu_count()} cores, {mine} for this process" + (f", cgroup limit {quota:.1f}" if quota else "")
    units = bf16_units()
    seen += "" if units is None else f", {'with' if units else 'no'} bf16 units"
    wanted = 4 * len(driver_gpus())
    todo = f"Pictures are decoded on the CPU: ask for {wanted} cores (4 a GPU), e.g. --cpus-per-task."
    few = f"Set OMP_NUM_THREADS so that ranks x threads stays within {quota or mine:.0f}."
    # Where a GPU computes, the processor need not know bf16.
    slow = slow_bf16() if not wanted else None
    yield judge(
        "cpu",
        seen,
        (min(mine, quota or mine) < wanted, "warn", todo),
        (quota and quota < mine, "warn", few),
        (slow, "warn", f"On the CPU {slow}"),
    )


def memory(setting: Setting) -> Iterator[Finding]:
    """Memory of the machine and of the cgroup."""
    found = machine_memory()
    total, free, limit = found.total, found.available, found.limit
    seen = f"{total / _GIB:.1f} GiB, {free / _GIB:.1f} available"
    seen += f", cgroup limit {limit / _GIB:.1f}" if limit and limit < total else ""
    todo = "A rank needs about 1 GiB before its model: ask for more, e.g. --mem."
    yield judge("memory", seen, (min(free, limit or free) < 2 * _GIB, "warn", todo))


def shared_memory(setting: Setting) -> Iterator[Finding]:
    """/dev/shm carries batches from loader processes, and NCCL and gloo between ranks."""
    size = shutil.disk_usage("/dev/shm")
    seen = f"{size.total / _GIB:.2f} GiB, {size.free / _GIB:.2f} free"
    todo = "Give the container more (docker run --shm-size=16g, or --ipc=host), or --dataloader_num_workers 0."
    yield judge("/dev/shm", seen, (size.free < _GIB, "warn", todo))


def limits(setting: Setting) -> Iterator[Finding]:
    """Open files (every rank and loader opens many) and locked memory (pinned buffers of offloading, InfiniBand)."""
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    # -1 says that there is no limit.
    seen = f"{'unlimited' if files < 0 else files} open files, {'unlimited' if locked < 0 else f'{locked / 2**20:.0f} MiB'} locked memory"
    pinned = "ulimit -l unlimited for offloading with pin_memory and for InfiniBand."
    yield judge(
        "limits",
        seen,
        (0 <= files < 4096, "warn", f"ulimit -n {65536 if hard < 0 else min(hard, 65536)} before the launch."),
        (driver_gpus() and 0 <= locked < _GIB, "warn", pinned),
    )
