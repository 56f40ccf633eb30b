"""What a run costs: FLOPs and hours, and disk for its checkpoints."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import nearest
from drive_vlm.plan.flags import PlanFlags, memory_bytes
from drive_vlm.plan.model_sizes import ModelSizes, Weight
from drive_vlm.plan.rows import RowStatistics
from drive_vlm.stages.rl.generation import GenerationBatch

# The card that is meant where only its memory is given.
_USUAL = (
    (20, "L4"), (26, "RTX 4090"), (44, "A100"), (50, "L40S"), (82, "A100"), (100, "H100"), (160, "H200"), (256, "B200"),
)  # fmt: skip


def time_and_tokens(
    flags: PlanFlags, model: ModelSizes, rows: RowStatistics, global_batch: int, memo: bool
) -> dict[str, Any]:
    """Steps, tokens and FLOPs of a step, hours and GPU-hours at --mfu; None where the number of rows is not known.

    In grpo a row is a prompt with a completion, and `memo` says that the tower runs once for a group.
    """
    groups = flags.groups
    sequences = rows.count if flags.plan.rows is None else flags.plan.rows
    per_sequence = 1.0
    if flags.data.packing:
        # Packs are filled to about 95 %.
        per_sequence = max(1.0, 0.95 * flags.data.max_length / rows.tokens)
        sequences = math.ceil(sequences / per_sequence) if sequences else None
    row = rows.tokens, rows.labels, rows.tiles
    train, forward = model.train(*row) * flags.sides, model.forward(*row) * flags.sides
    if groups is None:
        per_row = train + (forward if flags.reference == "live" else 0)
    else:
        per_row = step_flops(groups, train, forward, model.tower * rows.tiles, memo)
    step = per_row * per_sequence * global_batch
    epochs, limit = float(flags.training["num_train_epochs"] or 3), int(flags.training["max_steps"] or -1)
    steps = limit if limit > 0 else math.ceil(_steps(flags, sequences, global_batch) * epochs) if sequences else None
    peak, name = device_peak(flags)
    rate = peak * flags.plan.mfu * flags.plan.world_size
    seconds = step / rate
    once = (sequences or 0) * per_sequence * forward if flags.reference == "cached" else 0
    hours = None if steps is None else (steps * seconds + once / rate) / 3600
    return {
        "steps": steps,
        "epochs": None if limit > 0 else epochs,
        "tokens_a_step": round(rows.tokens * flags.sides * per_sequence * global_batch),
        "flops_a_step": step,
        "seconds_a_step": seconds,
        "hours": hours,
        "gpu_hours": None if hours is None else hours * flags.plan.world_size,
        "mfu": flags.plan.mfu,
        "peak_flops": peak,
        "device": name,
    }


def step_flops(groups: GenerationBatch, train: float, forward: float, tower: float, memo: bool) -> float:
    """FLOPs that one completion costs a step: sampled and scored once for `iterations` steps, learned from in each.

    `train` and `forward` are those of prompt and completion with their pictures; with a memo `tower`, the tower's share of a
    forward pass, falls to a group once.
    """
    rollout = (1 + groups.passes) * forward / groups.iterations
    if not memo:
        return train + rollout
    return train - tower + rollout * (1 - tower / forward) + tower / (groups.generations * groups.iterations)


def _steps(flags: PlanFlags, sequences: int, global_batch: int) -> int:
    """Optimizer steps of an epoch; in grpo every generation batch is passed over `iterations` times."""
    if flags.groups is None:
        return math.ceil(sequences / global_batch)
    groups = flags.groups
    completions = math.ceil(sequences / groups.prompts) * groups.prompts * groups.generations
    return math.ceil(completions * groups.iterations / global_batch)


def device_peak(flags: PlanFlags) -> tuple[float, str]:
    """(peak FLOPS, name) of the device. Raises ValueError for a GPU that nobody knows."""
    from drive_vlm.stages.engine.throughput import PEAK_FLOPS

    if flags.run.peak_flops:
        return flags.run.peak_flops, "--peak_flops"
    name = flags.plan.gpu
    if name is None:
        size = memory_bytes(flags.plan.gpu_memory) / 2**30
        name = next((card for limit, card in _USUAL if size <= limit), "B200")
    if name not in PEAK_FLOPS:
        raise ValueError(
            f"--gpu {name}: peak FLOPS not known ({', '.join(PEAK_FLOPS)}).{nearest(name, PEAK_FLOPS)} Or give --peak_flops."
        )
    return PEAK_FLOPS[name], name


def disk(flags: PlanFlags, weights: Sequence[Weight], weight_bytes: int) -> dict[str, Any]:
    """Bytes of the checkpoints kept, the best and the one being written, against what is free at --output_dir.

    A checkpoint holds the trained weights for from_pretrained, and for resuming the same once more under DeepSpeed with
    its fp32 master copy, and Adam's moments. Frozen weights are on disk once for all checkpoints, by hard link, and once
    more in the final model, which is whole; an adapter never writes them.
    """
    trained = sum(weight.elements for weight in weights if weight.trains)
    frozen = 0 if flags.model.lora_rank > 0 else sum(weight.elements for weight in weights if not weight.trains)
    state = 8 if flags.run.deepspeed is None else 12 + weight_bytes
    if flags.training["save_only_model"]:
        state = 0
    one = trained * (weight_bytes + state)
    scored = flags.resolved.get("eval_generate", ((), ""))[0]
    best = bool(flags.data.eval_data or scored or flags.training["metric_for_best_model"])
    saves = flags.training["save_strategy"] != "no"
    number = flags.run.keep + best + 1 if saves else 0
    shared, final = frozen * weight_bytes if number else 0, (trained + frozen) * weight_bytes
    place = Path(flags.training["output_dir"]).absolute()
    while not place.exists():
        place = place.parent
    return {
        "checkpoint_bytes": one,
        "frozen_bytes": shared,
        "checkpoints": number,
        "final_model_bytes": final,
        "total_bytes": one * number + shared + final,
        "free_bytes": shutil.disk_usage(place).free,
        "place": str(place),
    }
