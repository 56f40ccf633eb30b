"""A vision tower apart from its model: which one it is, what it gives, and a model that trains without it.

A family takes part when its only vision tensor is `pixel_values` and its tower is one module whose features of the last
layer go on to the rest; a body with a method `tower_features(pixel_values) -> float[P, L, Dv]` says itself what those are.
Or its FamilySpec says by `cached` which module leaves the model, and what the cache holds of it.
"""

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from drive_vlm.models.family import Family

# Config fields that change the tower's output but cannot be seen in its weights.
_SEMANTIC = (
    "model_type", "hidden_act", "layer_norm_eps", "num_attention_heads", "norm_type", "use_qk_norm", "image_size",
    "num_heads", "window_size", "fullatt_block_indexes", "deepstack_visual_indexes",
)  # fmt: skip


class CachedTower(torch.nn.Module):
    """Stands in the tower's place and hands on the features that it is given as `pixel_values float[P, L, Dv]`.

    With `as_hidden_states` also as the only hidden state, for a body that reads hidden_states[-1]. That is not always
    last_hidden_state (a tower's final norm may lie between), so such a body must say by tower_features what it reads.
    """

    def __init__(self, as_hidden_states: bool = False) -> None:
        super().__init__()
        self.as_hidden_states = as_hidden_states

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        """`pixel_values` as a tower's output, unchanged. Raises ValueError for pictures."""
        from transformers.modeling_outputs import BaseModelOutput

        if pixel_values.ndim != 3:
            raise ValueError(
                f"expected cached features float[P, L, Dv], got a tensor of shape {tuple(pixel_values.shape)}: this model was "
                "loaded for --feature_cache, without its vision tower."
            )
        hidden_states: Any = (pixel_values,) if self.as_hidden_states else None
        return BaseModelOutput(last_hidden_state=pixel_values, hidden_states=hidden_states)


def _tower_path(family: Family) -> str:
    if family.spec.cached is not None:
        return family.spec.cached.path
    paths = family.parts.get("vision_tower", ())
    if len(paths) != 1:
        raise ValueError(
            f"{family.name}: a feature cache needs a model with one vision tower, this one has {len(paths)}."
        )
    dummy = family.vision.dummy_inputs() if family.vision is not None else {}
    if set(dummy) != {"pixel_values"} or dummy["pixel_values"].ndim != 4:
        shapes = ", ".join(f"{name} of shape {list(value.shape)}" for name, value in sorted(dummy.items()))
        raise ValueError(
            f"{family.name}: its tower takes {shapes}; a feature cache knows pixel_values float[P, 3, H, W] only. Leave "
            "--feature_cache out."
        )
    return paths[0]


def vision_tower(family: Family) -> Any:
    """The tower's module. Raises ValueError for a model without one."""
    return family.base.get_submodule(_tower_path(family))


def tower_features(family: Family, vision: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`float[P, L, Dv]` of the P tiles of vision tensors: the tower's output before whatever follows it, or what `cached` says."""
    body = family.base.model
    if family.spec.cached is not None:
        return family.spec.cached.features(body, vision)
    assert family.vision is not None, "a tower belongs to a family with pictures"
    pixel_values = family.vision.decimals(vision).to(body.dtype)
    if hasattr(body, "tower_features"):
        return body.tower_features(pixel_values)
    layer = getattr(body.config, "vision_feature_layer", -1)
    if layer != -1:
        raise ValueError(
            f"{family.name}: vision_feature_layer {layer}; a feature cache holds the last layer (-1) only."
        )
    return vision_tower(family)(pixel_values=pixel_values, return_dict=True).last_hidden_state


@contextlib.contextmanager
def _gathered(module: Any) -> Iterator[None]:
    """Gather the ZeRO-3 shards of `module` on every rank inside the context."""
    sharded = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


def tower_identity(family: Family) -> dict[str, Any]:
    """What names a tower: a hash of its weights, and the settings that no weight shows.

    Weights are hashed as bfloat16, so that a checkpoint saved in bfloat16 has the tower of the one it was trained from.
    """
    tower = vision_tower(family)
    digest = hashlib.blake2b(digest_size=16)
    with torch.no_grad(), _gathered(tower):
        for name, tensor in sorted(tower.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
    config = tower.config.to_dict() if hasattr(tower, "config") else {}
    return {"weights": digest.hexdigest(), **{name: config[name] for name in _SEMANTIC if name in config}}


def require_frozen_tower(family: Family) -> None:
    """Raises ValueError when a weight of the tower, or an adapter in it, trains."""
    trains = [name for name, parameter in vision_tower(family).named_parameters() if parameter.requires_grad]
    if trains:
        parts = family.spec.cached_parts
        what = " or ".join(["the vision tower", *(f"the {part} behind it" for part in parts if part != "vision_tower")])
        raise ValueError(
            f"--feature_cache: {what} trains ({len(trains)} tensors, such as {trains[0]}), so its features change with every "
            f"step. Add --freeze {' '.join(parts)}, or leave --feature_cache out."
        )


def detach_tower(family: Family, feature_shape: tuple[int, int], keep: bool) -> dict[str, torch.Tensor]:
    """Take the tower out of the model, which then takes `vision_features float[P, L, Dv]` in place of `pixel_values`.

    Before the model is moved to a device, so that the tower never lies on it. Returns the tower's weights on the CPU,
    by their names in the model, for checkpoints to be whole; {} without `keep`.
    """
    base, path = family.base, _tower_path(family)
    tower = base.get_submodule(path)
    weights: dict[str, torch.Tensor] = {}
    with torch.no_grad(), _gathered(tower):
        if keep:
            weights = {f"{path}.{name}": tensor.to("cpu", copy=True) for name, tensor in tower.state_dict().items()}
    # Patch 1: the tower's place in the module tree. No rank enters the tower again, so ZeRO-3 sees one order of modules.
    cached = family.spec.cached
    base.set_submodule(path, cached.stand_in(tower) if cached else CachedTower(hasattr(base.model, "tower_features")))
    native = "vision_features" in inspect.signature(base.model.forward).parameters
    if not native:
        _take_features_as_pixels(base.model)
    # The same modules in the same order as a batch with pictures enters: ZeRO-3 counts even those without weights.
    given = {"vision_features" if native else "pixel_values": torch.zeros(1, *feature_shape)}
    dummy = family.vision.dummy_inputs() if family.vision is not None else {}
    base.model.tower_pass_inputs = {name: one for name, one in dummy.items() if name != "pixel_values"} | given
    return weights


def _take_features_as_pixels(body: Any) -> None:
    """Let `body.forward` of native classes accept `vision_features`: the CachedTower finds them in `pixel_values`."""
    own_forward = body.forward

    @functools.wraps(own_forward)
    def forward(*args: Any, vision_features: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if vision_features is not None:
            # The cache may hold half precision, and not every class casts what it gets.
            kwargs["pixel_values"] = vision_features.to(body.dtype)
        return own_forward(*args, **kwargs)

    # Patch 2: of the body's forward. A batch says `vision_features`, which native classes do not know.
    body.forward = forward
