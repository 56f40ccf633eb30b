"""Memory of one process under each ZeRO stage: arithmetic on numbers of weights, no torch.

What is kept in which dtype follows DeepSpeed 0.19 (runtime/zero/stage_1_and_2.py, stage3.py) as stages/engine/training_arguments.py sets it
up: under DeepSpeed the weights are bf16 with --bf16 (otherwise fp32), gradients have the weights' dtype (grad_accum_dtype
is not set), each process keeps an fp32 master copy and two fp32 Adam moments of its share. Without DeepSpeed weights are
fp32, --bf16 autocasts them, and there is no master copy.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

# CUDA context, NCCL and kernels of libraries: an assumption.
CONTEXT = 1 << 30
# Share of the peak that the caching allocator cannot use: an assumption.
FRAGMENTATION = 0.05
# Optimizer bytes a trained weight where they are not those of Adam's two fp32 moments.
_MOMENTS = {"sgd": 0, "adafactor": 0.1, "lion_32bit": 4, "rmsprop": 4}
_MOMENTS |= dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), 2)


@dataclasses.dataclass(frozen=True)
class WeightSize:
    """One weight: its number of elements, whether it trains, and its bytes where they are not those of the dtype (NF4)."""

    elements: int
    trains: bool
    own_bytes: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """What all layouts share: `weight_bytes` of the dtype in memory, accumulation, Adam's bytes a weight."""

    world_size: int
    weight_bytes: int
    accumulation: int = 1
    optim: str = "adamw_torch"
    autocast: bool = False

    @property
    def temporaries(self) -> float:
        """Bytes a weight that an unfused Adam needs next to its state: the root of the second moment, and its quotient."""
        return 8 if self.optim == "adamw_torch" else 0

    @property
    def moments(self) -> float:
        """Optimizer bytes a trained weight in fp32: two Adam moments unless the optimizer is known to differ."""
        return next((size for name, size in _MOMENTS.items() if self.optim.startswith(name)), 8)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A memory layout: the figures of a DeepSpeed JSON (in elements), or stage 0 for DDP without DeepSpeed."""

    name: str
    stage: int = 0
    offload_optimizer: bool = False
    offload_param: bool = False
    reduce_bucket: int = 0
    overlap: bool = False
    persistence: int = 0
    max_live: int = 0
    max_reuse: int = 0
    sub_group: int = 0


def layout_of(name: str, config: dict[str, Any] | None) -> Layout:
    """The layout of a DeepSpeed configuration, with DeepSpeed's own defaults for what it leaves out."""
    if config is None:
        return Layout(name)
    zero = config.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    return Layout(
        name,
        stage,
        offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        offload_param=zero.get("offload_param", {}).get("device", "none") != "none",
        reduce_bucket=int(zero.get("reduce_bucket_size", 5e8)),
        overlap=bool(zero.get("overlap_comm", stage == 3)),
        persistence=int(zero.get("stage3_param_persistence_threshold", 1e5)),
        max_live=int(zero.get("stage3_max_live_parameters", 1e9)),
        max_reuse=int(zero.get("stage3_max_reuse_distance", 1e9)),
        sub_group=int(zero.get("sub_group_size", 1e9)),
    )


@dataclasses.dataclass(frozen=True)
class StaticMemory:
    """Bytes of one process that do not depend on the batch; `cpu` are its bytes in host memory."""

    weights: float
    gradients: float
    master: float
    optimizer: float
    buffers: float
    step: float
    cpu: float
    # Of gradients and buffers, what is not freed after a step.
    kept: float = 0
    # Gradients come one by one in the only backward pass of a step, while activations go.
    grows: bool = False

    @property
    def resident(self) -> float:
        """Weights, master copy and optimizer."""
        return self.weights + self.master + self.optimizer


def static(sizes: Sequence[WeightSize], layout: Layout, setup: TrainingSetup) -> StaticMemory:
    """Weights, gradients, optimizer and buffers of one process under `layout`."""
    if layout.stage == 0:
        return _without_zero(sizes, setup)
    if layout.stage < 3:
        return _zero_1_2(sizes, layout, setup)
    return _zero_3(sizes, layout, setup)


def _bytes(sizes: Sequence[WeightSize], weight_bytes: int) -> float:
    return sum(size.elements * (weight_bytes if size.own_bytes is None else size.own_bytes) for size in sizes)


def _trained(sizes: Sequence[WeightSize]) -> int:
    return sum(size.elements for size in sizes if size.trains)


