"""Memory under every layout of ds_configs and without DeepSpeed: by part, what fits, and the largest micro batch.

A stage of prompts has two more phases, in which nothing is learned: a generation batch is sampled at once on each process (a
cache of keys and values for every completion), then scored by the policy (where its batches are not fresh) and the reference,
a micro batch at a time.
"""

import dataclasses
from pathlib import Path
from typing import Any

from drive_vlm.launch.deepspeed import load_deepspeed_config
from drive_vlm.plan import activations as work
from drive_vlm.plan.activations import Activations, Batch
from drive_vlm.plan.bytes import Layout, Peak, StaticMemory, TrainingSetup, WeightSize, layout_of, needed, peak, static
from drive_vlm.plan.flags import PlanFlags
from drive_vlm.plan.model_sizes import ModelSizes
from drive_vlm.plan.rows import RowStatistics
from drive_vlm.plan.wire import sent_bytes, wire
from drive_vlm.sampling import may_memoise
from drive_vlm.stages.engine.training_arguments import weight_dtype

# ddp: without DeepSpeed, on one process or several.
NAMES = ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
# QLoRA: 4 bits, 8-bit scales for 64 weights, fp32 scales for 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclasses.dataclass(frozen=True)
class PlanCase:
    """Everything that a peak depends on but the layout and the micro batch."""

    flags: PlanFlags
    model: ModelSizes
    rows: RowStatistics
    accumulation: int

    def half(self) -> bool:
        return bool(self.flags.training["bf16"] or self.flags.training["fp16"]) or self.flags.model.dtype == "bfloat16"

    def checkpointing(self) -> bool:
        return bool(self.flags.training["gradient_checkpointing"])


def weight_bytes(case: PlanCase, layout: Layout) -> int:
    """Bytes of a weight in memory; under DeepSpeed fp16 takes what bf16 takes."""
    return 2 if weight_dtype(case.flags.model, case.half(), layout.name != "ddp") == "bfloat16" else 4


def layouts(flags: PlanFlags) -> tuple[list[Layout], str]:
    """All layouts to compare, the chosen one among them, and its name."""
    chosen = flags.run.deepspeed or "ddp"
    names = [*NAMES, *([] if chosen in NAMES else [chosen])]
    configs = {
        name: None if name == "ddp" else load_deepspeed_config(name, bool(flags.training["use_cpu"])) for name in names
    }
    short = {name: Path(name).stem if name.endswith(".json") else name for name in names}
    return [layout_of(short[name], config) for name, config in configs.items()], short[chosen]


def longest(case: PlanCase, micro: int) -> Batch:
    """A micro batch of rows as long as --max_length allows; a pair is two of them, in grpo a completion comes behind it."""
    data, pictures = case.flags.data, case.model.pictures
    room = data.max_length // pictures.tokens if pictures.tokens else 0
    tiles = room if data.packing else min(room, pictures.tiles)
    text = max(1, data.max_length - tiles * pictures.tokens)
    rows, groups = micro * case.flags.sides, case.flags.groups
    if groups is not None:
        return Batch(rows, data.max_length + groups.length, rows * tiles, rows * groups.length)
    return Batch(rows, data.max_length, rows * tiles, rows * text)


def typical(case: PlanCase, micro: int) -> Batch:
    """A micro batch of typical rows; packs are full."""
    if case.flags.data.packing:
        return longest(case, micro)
    rows, number = case.rows, micro * case.flags.sides
    return Batch(number, rows.tokens, number * rows.tiles, number * rows.labels)


def own_sizes(case: PlanCase) -> list[WeightSize]:
    """Sizes of the policy's weights."""
    four_bit = case.flags.model.quantize == "nf4"
    return [
        WeightSize(w.elements, w.trains, NF4_BYTES if four_bit and w.four_bit else None) for w in case.model.weights
    ]


