"""The frozen reference that the policy of a run is held to: what the run began with."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from drive_vlm.models import load_family
from drive_vlm.sampling.tower_memo import TowerMemo
from drive_vlm.sampling.vision import install_in
from drive_vlm.stages.engine.build import RunParts

if TYPE_CHECKING:
    import trl


@contextlib.contextmanager
def without_own_reference(model: torch.nn.Module, args: "trl.GRPOConfig") -> Iterator[None]:
    """Stop trl.GRPOTrainer's constructor (1.16) from building its own reference model, inside this context.

    On resume it would load the checkpoint instead of --model. With adapters TRL's copy of the adapter is right and kept.
    """
    beta = args.beta
    if not hasattr(model, "peft_config"):
        args.beta = 0.0
    try:
        yield
    finally:
        args.beta = beta


def load_reference(parts: RunParts, args: "trl.GRPOConfig", memo: TowerMemo | None) -> torch.nn.Module | None:
    """--model once more, frozen, for the KL term. None with --beta 0, and with adapters, where TRL's copy is the reference."""
    if not args.beta or hasattr(parts.family.model, "peft_config"):
        return None
    return frozen_copy(parts, memo)


def frozen_copy(parts: RunParts, memo: TowerMemo | None) -> torch.nn.Module:
    """--model once more, frozen, in the dtype of the policy."""
    policy = parts.family.model
    family = load_family(dataclasses.replace(parts.flags.model, lora_rank=0), policy.dtype, for_training=True)
    family.model.requires_grad_(False)
    if parts.features is not None:
        from drive_vlm.models.vision_features import detach_tower

        detach_tower(family, parts.features.feature_shape, keep=False)
    elif memo is not None:
        # Both towers are frozen and equal, so that they may share what one of them has computed.
        install_in(memo, family)
    return family.model


def copy_adapter(policy: Any) -> None:
    """Add the frozen adapter `ref`, a copy of `default` as it is now, to a PeftModel; as trl.GRPOTrainer (1.16) does.

    Raises ValueError where the copy is not exact.
    """
    policy.add_adapter("ref", policy.peft_config["default"])
    for name, weight in policy.named_parameters():
        if ".default." in name:
            copy = policy.get_parameter(name.replace(".default.", ".ref."))
            copy.data.copy_(weight.data)
            copy.requires_grad_(False)
    check_copy(policy)


def check_copy(policy: torch.nn.Module) -> None:
    """Raises ValueError unless the adapter `ref` is `default` to the last bit: adapter, and parts that train in full next
    to it (modules_to_save)."""
    weights = dict(policy.named_parameters(remove_duplicate=False))
    own = {name: weight for name, weight in weights.items() if ".default." in name}
    for name, weight in own.items():
        copy = weights.get(name.replace(".default.", ".ref."))
        if copy is None or copy.requires_grad or not torch.equal(_shard(copy), _shard(weight)):
            raise ValueError(
                f"{name}: the reference adapter does not hold the same weight, so the KL would be to something else. "
                "Merge the adapter (python -m drive_vlm merge) and train without --deepspeed zero3, or use --beta 0."
            )
    assert own, "a PeftModel has an adapter"


def _shard(weight: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a weight: under ZeRO-3 its part."""
    return getattr(weight, "ds_tensor", weight).detach()
