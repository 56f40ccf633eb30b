"""LoRA through peft: the language model gets the adapter, parts that are not frozen train in full beside it."""

from collections.abc import Sequence
from typing import Any

from drive_vlm.config import ModelConfig
from drive_vlm.models import Family


def apply_lora(family: Family, config: ModelConfig, frozen: Sequence[str]) -> Any:
    """Wrap `family.model`: adapters on the language model's linear layers, other unfrozen parts in `modules_to_save`.

    Raises ValueError when the language model is to be frozen as well, which would leave the adapter without effect.
    """
    from peft import LoraConfig, get_peft_model

    if "language_model" in frozen:
        raise ValueError(
            "--freeze language_model with --lora_rank: LoRA already keeps its weights. Leave language_model out of --freeze."
        )
    trained = [
        path.rsplit(".", 1)[-1]
        for name, paths in family.parts.items()
        if name not in (*frozen, "language_model")
        for path in paths
    ]
    return get_peft_model(
        family.model,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            lora_dropout=config.lora_dropout,
            target_modules=config.lora_targets or family.lora_targets,
            modules_to_save=trained or None,
        ),
    )
