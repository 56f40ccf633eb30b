"""Rank and number of processes, from the environment that torchrun, deepspeed or Slurm set."""

import dataclasses
import os
import sys


@dataclasses.dataclass(frozen=True)
class Topology:
    """Rank among `world_size` processes, and among those of this node."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def read_topology() -> Topology:
    """The topology of this process; a single process where no launcher set one. Raises ValueError where only half of it is set."""
    names = ("RANK", "WORLD_SIZE")
    given = [name for name in names if name in os.environ]
    if len(given) == 1:
        missing = next(name for name in names if name not in given)
        raise ValueError(
            f"The environment sets {given[0]} but not {missing}. Start through recipes/, torchrun or deepspeed, or unset it."
        )
    if not given:
        return Topology()
    return Topology(
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])),
    )


def launcher() -> str:
    """What started this process: torchrun, deepspeed or python."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    return "deepspeed" if any(word.startswith("--local_rank=") for word in sys.argv[1:]) else "python"


def launch_name() -> str:
    """What all ranks of a launch have in common, and no other launch that runs at the same time; "" for a single process."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
    return " ".join(os.environ.get(name, "-") for name in names) if "WORLD_SIZE" in os.environ else ""


def accumulation_steps(global_batch_size: int | None, per_device: int, world_size: int) -> int:
    """Gradient accumulation that makes up the global batch. Raises ValueError with the three numbers when it does not divide."""
    if global_batch_size is None:
        return 1
    steps, rest = divmod(global_batch_size, per_device * world_size)
    if rest or not steps:
        raise ValueError(
            f"--global_batch_size {global_batch_size} is not a multiple of --per_device_train_batch_size {per_device} x {world_size} processes "
            f"= {per_device * world_size}. Change one of the three."
        )
    return steps
