"""What two ranks run for `doctor --communication`: a sum over both, checked and timed. Started by torchrun, not by hand."""

import os
import time

_ELEMENTS = 1 << 22


def main() -> None:
    """All-reduce of 16 MiB; rank 0 prints a line. Raises RuntimeError for a wrong sum."""
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("nccl" if gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    values = torch.full((_ELEMENTS,), float(dist.get_rank() + 1), device=device)
    expected = sum(range(1, dist.get_world_size() + 1))
    # The first collective opens the connections, which takes longer than the sum that is timed.
    dist.barrier()
    started = time.perf_counter()
    dist.all_reduce(values)
    total = float(values.sum().item()) / _ELEMENTS
    seconds = time.perf_counter() - started
    if total != expected:
        raise RuntimeError(f"the sum over {dist.get_world_size()} ranks is {total}, it should be {expected}")
    if dist.get_rank() == 0:
        backend, mebibytes = dist.get_backend(), _ELEMENTS * 4 / 2**20
        print(f"{backend}: {mebibytes:.0f} MiB summed over {dist.get_world_size()} ranks in {seconds * 1000:.0f} ms")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
