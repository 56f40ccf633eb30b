"""Attention of packed rows, each by itself: torch's own kernels on the part of a sequence that a row takes, and no mask at all.

A mask of T x T says for every pair of tokens of a pack whether they are of one row, and the kernels compute them all: for a pack
of seven equal rows seven times what is needed. Here the kernel gets a row at a time, causal, which is also what lets torch choose
its fused kernels on a GPU. Where a batch does not say where its rows end (ROW_ENDS), all is as transformers' sdpa does it.
"""

import functools
from typing import Any

import torch

from drive_vlm.config import ROW_ATTENTION
from drive_vlm.models.host_copies import on_host, rows_known


@functools.cache
def register() -> None:
    """Let `attn_implementation` of transformers know ROW_ATTENTION."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ROW_ATTENTION, attention)
    AttentionMaskInterface.register(ROW_ATTENTION, mask)


def mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """As `sdpa_mask`; None where attention gets the ends of rows (ROW_ENDS) and no row is padded."""
    from transformers.masking_utils import sdpa_mask

    known = rows_known()
    if known.ends and kwargs.get("attention_mask") is None:
        return None
    return sdpa_mask(*args, **kwargs)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """(float[B, T, heads, D], None) of `query`, `key`, `value float[B, heads, T, D]`; with `cu_seq_lens_q int32[S + 1]` B is 1 and
    each of S rows sees itself. Raises RuntimeError for a layer that the ends of packed rows do not reach."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if cu_seq_lens_q is None:
        if rows_known().ends and getattr(module, "is_causal", False) and attention_mask is None and query.shape[2] > 1:
            raise RuntimeError(
                f"{type(module).__name__}: packed rows reached this layer without their ends, and would see each other. Hand "
                f"cu_seq_lens_q on to it, or use --attn_implementation eager."
            )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths = on_host(cu_seq_lens_q).diff().tolist()
    rows = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    made = [sdpa_attention_forward(module, q, k, v, _band(q, sliding_window), **kwargs)[0] for q, k, v in rows]
    return torch.cat(made, dim=1), None


def _band(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """bool[1, 1, T, T] of a row longer than a sliding window; None for one that is only causal."""
    count = query.shape[2]
    if window is None or count <= window:
        return None
    whole = torch.ones(count, count, dtype=torch.bool, device=query.device)
    return (whole.tril() & whole.triu(1 - window))[None, None]
