"""What tools/bench/gpu.py measures: parts in the order of their value, and the cases of each, as plain data."""

import dataclasses
from typing import Any

_PACK = {"freeze": "vision_tower", "packing": True, "bf16": True, "per_device_train_batch_size": 1}
_LONG = {**_PACK, "max_length": 16384, "gradient_checkpointing": True}
_SHORT = {**_PACK, "max_length": 4096}
# Usable bytes of a card that is sold with 24 GB.
_CARD = int(23.5 * 2**30)


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement in a process of its own.

    Attributes:
        run: the function of gpu_measure.py: environment, train, peer or resume.
        stage: the command that trains.
        model: a key of gpu_models.MODELS.
        recipe: a recipe whose flags come first, as DRY_RUN=1 prints them; `words` win.
        rows: which rows it trains on: mixed, clips or pairs (gpu_models.py).
        warm_up, steps: optimizer steps before the measurement, and in it.
        memory: bytes of GPU memory that the process may take.
        needs: packages without which it is skipped.
        against: the case of the same part whose losses these are compared with, and the largest relative difference that is equal.
        features: the tower's features come from a cache that is made first.
        gpus: processes, each with a GPU of its own; 0: as many as there are.
    """

    name: str
    run: str = "train"
    stage: str = "sft"
    model: str = "internvl"
    recipe: str | None = None
    rows: str = "mixed"
    words: dict[str, Any] = dataclasses.field(default_factory=dict)
    warm_up: int = 2
    steps: int = 6
    memory: int | None = None
    needs: tuple[str, ...] = ()
    against: tuple[str, float] | None = None
    features: bool = False
    gpus: int = 1


@dataclasses.dataclass(frozen=True)
class Part:
    """`seconds`: about what it takes; --minutes are shared out in this proportion."""

    title: str
    seconds: int
    cases: tuple[Case, ...]


def _card(name: str, recipe: str, stage: str = "sft", **more: Any) -> Case:
    """A stage of Drive-VLM's recipe within the memory of a 24 GB card: one micro batch a step, the rest as the recipe has it."""
    words = {"num_frames": 16, "dataloader_num_workers": 4, **more.pop("words", {})}
    words = {"global_batch_size": 2, **words}
    return Case(name, stage=stage, model="siglip_qwen", recipe=recipe, rows="clips", words=words, memory=_CARD, **more)


def _equal(name: str, tolerance: float | None, needs: tuple[str, ...] = (), **words: Any) -> Case:
    """Three steps of a toy model on eight rows, all of them in every step: packed or not, the loss is that of the same tokens."""
    against = ("cpu_fp32", tolerance) if tolerance else None
    fixed = {"freeze": "vision_tower", "max_length": 2048, "learning_rate": 1e-3, "logging_steps": 1}
    size = (
        {"packing": True, "per_device_train_batch_size": 1}
        if words.pop("packed", False)
        else {"per_device_train_batch_size": 8}
    )
    return Case(
        name,
        model="toy",
        rows="eight",
        words={**fixed, **size, **words},
        warm_up=0,
        steps=3,
        needs=needs,
        against=against,
    )


def _layout(name: str, layout: str, against: tuple[str, float] | None = ("zero1", 0.02), **more: Any) -> Case:
    needs = ("deepspeed", *more.pop("needs", ()))
    words = {**_SHORT, "gradient_checkpointing": True, "deepspeed": layout, "logging_steps": 1, **more.pop("words", {})}
    return Case(name, words=words, needs=needs, against=against, warm_up=1, steps=2, **more)


_GROUPS = {
    "num_frames": 16,
    "num_generations": 8,
    "per_device_train_batch_size": 8,
    "global_batch_size": 8,
    "max_completion_length": 256,
}
_PAIRS = {
    "lora_rank": 64,
    "freeze": "vision_tower",
    "bf16": True,
    "gradient_checkpointing": True,
    "max_length": 2048,
    "per_device_train_batch_size": 2,
}
_SAVED = {
    **_SHORT,
    "deepspeed": "zero2",
    "gradient_checkpointing": True,
    "save_strategy": "steps",
    "save_steps": 2,
    "max_steps": 4,
}