def sizes_of(case: PlanCase) -> list[WeightSize]:
    """Sizes of all weights on a process: the policy, plus a live reference.

    The reference is a full copy, or only the adapter's copy in grpo with LoRA.
    """
    sizes, weights = own_sizes(case), case.model.weights
    if case.flags.reference != "live":
        return sizes
    if not case.flags.model.lora_rank:
        return sizes + [WeightSize(w.elements, False) for w in weights]
    return sizes + [WeightSize(w.elements, False) for w in weights if w.trains and case.flags.groups]


def has_memo(model: ModelSizes, layout: Layout) -> bool:
    """Whether a frozen tower runs once for each picture of a generation batch."""
    return model.has("vision_tower") and may_memoise("vision_tower" not in model.parts_that_train(), layout.stage)


def fixed_of(case: PlanCase, layout: Layout) -> StaticMemory:
    """What one process holds under `layout` whatever its batches are."""
    each, optim = weight_bytes(case, layout), str(case.flags.training["optim"] or "adamw_torch")
    autocast = case.half() and each == 4
    setup = TrainingSetup(case.flags.plan.world_size, each, case.accumulation, optim, autocast)
    return static(sizes_of(case), layout, setup)


def peak_of(case: PlanCase, layout: Layout, batch: Batch, checkpointing: bool) -> Peak:
    """The peak of one process under `layout`; in grpo the larger of learning, sampling and scoring."""
    flags, compute = case.flags, 2 if case.half() else 4
    fixed = fixed_of(case, layout)
    memo = flags.groups is not None and has_memo(case.model, layout)
    model = case.model.without_tower() if memo else case.model
    kernel = flags.model.attn_implementation
    # Packed rows pass sdpa one at a time, without a mask (models/row_attention.py).
    kernel = "flash" if kernel == "sdpa" and flags.data.packing else kernel
    live = work.activations(model, batch, compute, checkpointing, kernel, flags.run.chunk_tokens)
    if flags.groups is None:
        return peak(fixed, live.kept, live.work, live.logits)
    return group_peak(case, layout, batch, fixed, live)


@dataclasses.dataclass(frozen=True)
class GroupPeak(Peak):
    """Bytes of one process: the parts are those of `learning`, `peak` is the largest of the three phases.

    `cache` is that of keys and values when the longest completion ends.
    """

    cache: float
    sampling: float
    scoring: float
    learning: float


