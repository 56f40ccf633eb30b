"""What the rest of the project knows of a model: its processor, picture side, named parts and picture tokens."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class ProcessorParts:
    """What the data path needs of a model, loaded without its weights; fields as in Family."""

    processor: Any
    tokenizer: Any
    template: str
    vision: Any


@dataclasses.dataclass
class Family:
    """A loaded model and what the rest of the project needs to know of it.

    Attributes:
        model: the transformers model, perhaps wrapped by peft.
        processor: its processor; saved beside every checkpoint.
        tokenizer: the processor's fast tokenizer.
        template: its Jinja chat template.
        vision: picture side for the data path (drive_vlm.data.vision.VisionAdapter); None for a plain language model.
        parts: part name -> module path prefixes, e.g. {"projector": ("model.multi_modal_projector",)}.
        lora_targets: regular expression of the linear layers that `--lora_rank` adapts.
        tokens_per_tile: vision tower tokens for one tile, and
        projector_tokens: what the projector makes of them (both for the FLOPs count).
    """

    name: str
    model: Any
    processor: Any
    tokenizer: Any
    template: str
    vision: Any
    parts: dict[str, tuple[str, ...]]
    lora_targets: str
    tokens_per_tile: int
    projector_tokens: int