PARTS: dict[str, Part] = {
    "a": Part("environment", 20, (Case("environment", run="environment"),)),
    "b": Part(
        "SFT, InternVL3-1B, tower frozen",
        120,
        (
            Case("packed_4096", words=_SHORT),
            Case("packed_4096_flash", words={**_SHORT, "attn_implementation": "flash"}, needs=("flash_attn",)),
            Case("packed_16384", words=_LONG, steps=3),
            Case("trl", run="peer", words=_SHORT, needs=("trl", "datasets")),
            Case("packed_4096_flex", words={**_SHORT, "attn_implementation": "flex"}),
            Case("packed_16384_flash", words={**_LONG, "attn_implementation": "flash"}, needs=("flash_attn",), steps=3),
            Case("packed_4096_checkpointing", words={**_SHORT, "gradient_checkpointing": True}),
        ),
    ),
    "c": Part(
        "24 GB: SigLIP2-SO400M, Qwen3-4B, LoRA of rank 32, 16 frames",
        120,
        (
            _card("stage2", "drive_vlm_stage2.sh", steps=4, needs=("deepspeed",)),
            _card("stage1", "drive_vlm_stage1.sh", steps=4, needs=("deepspeed",)),
            _card(
                "stage3",
                "drive_vlm_stage3.sh",
                stage="grpo",
                warm_up=1,
                steps=1,
                needs=("deepspeed", "trl"),
                words={"rewards": "length", "lora_rank": 32, "sample_steps": 0},
            ),
            _card("stage2_features", "drive_vlm_stage2.sh", steps=4, features=True, needs=("deepspeed",)),
            _card("stage1_features", "drive_vlm_stage1.sh", steps=4, features=True, needs=("deepspeed",)),
            _card(
                "stage2_nf4",
                "drive_vlm_stage2.sh",
                steps=4,
                words={"quantize": "nf4"},
                needs=("deepspeed", "bitsandbytes"),
            ),
        ),
    ),
    "d": Part(
        "GRPO, SigLIP2-SO400M, Qwen3-4B: the parts of a step",
        60,
        (
            Case(
                "step",
                stage="grpo",
                model="siglip_qwen",
                rows="clips",
                warm_up=1,
                steps=2,
                needs=("trl",),
                words={
                    **_GROUPS,
                    "rewards": "length",
                    "lora_rank": 32,
                    "bf16": True,
                    "gradient_checkpointing": True,
                    "freeze": ["vision_tower", "temporal_embeddings"],
                    "max_length": 2048,
                    "sample_steps": 0,
                },
            ),
        ),
    ),
    "e": Part(
        "preference, LLaVA-Next-8B, LoRA of rank 64",
        60,
        (
            Case(
                "cached",
                stage="dpo",
                model="llava_next",
                rows="pairs",
                words={**_PAIRS, "reference": "cached"},
                steps=3,
                needs=("trl",),
            ),
            Case(
                "live",
                stage="dpo",
                model="llava_next",
                rows="pairs",
                words={**_PAIRS, "reference": "live"},
                steps=3,
                needs=("trl",),
            ),
        ),
    ),
    "f": Part(
        "equality of losses, toy model, eight rows",
        40,
        (
            _equal("cpu_fp32", None, use_cpu=True),
            _equal("fp32", 1e-4),
            _equal("fp32_packed", 1e-4, packed=True),
            _equal("fp32_chunked", 1e-4, chunk_tokens=16),
            _equal("bf16", 0.03, bf16=True),
            _equal("bf16_packed_flash", 0.03, ("flash_attn",), bf16=True, packed=True, attn_implementation="flash"),
            _equal("fp32_packed_flex", 1e-3, packed=True, attn_implementation="flex"),
            _equal("bf16_nf4", 0.2, ("bitsandbytes",), bf16=True, quantize="nf4"),
        ),
    ),
    "g": Part(
        "DeepSpeed, InternVL3-1B, packs of 4,096",
        80,
        (
            _layout("zero1", "zero1", None),
            _layout("zero2", "zero2"),
            _layout("zero3", "zero3"),
            Case("save", run="save", words=_SAVED, warm_up=1, steps=2, needs=("deepspeed",)),
            Case("resume", run="resume", words=_SAVED, warm_up=0, steps=1, needs=("deepspeed",)),
            _layout("zero2_offload", "zero2_offload"),
            _layout("zero3_offload", "zero3_offload"),
        ),
    ),
    "h": Part(
        "several GPUs, InternVL3-1B, packs of 4,096",
        60,
        tuple(_layout(f"{layout}_all", layout, None, gpus=0) for layout in ("zero1", "zero2", "zero3")),
    ),
}
