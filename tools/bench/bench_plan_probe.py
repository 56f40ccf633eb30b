"""What tensors take in the memory of this process, measured on a CPU; imported by tools/bench/bench_plan.py and bench_plan_grpo.py."""

import gc
from collections.abc import Sequence
from typing import Any


def storages() -> int:
    """Bytes of all storages that a tensor in Python holds."""
    import torch

    sizes = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor) and item.device.type == "cpu":
            storage = item.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def largest_sums(profiler: Any, phases: Sequence[str] = ()) -> dict[str, int]:
    """{phase: the largest sum of what was allocated during the profile and not yet released}; "" outside of all phases.

    `phases` are names of torch.profiler.record_function. What gloo copies before it sends is left out: its own threads release
    that at their own time, where the profiler does not look, and NCCL makes no such copies.
    """
    from torch._C._profiler import _EventType

    allocations: list[
        tuple[int, int, int, bool]
    ] = []  # nanosecond, address, bytes (negative: released), whether gloo's
    spans: list[tuple[int, int, str]] = []
    todo = [(event, False) for event in profiler.profiler.kineto_results.experimental_event_tree()]
    while todo:
        event, sends = todo.pop()
        if event.tag == _EventType.Allocation:
            allocations.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size, sends))
        if event.name in phases:
            spans.append((event.start_time_ns, event.end_time_ns, event.name))
        todo += [(child, sends or event.name.startswith("c10d::")) for child in event.children]
    most, now = dict.fromkeys(["", *phases], 0), 0
    held: dict[int, int] = {}
    for at, address, size, sends in sorted(allocations):
        if size > 0:  # an address that is given out again was released by a thread that the profiler does not watch
            now -= held.pop(address, 0)
            held[address] = 0 if sends else size
            now += held[address]
        else:
            now -= held.pop(address, -size)
        phase = next((name for first, last, name in spans if first <= at <= last), "")
        most[phase] = max(most[phase], now)
    return most
