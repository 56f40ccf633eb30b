"""The published systems on three kinds of hardware: `plan systems` prints the table that docs/plan.md shows."""

from collections.abc import Sequence
from typing import Any

from drive_vlm.config import CommandParser

_COMMON = "--bf16 --gradient_checkpointing --num_train_epochs 1"
# name -> flags of its published training, as in the recipes
SYSTEMS = {
    "InternVL3-1B, tower frozen": "--model internvl3_1b --freeze vision_tower --max_length 16384 --max_tiles 12",
    "SigLIP2+Qwen3-4B, LoRA r32": "--model siglip2_qwen3_4b --freeze vision_tower --lora_rank 32 --num_frames 16 --max_length 2048",
    "SigLIP2+Qwen3-4B, LoRA r32, NF4": "--model siglip2_qwen3_4b --freeze vision_tower --lora_rank 32 --num_frames 16 --max_length 2048 --quantize nf4",
    "LLaVA-Next-8B, all weights": "--model llava_next_8b --max_length 4096",
    "MiniCPM-V-8B, all weights (estimate)": "--model minicpm_v_8b --max_length 2048",
    "CogVLM2-19B, LoRA r8 (estimate)": "--model cogvlm2_19b --freeze vision_tower projector --lora_rank 8 --max_length 4096 "
    "--lora_targets .*vision_expert_query_key_value",
    "SmolVLM, all weights": "--model smolvlm --max_length 2048",
}
HARDWARE = {"1 x 24 GB": (1, 1, "24GB"), "8 x 80 GB": (8, 8, "80GB"), "4 x 8 x 80 GB": (32, 8, "80GB")}
_LAYOUTS = ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


def show_systems(words: Sequence[str]) -> None:
    """Print one Markdown row a system and hardware: GiB needed by layout for one longest row a GPU, and the largest micro batch."""
    parser = CommandParser(prog="python -m drive_vlm plan systems", description=__doc__)
    parser.add_argument("--mfu", default="0.35", help="share of the peak FLOPS for the time of 10,000 rows")
    mfu = parser.parse_args(list(words)).mfu
    print(
        "| system | hardware | "
        + " | ".join(_LAYOUTS)
        + " | first that fits (micro batch) | GPU-hours for 10,000 rows |"
    )
    print("|---" * (len(_LAYOUTS) + 4) + "|")
    for name, flags in SYSTEMS.items():
        for hardware, (world, local, memory) in HARDWARE.items():
            size = f"--world_size {world} --local_world_size {local} --gpu_memory {memory} --rows 10000 --mfu {mfu}"
            print(row(name, hardware, f"{flags} {_COMMON} {size} --per_device_train_batch_size 1".split()))


def row(name: str, hardware: str, words: list[str]) -> str:
    """One line of the table."""
    from drive_vlm.plan.make import make_plan

    plan = make_plan("sft", words)
    table: dict[str, Any] = plan["memory"]["layouts"]
    fits = next((layout for layout in _LAYOUTS if table[layout]["fits"]), None)
    verdict = f"{fits} ({table[fits]['largest_micro_batch']})" if fits else "no layout"
    numbers = " | ".join(f"{table[layout]['needed'] / 2**30:.1f}" for layout in _LAYOUTS)
    return (
        f"| {name} | {hardware} | {numbers} | {verdict} | {plan['cost']['gpu_hours']:.1f} ({plan['cost']['device']}) |"
    )
