"""The process group of commands that train nothing: generation and the caches."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from drive_vlm.launch.stop import check_launcher
from drive_vlm.launch.topology import read_topology
from drive_vlm.store.lock import sole_writer

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

    check_launcher()
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


@contextlib.contextmanager
def sole_writer_of_ranks(path: Path) -> Iterator[None]:
    """`sole_writer`, held by the main process for all. Raises ValueError on each of them: none waits for one that is gone."""
    with contextlib.ExitStack() as held:
        refused = ""
        if read_topology().is_main:
            try:
                held.enter_context(sole_writer(path))
            except ValueError as error:
                refused = str(error)
        if refused := gather(refused)[0]:
            raise ValueError(refused)
        yield
