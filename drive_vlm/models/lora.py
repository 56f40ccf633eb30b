"""LoRA through peft: the language model gets the adapter, parts that are not frozen train in full beside it."""

from collections.abc import Sequence
from typing import Any

from drive_vlm.config import ModelConfig
from drive_vlm.models import Family


def apply_lora(family: Family, config: ModelConfig, frozen: Sequence[str]) -> Any:
    """Wrap `family.model`: adapters on the language model's linear layers, other unfrozen parts in `modules_to_save`.

    Weights that were frozen before stay frozen. Raises ValueError when the language model or a layer of it is to be
    frozen as well, which would leave the adapter there without a meaning.
    """
    from peft import LoraConfig, get_peft_model

    body = family.parts["language_model"][0]
    for name in frozen:
        if name == "language_model" or f"{name}.".startswith(f"{body}."):
            raise ValueError(
                f"--freeze {name} with --lora_rank: LoRA already keeps its weights. Leave it out of --freeze; --lora_targets chooses layers."
            )
    kept = {name for name, parameter in family.model.named_parameters() if not parameter.requires_grad}
    trained = [
        path.rsplit(".", 1)[-1]
        for name, paths in family.parts.items()
        if name != "language_model"
        for path in paths
        if any(parameter.requires_grad for parameter in family.model.get_submodule(path).parameters())
    ]
    model = get_peft_model(
        family.model,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            lora_dropout=config.lora_dropout,
            target_modules=config.lora_targets or family.lora_targets,
            modules_to_save=trained or None,
        ),
    )
    for name, parameter in model.named_parameters():  # peft turns on the whole of a module that it saves
        if name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") in kept:
            parameter.requires_grad_(False)
    return model
