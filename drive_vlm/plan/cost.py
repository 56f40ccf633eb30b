"""What a run costs: FLOPs and hours, and disk for its checkpoints."""

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.plan.architecture import Architecture, Weight
from drive_vlm.plan.flags import Flags
from drive_vlm.plan.groups import step_flops, without_tower
from drive_vlm.plan.rows import Rows

# The card that is meant where only its memory is given.
_USUAL = (
    (20, "L4"),
    (26, "RTX 4090"),
    (44, "A100"),
    (50, "L40S"),
    (82, "A100"),
    (100, "H100"),
    (160, "H200"),
    (256, "B200"),
)


def train_flops(architecture: Architecture, weights: Sequence[Weight]) -> dict[str, float]:
    """FLOPs of a token, a labelled position and a tile, by the convention of drive_vlm/models/flops.py."""
    numbers = {part: sum(w.size for w in weights if w.part == part) for part in {w.part for w in weights}}
    trains = {weight.part for weight in weights if weight.trains}
    # MoE of two experts: a token passes one of them
    experts = sum(w.size for w in weights if "vision_expert" in w.name or "vision_mlp" in w.name)
    body = numbers["language_model"] - experts
    head = numbers.get("lm_head", numbers["embeddings"])
    head_trains = "lm_head" in trains or ("lm_head" not in numbers and "embeddings" in trains)
    pictures = architecture.pictures
    tower, projector = (_own(weights, part) for part in ("vision_tower", "projector"))
    return {
        "token": body * (4 + 2 * ("language_model" in trains)),
        "label": head * (4 + 2 * head_trains),
        "tile": pictures.tower_tokens * tower * (6 if "vision_tower" in trains else 2)
        + pictures.tokens * projector * (6 if trains & {"vision_tower", "temporal_embeddings", "projector"} else 2),
    }


def forward_flops(architecture: Architecture, weights: Sequence[Weight]) -> dict[str, float]:
    """FLOPs of a forward pass alone: a frozen model's, without the gradient that flows through its language model."""
    frozen = train_flops(architecture, [dataclasses.replace(weight, trains=False) for weight in weights])
    return {"token": frozen["token"] / 2, "label": frozen["label"] / 2, "tile": frozen["tile"]}


def _own(weights: Sequence[Weight], part: str) -> int:
    """Weights of a part, a copy that peft trains counted once."""
    return sum({weight.name: weight.size for weight in weights if weight.part == part}.values())


def time_and_tokens(
    flags: Flags, architecture: Architecture, weights: Sequence[Weight], rows: Rows, global_batch: int, memo: bool
) -> dict[str, Any]:
    """Steps, tokens and FLOPs of a step, hours and GPU-hours at --mfu; None where the number of rows is not known.

    In grpo a row is a prompt with a completion, and `memo` says that the tower runs once for a group.
    """
    flops, groups = train_flops(architecture, weights), flags.groups
    sequences = rows.count if flags.plan.rows is None else flags.plan.rows
    per_sequence = 1.0
    if flags.data.packing:  # packs are filled to about 95 %
        per_sequence = max(1.0, 0.95 * flags.data.max_length / rows.tokens)
        sequences = math.ceil(sequences / per_sequence) if sequences else None
    forward = _of_row(forward_flops(architecture, weights), rows) * flags.sides
    if groups is None:
        per_row = _of_row(flops, rows) * flags.sides + (forward if flags.reference == "live" else 0)
    else:
        tower = forward - _of_row(forward_flops(architecture, without_tower(weights)), rows)
        per_row = step_flops(groups, _of_row(flops, rows), forward, tower, memo)
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


def _steps(flags: Flags, sequences: int, global_batch: int) -> int:
    """Optimizer steps of an epoch; in grpo every generation batch is passed over `iterations` times."""
    if flags.groups is None:
        return math.ceil(sequences / global_batch)
    groups = flags.groups
    completions = math.ceil(sequences / groups.prompts) * groups.prompts * groups.generations
    return math.ceil(completions * groups.iterations / global_batch)


def _of_row(flops: dict[str, float], rows: Rows) -> float:
    return flops["token"] * rows.tokens + flops["label"] * rows.labels + flops["tile"] * rows.tiles


def device_peak(flags: Flags) -> tuple[float, str]:
    """(peak FLOPS, name) of the device. Raises ValueError for a GPU that nobody knows."""
    from drive_vlm.config import nearest
    from drive_vlm.plan.flags import memory_bytes
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


def disk(flags: Flags, weights: Sequence[Weight], weight_bytes: int) -> dict[str, Any]:
    """Bytes of the checkpoints kept, the best and the one being written, against what is free at --output_dir.

    A checkpoint holds the trained weights for from_pretrained, and for resuming the same once more under DeepSpeed with
    its fp32 master copy, and Adam's moments. Frozen weights are on disk once for all checkpoints, by hard link, and once
    more in the final model, which is whole; an adapter never writes them.
    """
    trained = sum(weight.size for weight in weights if weight.trains)
    frozen = 0 if flags.model.lora_rank > 0 else sum(weight.size for weight in weights if not weight.trains)
    state = 8 if flags.run.deepspeed is None else 12 + weight_bytes
    if flags.training["save_only_model"]:
        state = 0
    one = trained * (weight_bytes + state)
    best = bool(flags.data.eval_data or flags.training["metric_for_best_model"])
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
