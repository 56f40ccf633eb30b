"""What `model.visual` makes of pictures as one array, for a feature cache, and what stands in its place.

A tile's features are a vector as wide as the language model's; in Qwen3-VL those that DeepStack adds to its first layers follow.
"""

from collections.abc import Mapping
from typing import Any

import torch


def features_of(body: Any, vision: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`float[P, 1, D * (1 + layers of DeepStack)]` of the P tiles of `pixel_values float[P, 4, D]` and `image_grid_thw`."""
    made = body.get_image_features(vision["pixel_values"], vision["image_grid_thw"], return_dict=True)
    parts = [made.pooler_output, *(getattr(made, "deepstack_features", None) or ())]
    # Of each picture apart; transformers 5.17 leaves those of DeepStack in one.
    whole = [part if isinstance(part, torch.Tensor) else torch.cat(list(part)) for part in parts]
    return torch.cat(whole, dim=-1)[:, None]


class CachedVisual(torch.nn.Module):
    """Hands on the features that it is given in the place of patches."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        # What the body asks `visual` for.
        self.spatial_merge_size, self.dtype = visual.spatial_merge_size, visual.dtype
        self.width = visual.config.out_hidden_size
        # Parts are looked up by their paths (FLOPs); without weights they count nothing.
        for name, _ in visual.named_children():
            self.add_module(name, torch.nn.Module())

    def forward(self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **_: Any) -> Any:
        """The output of `visual` of cached features float[P, 1, D * (1 + layers of DeepStack)]. Raises ValueError for pictures."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        if hidden_states.ndim != 3 or hidden_states.shape[1] != 1:
            raise ValueError(
                f"expected cached features float[P, 1, D], got a tensor of shape {tuple(hidden_states.shape)}: this model was "
                "loaded for --feature_cache, without its vision tower."
            )
        merged, *deeper = hidden_states[:, 0].split(self.width, dim=-1)
        return BaseModelOutputWithDeepstackFeatures(pooler_output=merged, deepstack_features=deeper)
