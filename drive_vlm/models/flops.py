"""Model FLOPs of a training step, from weight counts: 2 a weight for the forward pass, 2 for the gradient that flows
on, 2 for the weight's own gradient. Attention scores are left out; recomputed activations are not counted."""

import dataclasses
import re
from typing import Any

from drive_vlm.models.family import FamilyModel
from drive_vlm.models.freezing import parameter_size


@dataclasses.dataclass(frozen=True)
class TrainFlops:
    """FLOPs for one token of the language model, one labelled position of the head, one tile of the vision tower."""

    token: float
    label: float
    tile: float

    def __call__(self, tokens: int, labels: int, tiles: int) -> float:
        return self.token * tokens + self.label * labels + self.tile * tiles


def train_flops(family: FamilyModel) -> TrainFlops:
    """FLOPs of `family` as it is frozen and adapted now."""
    base = family.base
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    body = _part_weights(base, family, "language_model", skip=(embedding, head))
    tower = _part_weights(base, family, "vision_tower")
    projector = _part_weights(base, family, "projector")
    # Gradients flow through the language model whenever anything in or before it trains.
    vision_trains = tower[1] or projector[1]
    return TrainFlops(
        token=body[0] * (4 + 2 * body[1]),
        label=parameter_size(head.weight) * (4 + 2 * head.weight.requires_grad),
        tile=family.tokens_per_tile * tower[0] * (6 if tower[1] else 2)
        + family.projector_tokens * projector[0] * (6 if vision_trains else 2),
    )


def _part_weights(base: Any, family: FamilyModel, part: str, skip: tuple[Any, ...] = ()) -> tuple[int, bool]:
    """(weights of the part's matrices that a token passes, whether any of its own weights trains)."""
    left_out = {id(parameter) for module in skip for parameter in module.parameters()}
    total, trains = 0, False
    for prefix in family.parts.get(part, ()):
        for name, parameter in base.get_submodule(prefix).named_parameters():
            # Next to the part that peft trains in full (modules_to_save) lies the original, which no token passes.
            if id(parameter) in left_out or "lora_" in name or "original_module." in name:
                continue
            trains |= parameter.requires_grad
            # A token passes one of a layer's experts, whichever of them trains.
            if family.spec.idle is None or not re.search(family.spec.idle, f"{prefix}.{name}"):
                total += parameter_size(parameter)
    return total, trains
