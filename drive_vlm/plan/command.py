"""The plan of a run: configuration with origins, batch equation, parameters, memory for every ZeRO stage, time and disk.

Reads a config.json, or what ships of a published model: no weights, no GPU, no hub. Every flag of the planned command is accepted.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from drive_vlm.config import CommandParser, nearest, plain, user_errors
from drive_vlm.models.freezing import tally
from drive_vlm.plan.lookup import load_sizes
from drive_vlm.stages import STAGES

EXAMPLES = """
python -m drive_vlm plan sft --model internvl3_1b --freeze vision_tower --deepspeed zero1 --bf16 --world_size 8
python -m drive_vlm plan sft --model siglip2_qwen3_4b --lora_rank 32 --freeze vision_tower --bf16 --num_frames 16 --gpu_memory 24GB
python -m drive_vlm plan spin --model llava_next_8b --deepspeed zero3 --bf16 --gradient_checkpointing --max_length 2048 --world_size 8
python -m drive_vlm plan grpo --model siglip2_qwen3_4b --lora_rank 32 --freeze vision_tower --bf16 --num_frames 16 --max_length 2048 --num_generations 2
python -m drive_vlm plan systems
python -m drive_vlm plan sft --model internvl3_1b --freeze vision_tower --deepspeed zero2 --gradient_checkpointing --use_cpu --cpu_memory 32GB
PLAN=1 bash recipes/internvl3_1b_sft.sh --data train.jsonl
"""
_SHOWN = (
    "per_device_train_batch_size", "global_batch_size", "deepspeed", "max_length", "packing", "dtype", "bf16", "gradient_checkpointing",
    "attn_implementation", "optim", "keep", "output_dir", "world_size", "gpu_memory", "mfu", "num_generations",
    "max_completion_length", "num_iterations", "beta",
)  # fmt: skip
ASSUMPTIONS = [
    "memory is that of rows as long as --max_length allows;",
    "'needed' adds 5 % fragmentation and 1 GiB of CUDA context to the peak;",
    "FLOPs as in drive_vlm/models/flops.py (attention scores left out, recomputation not counted);",
    "checkpoints: --keep, the best where evaluation rows are given, and the one being written;",
    "wire: rings over one link, 450 GB/s within a node (NVLink 4), 50 GB/s between nodes (400 Gb/s a GPU); drive_vlm/plan/wire.py.",
]
OF_PAIRS = [
    "a pair is two rows, each as long as --max_length allows;",
    "the reference is one more forward pass: of every pair once (cached), or in every step (live, with a second model in memory "
    "unless LoRA is switched off for it).",
]
OF_GROUPS = [
    "a row is a prompt as long as --max_length allows and a completion of --max_completion_length tokens;",
    "the peak is the largest of sampling (keys and values of a generation batch), scoring (without gradients) and learning;",
    "FLOPs count all three; sampling waits for memory more than it computes, so the hours are too few.",
]
_SYSTEMS = "The published systems on three kinds of hardware: `plan systems` prints the table that docs/plan.md shows."
_COMMON = "--bf16 --gradient_checkpointing --num_train_epochs 1"
# name -> flags of its published training, as in the recipes
SYSTEMS = {
    "InternVL3-1B, tower frozen": "--model internvl3_1b --freeze vision_tower --max_length 16384 --max_tiles 12",
    "SigLIP2+Qwen3-4B, LoRA r32": "--model siglip2_qwen3_4b --freeze vision_tower --lora_rank 32 --num_frames 16 --max_length 2048",
    "SigLIP2+Qwen3-4B, LoRA r32, NF4": "--model siglip2_qwen3_4b --freeze vision_tower --lora_rank 32 --num_frames 16 --max_length 2048 --quantize nf4",
    "LLaVA-Next-8B, all weights": "--model llava_next_8b --max_length 4096",
    "MiniCPM-V-8B, all weights": "--model minicpm_v_8b --max_length 2048",
    "CogVLM2-19B, LoRA r8": "--model cogvlm2_19b --freeze vision_tower projector --lora_rank 8 --max_length 4096 "
    "--lora_targets .*vision_expert_query_key_value",
    "SmolVLM, all weights": "--model smolvlm --max_length 2048",
}
HARDWARE = {"1 x 24 GB": (1, 1, "24GB"), "8 x 80 GB": (8, 8, "80GB"), "4 x 8 x 80 GB": (32, 8, "80GB")}


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm plan STAGE flags...`."""
    stage = words[0] if words else "--help"
    if stage in ("-h", "--help"):
        parser = CommandParser(prog="python -m drive_vlm plan", description=__doc__, examples=EXAMPLES)
        parser.add_argument(
            "stage",
            choices=(*STAGES, "systems", "record"),
            help="command to plan; or the table of published systems; or write what ships of them again, from their classes",
        )
        parser.parse_args(["--help"])
    if stage == "systems":
        show_systems(words[1:])
        return
    if stage == "record":
        text = "Count again all models that ship, and the flags of the training classes. It writes into the package."
        CommandParser(prog="python -m drive_vlm plan record", description=text).parse_args(list(words[1:]))
        from drive_vlm.plan.record import record_everything

        print("\n".join(map(str, record_everything())) or "nothing has changed")
        return
    with user_errors(f"python -m drive_vlm plan {stage}"):
        if stage not in STAGES:
            raise ValueError(
                f"{stage} cannot be planned (known: {', '.join(STAGES)}, systems, record).{nearest(stage, STAGES)}"
            )
        plan = make_plan(stage, words[1:])
    if plan.pop("as_json"):
        print(json.dumps(plain(plan), indent=2))
        return
    from drive_vlm.plan.tables import show

    show(plan)


