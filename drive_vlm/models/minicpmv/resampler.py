"""The resampler: learned queries look once at the patches of a slice, with a sine table of their rows and columns."""

import torch
import torch.nn.functional as F
from torch import nn

from drive_vlm.models.minicpmv.tower import Places

_EPS = 1e-6


def sine_table(count: int, width: int, device: torch.device) -> torch.Tensor:
    """float32[count, width]: sines, then cosines of each place. Computed on use: from_pretrained leaves buffers that are not
    stored without values."""
    powers = torch.arange(width // 2, dtype=torch.float32, device=device) / (width / 2)
    angles = torch.arange(count, dtype=torch.float32, device=device)[:, None] * (1.0 / 10000**powers)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class CrossAttention(nn.Module):
    """Attention of queries to the patches of each slice, with nn.MultiheadAttention's names.

    That class reads the weight of `out_proj` without calling it, which ZeRO-3 would have to guess.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """queries float[Q, D], keys and values float[P, L, D], valid bool[P, L] or None -> float[P, Q, D]."""
        made = zip((queries[None], keys, values), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (
            F.linear(tensor, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tensor, weight, bias in made
        )
        mask = None if valid is None else valid[:, None, None]
        found = F.scaled_dot_product_attention(q.expand(len(keys), -1, -1, -1), k, v, attn_mask=mask)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """Slices of L patches -> Q tokens of the language model each. There is neither a residual nor an MLP."""

    def __init__(self, queries: int, tower_width: int, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries, width))
        self.kv_proj = nn.Linear(tower_width, width, bias=False)
        self.attn = CrossAttention(width, max(1, width // 128))
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(width, eps=_EPS) for _ in range(3))
        self.proj = nn.Parameter(torch.empty(width, width))

    def forward(self, features: torch.Tensor, places: Places) -> torch.Tensor:
        """features float[P, L, Dv] -> float[P, Q, D]. Half of the channels tells a patch's column, the other half its row."""
        values = self.ln_kv(self.kv_proj(features))
        count = int(features.shape[1])
        table = sine_table(count, values.shape[-1] // 2, features.device)
        table = torch.cat([table[places.columns], table[places.rows]], dim=-1).to(values.dtype)
        found = self.attn(self.ln_q(self.query), values + table, values, places.valid)
        return self.ln_post(found) @ self.proj
