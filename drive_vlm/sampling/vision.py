"""Vision tensors of a batch of rows, and the memo before a frozen tower."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from drive_vlm.config import DataConfig
from drive_vlm.models.family import Family
from drive_vlm.sampling import may_memoise
from drive_vlm.sampling.tower_memo import TowerMemo


def install_memo(family: Family, data: DataConfig) -> TowerMemo | None:
    """Put a memo in front of a frozen tower and return it.

    None where the tower trains or draws at random; under ZeRO-3, where all ranks must run the same modules; and with
    --feature_cache, where no tower runs.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if data.feature_cache or family.vision is None or not family.vision.apart:
        return None
    modules = _towers(family)
    frozen = not any(weight.requires_grad for tower in modules for weight in tower.parameters())
    random = any(isinstance(m, torch.nn.Dropout) and m.p for tower in modules for m in tower.modules())
    if random or not may_memoise(frozen, 3 if is_deepspeed_zero3_enabled() else 0):
        return None
    memo = TowerMemo()
    install_in(memo, family)
    return memo


def _towers(family: Family) -> list[Any]:
    return [family.base.get_submodule(path) for path in family.parts["vision_tower"]]


def install_in(memo: TowerMemo, family: Family) -> None:
    for tower in _towers(family):
        memo.install(tower)


def vision_taker(
    family: Family, data: DataConfig
) -> tuple[Callable[[Sequence[dict[str, Any]]], dict[str, Any]], dict[str, Any]]:
    """(vision tensors of rows -> those of a batch, what a forward pass gets in a batch without pictures).

    Cached features go by the name that the model's forward takes; native classes find them in `pixel_values`.
    """
    vision = family.vision
    if vision is None:
        return lambda rows: {}, {}
    native = "vision_features" in inspect.signature(family.base.model.forward).parameters

    def take(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        given = [row for row in rows if row]
        if not given:
            return {}
        if data.feature_cache:
            joined = {name: torch.cat([torch.as_tensor(row[name]) for row in given]) for name in given[0]}
            return joined if native else joined | {"pixel_values": joined.pop("vision_features")}
        return vision.collate_vision(given)

    return take, {"tower_pass": True}
