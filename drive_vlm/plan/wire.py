"""What one process sends over its link in an optimizer step, under each layout: arithmetic on numbers of weights, no torch.

Collectives of N processes are counted as rings: a process sends (N - 1) / N of what is gathered or reduced and scattered, and
twice that for an all-reduce. With T trained and P weights in all, A micro batches a step, w bytes a weight, g a gradient:

    ddp           2 T g                the sum of the gradients, once a step
    ZeRO-1        T g + T w            gradients reduced once a step, new weights gathered (DeepSpeed reduces at the boundary)
    ZeRO-2        A T g + T w          gradients reduced in every micro batch: each process keeps its share only
    ZeRO-3        A (2 P w + T g)      weights gathered for the forward and the backward pass, frozen ones too; three times where
                                       the backward pass computes the forward pass again (--gradient_checkpointing)

Rajbhandari et al. 2020 (ZeRO), section 7, has the same sums for A = 1 and P = T. CPU offload adds none between processes.
"""

from collections.abc import Sequence
from typing import Any

from drive_vlm.plan.bytes import Layout, WeightSize

# Bytes a second that one GPU sends: within a node by NVLink 4 (H100, H200), between nodes by one card of 400 Gb/s a GPU.
LINKS = {"NVLink 4": 450e9, "400 Gb/s": 50e9}


def sent_bytes(
    sizes: Sequence[WeightSize],
    layout: Layout,
    world_size: int,
    weight_bytes: int,
    accumulation: int,
    checkpointing: bool,
) -> float:
    """Bytes that a process sends in an optimizer step; 0 for one process."""
    trained = sum(size.elements for size in sizes if size.trains)
    weights = sum(size.elements * (size.own_bytes or weight_bytes) for size in sizes)
    # Gradients have the weights' dtype (bytes.py).
    gradients = updated = trained * weight_bytes
    passes = 3 if checkpointing else 2
    whole = {
        0: 2 * gradients,
        1: gradients + updated,
        2: accumulation * gradients + updated,
        3: accumulation * (passes * weights + gradients),
    }[layout.stage]
    return whole * (world_size - 1) / world_size


def wire(sent: float, world_size: int, local_world_size: int) -> dict[str, Any]:
    """`sent` bytes, the slowest link on their way, and seconds over it where nothing is hidden behind computing."""
    link = "NVLink 4" if world_size <= local_world_size else "400 Gb/s"
    return {"sent_a_step": sent, "link": link, "link_seconds": sent / LINKS[link]}