def _without_zero(sizes: Sequence[WeightSize], setup: TrainingSetup) -> StaticMemory:
    """DDP: everything in full; its reducer holds the gradients a second time, autocast caches a bf16 copy of trained weights."""
    trained, each = _trained(sizes), setup.weight_bytes
    cast = 2 * trained if setup.autocast else 0
    return StaticMemory(
        weights=_bytes(sizes, each),
        gradients=trained * each,
        master=0,
        optimizer=trained * setup.moments * each / 4,
        buffers=cast + (trained * each if setup.world_size > 1 else 0),
        step=setup.temporaries * max(size.elements for size in sizes if size.trains),
        cpu=0,
        kept=trained * each if setup.world_size > 1 else 0,
        grows=setup.accumulation == 1,
    )


def _zero_1_2(sizes: Sequence[WeightSize], layout: Layout, setup: TrainingSetup) -> StaticMemory:
    """Weights in full; master and moments sharded; gradients in full (1) or sharded (2), one more share while accumulating."""
    trained, each = _trained(sizes), setup.weight_bytes
    share = trained / setup.world_size
    bucket = layout.reduce_bucket * each * (2 if layout.overlap else 1)
    gradients = trained * each if layout.stage == 1 else share * each * (2 if setup.accumulation > 1 else 1)
    weights = _bytes(sizes, each)
    if not layout.offload_optimizer:
        step, grows = (4 + setup.temporaries) * share, setup.accumulation == 1
        return StaticMemory(weights, gradients, 4 * share, setup.moments * share, bucket, step, 0, grows=grows)
    largest = max(size.elements for size in sizes if size.trains)
    cpu = (8 + setup.moments + each) * share + (each * share if setup.accumulation > 1 else 0)
    return StaticMemory(weights, largest * each, 0, 0, bucket + largest * each, 0, cpu)


def _zero_3(sizes: Sequence[WeightSize], layout: Layout, setup: TrainingSetup) -> StaticMemory:
    """Everything sharded but the weights below the persistence threshold; gathered ones live up to the limits of the JSON."""
    each, world = setup.weight_bytes, setup.world_size
    trained = _trained(sizes)
    share, all_bytes = trained / world, _bytes(sizes, each)
    persistent = sum(size.elements for size in sizes if size.elements < layout.persistence)
    passing = sum(size.elements for size in sizes) - persistent
    largest = max(size.elements for size in sizes)
    live = min(passing, max(layout.max_live, layout.max_reuse) + largest)
    gathered = (persistent + live) * each if world > 1 or layout.offload_param else 0
    shard = all_bytes / world
    gradients = each * share
    bucket = layout.reduce_bucket * each
    if layout.offload_optimizer:
        cpu = (8 + setup.moments) * share + gradients + (shard if layout.offload_param else 0)
        return StaticMemory(0 if layout.offload_param else shard, 0, 0, 0, gathered + bucket, 0, cpu)
    step = (4 + setup.temporaries) * min(share, layout.sub_group)
    return StaticMemory(
        shard, gradients, 4 * share, setup.moments * share, gathered + bucket, step, 0, gradients + bucket
    )


@dataclasses.dataclass(frozen=True)
class Peak:
    """Bytes of one process by part at its fullest moment, what the card must hold, and host memory."""

    weights: float
    gradients: float
    master: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    peak: float
    needed: float
    cpu: float
    between_steps: float


def needed(most: float) -> float:
    """What the card must hold for a peak of `most` bytes: with fragmentation and the CUDA context."""
    return most * (1 + FRAGMENTATION) + CONTEXT


def peak(fixed: StaticMemory, kept: float, work: float, logits: float) -> Peak:
    """The larger of the backward pass and the optimizer step.

    The backward pass begins with all activations and the loss at work, and ends with all gradients and a layer at work.
    Gradients that are there from the beginning (accumulated, or in a buffer of their own) count at both ends. In the step
    they have an fp32 copy under ZeRO, and an unfused Adam works next to it.
    """
    start = kept + max(work, logits) + (0 if fixed.grows else fixed.gradients)
    backward = fixed.resident + fixed.buffers + max(start, fixed.gradients + work)
    step = fixed.resident + fixed.gradients + fixed.step
    most = max(backward, step)
    parts = {name: getattr(fixed, name) for name in ("weights", "gradients", "master", "optimizer", "buffers", "cpu")}
    between = fixed.resident + fixed.kept
    return Peak(**parts, activations=kept + work, logits=logits, peak=most, needed=needed(most), between_steps=between)
