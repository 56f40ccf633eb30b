"""From the tower's features to tokens of the language model: a pooled MLP, or a Perceiver resampler."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from drive_vlm.models.siglip_qwen.configuration import SiglipQwenConfig


def pool_grid(features: torch.Tensor, size: int) -> torch.Tensor:
    """Average over windows of `size` x `size` patches: float[P, s * s, Dv] -> float[P, ceil(s / size)^2, Dv].

    Windows at the right and lower edge that reach beyond the grid average what lies inside.
    """
    if size == 1:
        return features
    pictures, patches, width = features.shape
    side = math.isqrt(patches)
    grid = features.transpose(1, 2).reshape(pictures, width, side, side)
    return F.avg_pool2d(grid, size, ceil_mode=True, count_include_pad=False).flatten(2).transpose(1, 2)


class MlpProjector(nn.Module):
    """Pooling, then linear, GELU, linear, as the Drive-VLM paper has it: float[P, L, Dv] -> float[P, L', D]."""

    def __init__(self, config: SiglipQwenConfig) -> None:
        super().__init__()
        self.pool_size = config.pool_size
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(pool_grid(features, self.pool_size))))


class ResamplerLayer(nn.Module):
    """Queries attend to the features of their frame, then a GELU MLP; both with a norm before and a residual around."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.feature_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1, self.fc2 = nn.Linear(width, config.intermediate_size), nn.Linear(config.intermediate_size, width)

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """queries float[P, Q, Dv], features float[P, L, Dv] -> float[P, Q, Dv]."""
        asked, known = self.query_norm(queries), self.feature_norm(features)
        heads = [
            tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tensor in (self.q_proj(asked), self.k_proj(known), self.v_proj(known))
        ]
        found = F.scaled_dot_product_attention(*heads)
        queries = queries + self.out_proj(found.transpose(1, 2).flatten(2))
        return queries + self.fc2(F.gelu(self.fc1(self.mlp_norm(queries))))


class Resampler(nn.Module):
    """Perceiver resampler: Q learned queries for each frame, float[P, L, Dv] -> float[P, Q, D]."""

    def __init__(self, config: SiglipQwenConfig) -> None:
        super().__init__()
        vision = config.vision_config
        self.queries = nn.Parameter(torch.empty(config.num_queries, vision.hidden_size))
        self.layers = nn.ModuleList([ResamplerLayer(vision) for _ in range(config.resampler_layers)])
        self.norm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.proj = nn.Linear(vision.hidden_size, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        queries = self.queries.to(features.dtype).expand(len(features), -1, -1)
        for layer in self.layers:
            queries = layer(queries, features)
        return self.proj(self.norm(queries))


def build_projector(config: SiglipQwenConfig) -> nn.Module:
    return Resampler(config) if config.projector_type == "resampler" else MlpProjector(config)
