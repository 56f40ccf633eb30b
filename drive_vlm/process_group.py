"""The process group of commands that train nothing: generation and the caches."""

from typing import TypeVar

from drive_vlm.launch.topology import read_topology

T = TypeVar("T")


def join_ranks() -> None:
    """A gloo group of all processes, for tools that train nothing; none for a single process.

    It waits for days, since ranks with unequal shares end at different times.
    """
    if read_topology().world_size == 1:
        return
    import datetime

    import torch.distributed

    # Imported after the group exists, these functions would keep it as a default argument: it would outlive leave_ranks(),
    # and a thread of gloo that wants the interpreter while that ends aborts the process.
    import torch.distributed.nn.functional

    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))


def wait_for_ranks() -> None:
    """Return when every process is here."""
    if read_topology().world_size > 1:
        import torch

        torch.distributed.barrier()


def gather(item: T) -> list[T]:
    """The `item` of every process, in the order of ranks, on each of them."""
    size = read_topology().world_size
    if size == 1:
        return [item]
    import torch.distributed

    items: list[T] = [item] * size
    torch.distributed.all_gather_object(items, item)
    return items


def leave_ranks() -> None:
    """Wait for every process, then end the group of join_ranks()."""
    if read_topology().world_size > 1:
        import torch

        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
