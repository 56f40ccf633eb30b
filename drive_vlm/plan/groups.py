"""A stage of prompts (stages/rl/generation.py): memory of the two phases in which nothing is learned, and FLOPs.

A generation batch is sampled at once on each process (a cache of keys and values for every completion), then scored by the
policy (where its batches are not fresh) and the reference, a micro batch at a time, then learned from as any other batch.
"""

import dataclasses

from drive_vlm.plan.activations import (
    Activations,
    Batch,
    decoding,
    fused_head,
    inference,
    kept_features,
    key_value_cache,
)
from drive_vlm.plan.bytes import CONTEXT, FRAGMENTATION, Layout, Peak, StaticMemory, peak
from drive_vlm.plan.model_sizes import ModelSizes
from drive_vlm.sampling import may_memoise
from drive_vlm.stages.rl.generation import GenerationBatch


@dataclasses.dataclass(frozen=True)
class GroupPeak(Peak):
    """Bytes of one process: the parts are those of `learning`, `peak` is the largest of the three phases.

    `cache` is that of keys and values when the longest completion ends.
    """

    cache: float
    sampling: float
    scoring: float
    learning: float


def has_memo(model: ModelSizes, layout: Layout) -> bool:
    """Whether a frozen tower runs once for each picture of a generation batch."""
    return model.has("vision_tower") and may_memoise("vision_tower" not in model.parts_that_train(), layout.stage)


def group_peak(
    groups: GenerationBatch,
    model: ModelSizes,
    layout: Layout,
    batch: Batch,
    fixed: StaticMemory,
    live: Activations,
    each: int,
    compute: int,
    attention: str,
    policy: float,
) -> GroupPeak:
    """The three phases for micro batches of `batch`: prompts and completions. Weights have `each` bytes, activations `compute`.

    `policy`: bytes of its weights, where ZeRO-3 holds shards of them and gathers them to sample.
    Adam's states lie there in all of them; gradients do while sampling and scoring where these come amid accumulation.
    """
    rows, tiles = max(groups.rows, batch.rows), batch.tiles // batch.rows
    prompt, memo = batch.tokens - groups.length, has_memo(model, layout)
    distinct = -(-rows // groups.generations) * tiles if memo else rows * tiles
    features = kept_features(model, distinct, each) if memo else 0
    held = fixed.resident + fixed.kept + features + (fixed.gradients if groups.inside else 0)
    # Without ZeRO the buffers are the policy's weights as autocast keeps them.
    gathered = fixed.buffers - fixed.kept if layout.stage == 0 else 0.0
    if layout.stage == 3:
        gathered = policy if groups.whole else fixed.buffers

    before, cache = (key_value_cache(model.text, rows, n, each, compute) for n in (prompt, batch.tokens))
    asked = Batch(rows, prompt, rows * tiles, 0)
    first = before + inference(model, asked, compute, attention, distinct)
    last = cache + decoding(model.text, rows, batch.tokens, cache, compute)
    sampling = held + gathered + max(first, last)

    head = (model.text, batch.labels, compute, each)
    trains = bool(model.parts_that_train() & {"lm_head", "embeddings"})
    scored = inference(model, batch, compute, attention, 0 if memo else None)
    scoring = held + (fixed.buffers if layout.stage == 3 else 0) + max(scored, fused_head(*head, False, trains))

    learning = peak(fixed, live.kept + features, live.work, fused_head(*head, True, trains))
    most = max(learning.peak, sampling, scoring if groups.passes else 0)
    parts = {
        **dataclasses.asdict(learning),
        "peak": most,
        "needed": most * (1 + FRAGMENTATION) + CONTEXT,
    }
    return GroupPeak(**parts, cache=cache, sampling=sampling, scoring=scoring, learning=learning.peak)


def step_flops(groups: GenerationBatch, train: float, forward: float, tower: float, memo: bool) -> float:
    """FLOPs that one completion costs a step: sampled and scored once for `iterations` steps, learned from in each.

    `train` and `forward` are those of prompt and completion with their pictures; with a memo `tower`, the tower's share of a
    forward pass, falls to a group once.
    """
    rollout = (1 + groups.passes) * forward / groups.iterations
    if not memo:
        return train + rollout
    return train - tower + rollout * (1 - tower / forward) + tower / (groups.generations * groups.iterations)
