"""The EVA2 tower, whose norms act on the branches' outputs, and the adapter: convolution, gated MLP, boi and eoi."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from drive_vlm.models.cogvlm2.configuration import CogVLM2Config
from drive_vlm.models.cogvlm2.tiling import POOL


class PatchEmbedding(nn.Module):
    """pixel_values float[P, 3, H, W] -> float[P, 1 + L, Dv], the class token first, positions added."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__()
        sizes = config.vision_config
        patch = sizes.patch_size
        self.proj = nn.Conv2d(sizes.in_channels, sizes.hidden_size, kernel_size=patch, stride=patch)
        self.cls_embedding = nn.Parameter(torch.zeros(1, sizes.hidden_size))
        self.position_embedding = nn.Embedding(sizes.num_positions, sizes.hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.proj(pixel_values).flatten(2).transpose(1, 2)
        classes = self.cls_embedding.expand(len(patches), 1, -1)
        tokens = torch.cat([classes.to(patches.dtype), patches], dim=1)
        # Looked up, not read from the weight: ZeRO-3 gathers it in the module's own call.
        return tokens + self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))


class TowerAttention(nn.Module):
    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__()
        self.config, sizes = config, config.vision_config
        self.heads = sizes.num_heads
        self.head_dim = sizes.hidden_size // sizes.num_heads
        self.query_key_value = nn.Linear(sizes.hidden_size, 3 * sizes.hidden_size)
        self.dense = nn.Linear(sizes.hidden_size, sizes.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden float[P, L, Dv] -> float[P, L, Dv]."""
        packed = self.query_key_value(hidden).unflatten(-1, (3, self.heads, self.head_dim))
        # float[P, heads, L, head_dim] each.
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, _ = attend(self, query, key, value, None, scaling=self.head_dim**-0.5, dropout=0.0)
        return self.dense(out.flatten(2))


class TowerMLP(nn.Module):
    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__()
        sizes = config.vision_config
        self.fc1 = nn.Linear(sizes.hidden_size, sizes.intermediate_size)
        self.fc2 = nn.Linear(sizes.intermediate_size, sizes.hidden_size)
        self.activation = ACT2FN[sizes.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden)))


class TowerLayer(GradientCheckpointingLayer):
    """The published names say input_layernorm and post_attention_layernorm, but both act on what a branch gives."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__()
        sizes = config.vision_config
        self.attention, self.mlp = TowerAttention(config), TowerMLP(config)
        self.input_layernorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.input_layernorm(self.attention(hidden))
        return hidden + self.post_attention_layernorm(self.mlp(hidden))


class Tower(nn.Module):
    """pixel_values float[P, 3, H, W] -> last_hidden_state float[P, 1 + L, Dv]; no norm at the end."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__()
        # A feature cache names the tower by it.
        self.config = config.vision_config
        self.patch_embedding = PatchEmbedding(config)
        self.layers = nn.ModuleList(TowerLayer(config) for _ in range(config.vision_config.num_hidden_layers))

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """Raises ValueError for pictures of another size: positions are not interpolated."""
        side = self.config.image_size
        if tuple(pixel_values.shape[-2:]) != (side, side):
            raise ValueError(
                f"pictures of {tuple(pixel_values.shape[-2:])} pixels, but the tower has positions for {side} x {side} only. Give them "
                "through the model's own processor."
            )
        hidden = self.patch_embedding(pixel_values.to(self.patch_embedding.proj.weight.dtype))
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


class GatedMLP(nn.Module):
    """float[P, L, Dv] -> float[P, L, D]."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.linear_proj = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.dense_h_to_4h = nn.Linear(width, inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(self.norm1(self.linear_proj(hidden)))
        return self.dense_4h_to_h(F.silu(self.gate_proj(hidden)) * self.dense_h_to_4h(hidden))


class Projector(nn.Module):
    """The tower's features without the class token, float[P, L, Dv], -> float[P, 2 + L / 4, D]: boi, the picture, eoi."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.side = config.vision_config.image_size // config.vision_config.patch_size
        self.conv = nn.Conv2d(width, width, kernel_size=POOL, stride=POOL)
        self.linear_proj = GatedMLP(config)
        self.boi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        grid = features.transpose(1, 2).unflatten(2, (self.side, self.side))
        tokens = self.linear_proj(self.conv(grid).flatten(2).transpose(1, 2))
        boi, eoi = (end.expand(len(tokens), 1, -1).to(tokens.dtype) for end in (self.boi, self.eoi))
        return torch.cat([boi, tokens, eoi], dim=1)