def make_plan(stage: str, words: Sequence[str]) -> dict[str, Any]:
    """The plan as --json prints it. Raises ValueError for what the run itself would refuse."""
    from drive_vlm.launch.topology import accumulation_steps
    from drive_vlm.models.quantize import check_training
    from drive_vlm.plan.cost import disk, time_and_tokens
    from drive_vlm.plan.flags import local_world_size, memory_bytes, parse
    from drive_vlm.plan.memory_table import PlanCase, has_memo, layouts, memory, weight_bytes
    from drive_vlm.plan.resident import OF_CPU, cpu_memory
    from drive_vlm.plan.rows import typical_row

    flags = parse(stage, EXAMPLES, words, __doc__ or "")
    world, local = flags.plan.world_size, local_world_size(flags.plan)
    micro = int(flags.training["per_device_train_batch_size"])
    accumulation = accumulation_steps(flags.run.global_batch_size, micro, world)
    model = load_sizes(flags.model).with_frames(flags.data.num_frames)
    groups, kind = flags.groups, STAGES[stage].kind
    rows = typical_row(flags.data, model, flags.plan.row_tokens, flags.model.model, kind)
    if groups:
        rows = dataclasses.replace(rows, tokens=rows.tokens + groups.length, labels=groups.length)
    if groups and groups.value_head:
        model = model.with_value_head(groups.value_head, "value_head" not in flags.model.freeze)
    loaded = model.with_features() if flags.data.feature_cache else model
    case = PlanCase(flags, loaded, rows, accumulation)
    all_layouts, chosen = layouts(flags)
    own = next(layout for layout in all_layouts if layout.name == chosen)
    check_training(flags.model, own.stage)
    cpu = cpu_memory(case, local)
    return {
        "as_json": flags.plan.json,
        "stage": stage,
        "model": {"name": model.name, "note": model.note},
        "configuration": {name: {"value": value, "origin": origin} for name, (value, origin) in flags.resolved.items()},
        "shown_defaults": list(_SHOWN),
        "batch": {
            "unit": {"rows": "sequences", "pairs": "pairs", "prompts": "completions"}[kind],
            "generation": dataclasses.asdict(groups) if groups else None,
            "global": micro * accumulation * world,
            "micro": micro,
            "accumulation": accumulation,
            "world_size": world,
            "local_world_size": local,
            "longest_row": flags.data.max_length + (groups.length if groups else 0),
            "typical_row": rows.tokens,
            "gradient_checkpointing": case.checkpointing(),
        },
        "parameters": tally((weight.part, weight.elements, weight.trains) for weight in model.weights),
        "memory": memory(case, memory_bytes(flags.plan.gpu_memory), local),
        "cpu": cpu,
        "cost": time_and_tokens(flags, loaded, rows, micro * accumulation * world, has_memo(loaded, own)),
        "disk": disk(flags, model.weights, weight_bytes(case, own)),
        "data": {
            "rows": rows.count,
            "source": rows.source,
            "longest": rows.longest,
            "missing": rows.missing,
            "audit": rows.audit,
        },
        "assumptions": [
            *ASSUMPTIONS,
            *{"pairs": OF_PAIRS, "prompts": OF_GROUPS}.get(kind, ()),
            *(OF_CPU if cpu else ()),
        ],
    }


def show_systems(words: Sequence[str]) -> None:
    """Print one Markdown row a system and hardware: GiB needed by layout for one longest row a GPU, and the largest micro batch."""
    from drive_vlm.plan.memory_table import NAMES

    parser = CommandParser(prog="python -m drive_vlm plan systems", description=_SYSTEMS)
    parser.add_argument("--mfu", default="0.35", help="share of the peak FLOPS for the time of 10,000 rows")
    mfu = parser.parse_args(list(words)).mfu
    layouts = " | ".join(NAMES)
    print(f"| system | hardware | {layouts} | first that fits (micro batch) | GPU-hours for 10,000 rows |")
    print("|---" * (len(NAMES) + 4) + "|")
    for name, flags in SYSTEMS.items():
        for hardware, (world, local, memory) in HARDWARE.items():
            size = f"--world_size {world} --local_world_size {local} --gpu_memory {memory} --rows 10000 --mfu {mfu}"
            words = f"{flags} {_COMMON} {size} --per_device_train_batch_size 1"
            plan = make_plan("sft", words.split())
            table: dict[str, Any] = plan["memory"]["layouts"]
            fits = next((layout for layout in table if table[layout]["fits"]), None)
            verdict = f"{fits} ({table[fits]['largest_micro_batch']})" if fits else "no layout"
            numbers = " | ".join(f"{needed['needed'] / 2**30:.1f}" for needed in table.values())
            hours = f"{plan['cost']['gpu_hours']:.1f} ({plan['cost']['device']})"
            print(f"| {name} | {hardware} | {numbers} | {verdict} | {hours} |")
