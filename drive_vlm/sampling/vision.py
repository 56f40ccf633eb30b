"""Vision tensors of a batch of rows, and the memo before a frozen tower."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from drive_vlm.config import DataConfig
from drive_vlm.sampling import may_memoise
from drive_vlm.sampling.tower_memo import TowerMemo


def install_memo(family: Any, data: DataConfig) -> TowerMemo | None:
    """The memo before a frozen tower. None where the tower trains, or draws at random, under ZeRO-3, where all ranks must run
    the same modules, and with --feature_cache, where no tower runs."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if data.feature_cache or not family.parts.get("vision_tower"):
        return None
    modules = _towers(family)
    frozen = not any(weight.requires_grad for tower in modules for weight in tower.parameters())
    random = any(isinstance(m, torch.nn.Dropout) and m.p for tower in modules for m in tower.modules())
    if random or not may_memoise(frozen, 3 if is_deepspeed_zero3_enabled() else 0):
        return None
    memo = TowerMemo()
    install_in(memo, family)
    return memo


def _towers(family: Any) -> list[Any]:
    model = family.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return [base.get_submodule(path) for path in family.parts["vision_tower"]]


def install_in(memo: TowerMemo, family: Any) -> None:
    for tower in _towers(family):
        memo.install(tower)


def vision_taker(
    family: Any, data: DataConfig
) -> tuple[Callable[[Sequence[dict[str, Any]]], dict[str, Any]], dict[str, Any]]:
    """(vision tensors of rows -> those of a batch, what a forward pass gets in a batch without pictures).

    Cached features go by the name that the model's forward takes; native classes find them in `pixel_values`.
    """
    if family.vision is None:
        return lambda rows: {}, {}
    model = family.model
    body = (model.get_base_model() if hasattr(model, "get_base_model") else model).model
    native = "vision_features" in inspect.signature(body.forward).parameters

    def take(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        given = [row for row in rows if row]
        if not given:
            return {}
        if data.feature_cache:
            features = torch.cat([torch.as_tensor(row["vision_features"]) for row in given])
            return {"vision_features" if native else "pixel_values": features}
        return family.vision.collate_vision(given)

    return take, {"tower_pass": True}
