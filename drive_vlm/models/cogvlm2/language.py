"""The language model: Llama 3 with two experts for attention's matrices and the MLP in every layer, and shared norms."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from drive_vlm.models.cogvlm2.configuration import CogVLM2Config
from drive_vlm.models.cogvlm2.positions import Routes

_BASE = 500000.0


class CogVLM2RMSNorm(nn.Module):
    """In float32, the weight too: Llama's own casts back before the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight * wide).to(hidden.dtype)


class RotaryEmbedding(nn.Module):
    """Tables of cosines and sines, in the precision of `inv_freq`.

    The model was trained with positions, products and tables in bfloat16, and the checkpoint stores frequencies that were computed
    so: they are a buffer that is loaded, not worked out. Without a checkpoint they are those of Llama 3.
    """

    inv_freq: torch.Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.register_buffer("inv_freq", self.frequencies())

    def frequencies(self) -> torch.Tensor:
        return 1.0 / _BASE ** (torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions int64[B, T] -> (cosines, sines), float[B, 1, T, head_dim / 2] each."""
        angles = positions.to(self.inv_freq.dtype)[:, None, :, None] * self.inv_freq
        return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """states float[B, heads, T, head_dim] -> the same, rotated; products in float32, as the published kernel forms them."""
    cos, sin = (table.float() for table in tables)
    first, second = states.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(states.dtype)


class ExpertAttention(nn.Module):
    """Queries, keys, values and the output of each token by its expert; attention itself is one, and causal."""

    is_causal = True

    def __init__(self, config: CogVLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_multi_query_heads
        width, keys = config.hidden_size, config.num_multi_query_heads * config.head_dim
        self.sizes = (width, keys, keys)
        self.rotary_emb = RotaryEmbedding(config.head_dim)
        self.vision_expert_query_key_value = nn.Linear(width, width + 2 * keys, bias=True)
        self.vision_expert_dense = nn.Linear(width, width, bias=False)
        self.language_expert_query_key_value = nn.Linear(width, width + 2 * keys, bias=False)
        self.language_expert_dense = nn.Linear(width, width, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        routes: Routes,
        tables: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """hidden float[B, T, D] -> float[B, T, D]."""
        packed = routes.apply(hidden, self.language_expert_query_key_value, self.vision_expert_query_key_value)
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in packed.split(self.sizes, dim=-1)
        )
        query, key = rotate(query, tables), rotate(key, tables)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, _ = attend(
            self, query, key, value, attention_mask, scaling=self.head_dim**-0.5, dropout=0.0, **kwargs
        )  # fmt: skip
        return routes.apply(out.flatten(2), self.language_expert_dense, self.vision_expert_dense)


class MLP(nn.Module):
    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """rows float[N, D] -> float[N, D]."""
        return self.down_proj(F.silu(self.gate_proj(rows)) * self.up_proj(rows))


class ExpertMLP(nn.Module):
    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__()
        self.language_mlp, self.vision_mlp = MLP(config), MLP(config)

    def forward(self, hidden: torch.Tensor, routes: Routes) -> torch.Tensor:
        return routes.apply(hidden, self.language_mlp, self.vision_mlp)


class DecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: CogVLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = ExpertAttention(config, layer_idx), ExpertMLP(config)
        self.input_layernorm = CogVLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = CogVLM2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: torch.Tensor, routes: Routes, **kwargs: Any) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), routes, **kwargs)
        return hidden + self.mlp(self.post_attention_layernorm(hidden), routes)


class ExpertLlama(nn.Module):
    """Embeddings, which the body calls before the tower, the layers and the last norm."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = CogVLM2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, routes: Routes, **kwargs: Any) -> torch.Tensor:
        """hidden float[B, T, D], positions int64[B, T] -> float[B, T, D]."""
        # The frequencies of all layers are the same, as in the published files.
        first: Any = self.layers[0]
        tables = first.self_attn.rotary_emb(positions)
        for layer in self.layers:
            hidden = layer(hidden, routes, tables=tables, **kwargs)
        return self.norm(hidden)
