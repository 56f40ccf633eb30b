"""Pooling and resampler against a computation by hand; sizes that cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drive_vlm.config import ModelConfig
from drive_vlm.models import load_family
from drive_vlm.models.siglip_qwen.configuration import SiglipQwenConfig
from drive_vlm.models.siglip_qwen.projector import Resampler, pool_grid

Rows = list[dict[str, Any]]


@pytest.mark.parametrize(("side", "size"), [(3, 1), (4, 2), (3, 2), (27, 3), (27, 4), (8, 3), (2, 2)])
def test_pooling_by_hand(side: int, size: int) -> None:
    features = torch.randn(2, side * side, 5)
    grid = features.numpy().reshape(2, side, side, 5)
    steps = range(0, side, size)
    expected = [[grid[:, i : i + size, j : j + size].mean((1, 2)) for j in steps] for i in steps]
    flat = np.stack([cell for line in expected for cell in line], axis=1)
    np.testing.assert_allclose(pool_grid(features, size).numpy(), flat, atol=1e-5)
    tokens = SiglipQwenConfig(
        vision_config={"image_size": side, "patch_size": 1}, text_config={"model_type": "qwen3"}, pool_size=size
    )
    assert flat.shape[1] == tokens.image_seq_length


def test_resampler(tmp_path: Path) -> None:
    from drive_vlm.models.tiny.tiny import build_tiny_siglip_qwen

    out = build_tiny_siglip_qwen(
        tmp_path / "tiny", ["a car"], projector_type="resampler", num_queries=5, resampler_layers=2, max_frames=2
    )
    family = load_family(ModelConfig(model=str(out)), torch.float32)
    projector = family.model.model.projector
    assert isinstance(projector, Resampler) and family.processor.image_seq_length == 5
    assert projector.queries.std().item() == pytest.approx(0.125, rel=0.2)  # drawn, not left empty
    features = torch.randn(3, 64, 64)
    together = projector(features)
    assert together.shape == (3, 5, 64)
    torch.testing.assert_close(together[1:2], projector(features[1:2]))  # a frame sees itself only
    assert not torch.allclose(together[0, 0], together[0, 1])
    by_hand = by_hand_attention(projector.layers[0], projector.queries, features[0])
    layer = projector.layers[0](projector.queries[None], features[:1])[0]
    torch.testing.assert_close(layer, by_hand, atol=1e-5, rtol=1e-4)


def by_hand_attention(layer: Any, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """One resampler layer, head by head."""
    q, k = layer.q_proj(layer.query_norm(queries)), layer.k_proj(layer.feature_norm(features))
    v, width = layer.v_proj(layer.feature_norm(features)), q.shape[1] // layer.num_heads
    heads = []
    for h in range(layer.num_heads):
        part = slice(h * width, (h + 1) * width)
        heads.append(torch.softmax(q[:, part] @ k[:, part].T / width**0.5, dim=-1) @ v[:, part])
    queries = queries + layer.out_proj(torch.cat(heads, 1))
    return queries + layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.mlp_norm(queries))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projector_type": "mpl"}, "projector_type 'mpl' is unknown. Use one of mlp, resampler"),
        ({"pool_size": 9}, "pool_size 9 must be from 1 to 8"),
        ({"max_frames": 0}, "max_frames 0, num_queries 64 and resampler_layers 2 must be at least 1"),
    ],
)
def test_sizes_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SiglipQwenConfig(
            vision_config={"image_size": 56, "patch_size": 7}, text_config={"model_type": "qwen3"}, **settings
        )
