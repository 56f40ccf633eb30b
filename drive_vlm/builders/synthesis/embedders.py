"""Encoders of crops: a CLIP of open_clip, or the picture side of SigLIP, SigLIP 2, CLIP and DINOv2 of transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drive_vlm.builders.synthesis.devices import device, open_model

if TYPE_CHECKING:
    from PIL.Image import Image

# Crops -> float32[N, D], each of length 1.
Embed = Callable[[Sequence["Image"]], np.ndarray]
# model_type -> whether the model has a text side, and its picture side is asked for by name.
_KINDS = {
    "siglip": True, "siglip2": True, "clip": True,
    "dinov2": False, "dinov2_with_registers": False, "dinov3_vit": False, "siglip_vision_model": False, "clip_vision_model": False,
}  # fmt: skip


def open_embedder(
    model: str | None, clip_model: str | None, clip_pretrained: str | None, batch: int, dtype: str
) -> Embed:
    """`model`: a directory or hub id of transformers; `clip_model`, `clip_pretrained`: as ClipEncoder.load takes them. Raises ValueError."""
    look = _transformers(model, dtype) if model else _open_clip(str(clip_model), clip_pretrained)

    def embed(crops: Sequence["Image"]) -> np.ndarray:
        parts = [look(crops[start : start + batch]) for start in range(0, len(crops), batch)]
        return unit(np.concatenate(parts)) if parts else np.zeros((0, 0), dtype=np.float32)

    return embed


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32[N, D] of length 1; a vector of zeros stays so."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _open_clip(model: str, pretrained: str | None) -> Embed:
    import torch

    from drive_vlm.clip.encoder import ClipEncoder

    encoder = ClipEncoder.load(model, pretrained, device())

    def look(crops: Sequence["Image"]) -> np.ndarray:
        pixels = torch.stack([encoder.preprocess(crop) for crop in crops]).to(encoder.device)
        with torch.inference_mode():
            return encoder.model.encode_image(pixels, normalize=True).float().cpu().numpy()

    return look


def _transformers(model: str, dtype: str) -> Embed:
    import torch
    import transformers as hf

    kind = open_model(hf.AutoConfig, model).model_type
    if kind not in _KINDS:
        raise ValueError(
            f"--model {model}: a {kind} is not one of {', '.join(_KINDS)}. Give one of these, or a --clip_model."
        )
    network = open_model(hf.AutoModel, model, dtype).to(device()).eval()
    processor = open_model(hf.AutoImageProcessor, model)

    def look(crops: Sequence["Image"]) -> np.ndarray:
        inputs: Any = processor(images=list(crops), return_tensors="pt").to(device())
        inputs["pixel_values"] = inputs["pixel_values"].to(network.dtype)
        with torch.inference_mode():
            found = network.get_image_features(**inputs) if _KINDS[kind] else network(**inputs)
        pooled = found if isinstance(found, torch.Tensor) else found.pooler_output
        return pooled.float().cpu().numpy()

    return look


def embedder_fingerprint(model: str | None, clip_model: str | None, clip_pretrained: str | None) -> dict[str, Any]:
    """What names the embedder in settings. Raises ValueError unless one is given."""
    from drive_vlm.store.fingerprint import content_hash, model_fingerprint

    if (model is None) == (clip_model is None):
        raise ValueError("give one of --model and --clip_model: what embeds the crops.")
    found = model_fingerprint(str(model or clip_model))
    if clip_pretrained is None:
        return found
    return found | {"pretrained": content_hash(clip_pretrained) if Path(clip_pretrained).is_file() else clip_pretrained}