def group_peak(case: PlanCase, layout: Layout, batch: Batch, fixed: StaticMemory, live: Activations) -> GroupPeak:
    """The three phases for micro batches of `batch`: prompts and completions.

    Adam's states lie there in all of them; gradients do while sampling and scoring where these come amid accumulation.
    """
    groups, model, attention = case.flags.groups, case.model, case.flags.model.attn_implementation
    assert groups is not None, "a stage of prompts"
    # Bytes of a weight, and of an activation.
    each, compute = weight_bytes(case, layout), 2 if case.half() else 4
    rows, tiles = max(groups.rows, batch.rows), batch.tiles // batch.rows
    prompt, memo = batch.tokens - groups.length, has_memo(model, layout)
    distinct = -(-rows // groups.generations) * tiles if memo else rows * tiles
    features = work.kept_features(model, distinct, each) if memo else 0
    held = fixed.resident + fixed.kept + features + (fixed.gradients if groups.inside else 0)
    # Without ZeRO the buffers are the policy's weights as autocast keeps them.
    gathered = fixed.buffers - fixed.kept if layout.stage == 0 else 0.0
    if layout.stage == 3:
        shards = case.flags.plan.world_size > 1 or layout.offload_param
        policy = each * sum(weight.elements for weight in model.weights) if shards else 0
        gathered = policy if groups.whole else fixed.buffers

    before, cache = (work.key_value_cache(model.text, rows, n, each, compute) for n in (prompt, batch.tokens))
    asked = Batch(rows, prompt, rows * tiles, 0)
    first = before + work.inference(model, asked, compute, attention, distinct)
    last = cache + work.decoding(model.text, rows, batch.tokens, cache, compute)
    sampling = held + gathered + max(first, last)

    head = (model.text, batch.labels, compute, each)
    trains = bool(model.parts_that_train() & {"lm_head", "embeddings"})
    scored = work.inference(model, batch, compute, attention, 0 if memo else None)
    without, within = (live.logits if groups.chunked else work.fused_head(*head, on, trains) for on in (False, True))
    scoring = held + (fixed.buffers if layout.stage == 3 else 0) + max(scored, without)

    learning = peak(fixed, live.kept + features, live.work, within)
    most = max(learning.peak, sampling, scoring if groups.passes else 0)
    parts = {**dataclasses.asdict(learning), "peak": most, "needed": needed(most)}
    return GroupPeak(**parts, cache=cache, sampling=sampling, scoring=scoring, learning=learning.peak)


def largest_micro(case: PlanCase, layout: Layout, limit: int) -> int:
    """The largest power of two of longest rows that fits `limit` bytes; 0 when not even one does."""
    micro = 0
    for number in (1, 2, 4, 8, 16, 32, 64, 128):
        if peak_of(case, layout, longest(case, number), case.checkpointing()).needed > limit:
            break
        micro = number
    return micro


def memory(case: PlanCase, limit: int, local_world: int) -> dict[str, Any]:
    """{layout: parts, peaks with and without checkpointing, fit}, with the chosen layout named."""
    all_layouts, chosen = layouts(case.flags)
    micro = int(case.flags.training["per_device_train_batch_size"])
    table = {}
    for layout in all_layouts:
        full = {on: peak_of(case, layout, longest(case, micro), on) for on in (True, False)}
        now = full[case.checkpointing()]
        table[layout.name] = {
            **dataclasses.asdict(now),
            "peak_with_checkpointing": full[True].peak,
            "peak_without_checkpointing": full[False].peak,
            "activations_with_checkpointing": full[True].activations,
            "activations_without_checkpointing": full[False].activations,
            "peak_typical_row": peak_of(case, layout, typical(case, micro), case.checkpointing()).peak,
            "cpu_a_node": now.cpu * local_world,
            "fits": now.needed <= limit,
            "largest_micro_batch": largest_micro(case, layout, limit),
            **wire_of(case, layout, local_world),
        }
    return {"chosen": chosen, "limit": limit, "micro_batch": micro, "layouts": table, "advice": advice(table, chosen)}


def wire_of(case: PlanCase, layout: Layout, local_world: int) -> dict[str, Any]:
    """What a process sends in an optimizer step. A live reference, which ZeRO-3 gathers in each forward pass too, is not counted."""
    world = case.flags.plan.world_size
    each = weight_bytes(case, layout)
    sent = sent_bytes(own_sizes(case), layout, world, each, case.accumulation, case.checkpointing())
    return wire(sent, world, local_world)


def advice(table: dict[str, dict[str, Any]], chosen: str) -> str:
    """One line: whether the chosen layout fits, and otherwise the first one that does."""
    if table[chosen]["fits"]:
        return f"{chosen} fits; the largest micro batch of longest rows is {table[chosen]['largest_micro_batch']}."
    fitting = [name for name, row in table.items() if row["fits"]]
    if fitting:
        return f"{chosen} does NOT fit. First layout that does: {flag_of(fitting[0])}."
    smaller = {name: row["largest_micro_batch"] for name, row in table.items() if row["largest_micro_batch"]}
    if smaller:
        name = next(iter(smaller))
        return f"No layout fits this micro batch. With --per_device_train_batch_size {smaller[name]} and {flag_of(name)} it does."
    if min(row["peak_with_checkpointing"] for row in table.values()) < min(row["peak"] for row in table.values()):
        return "No layout fits. Turn on --gradient_checkpointing, lower --max_length, or freeze and adapt more (--freeze, --lora_rank)."
    return "No layout fits one row. Lower --max_length, adapt with --lora_rank, or use more or larger GPUs."


def flag_of(layout: str) -> str:
    """The flag that chooses a layout."""
    return "no --deepspeed" if layout == "ddp" else f"--deepspeed {layout}"
