"""`--feature_cache`: a stage trains, or `generate` answers, from the frozen tower's features, without the tower."""

import shlex
from typing import Any

from drive_vlm.config import DataConfig, ModelConfig
from drive_vlm.data.caches.feature_cache import FeatureCache, cache_settings
from drive_vlm.models.family import Family


def build_command(model: ModelConfig, data: DataConfig) -> str:
    """The command that makes, or completes, the cache that this run asks for."""
    words = ["--model", model.model, "--data", *data.data, *data.eval_data, "--num_frames", str(data.num_frames)]
    words += ["--image_root", data.image_root] if data.image_root else []
    for name in ("max_tiles", "min_pixels", "max_pixels"):
        words += [f"--{name}", str(getattr(model, name))] if getattr(model, name) else []
    return shlex.join(["python", "tools/cache_features.py", *words, "--out", str(data.feature_cache)])


def open_features(
    family: Family, model: ModelConfig, data: DataConfig, args: Any
) -> tuple[FeatureCache | None, dict[str, Any]]:
    """`take_features` for a training with TrainingArguments `args`. Raises ValueError for a tower that trains as well."""
    if data.feature_cache is not None:
        from drive_vlm.models.vision_features import require_frozen_tower

        require_frozen_tower(family)
    return take_features(family, model, data, args.should_save)


def take_features(
    family: Family, model: ModelConfig, data: DataConfig, keep: bool
) -> tuple[FeatureCache | None, dict[str, Any]]:
    """The cache of `--feature_cache` and, with `keep`, the weights of the tower that was taken out of `family.model`, for saving.

    Call it when it is settled what trains, and before the model is moved to its device. (None, {}) without the flag.
    Raises ValueError for a plain language model, and a cache that was made with anything else.
    """
    if data.feature_cache is None:
        return None, {}
    from drive_vlm.models.vision_features import detach_tower, tower_identity

    # tower_identity() refuses a model without pictures.
    tower = tower_identity(family)
    assert family.vision is not None
    settings = cache_settings(tower, family.vision.fingerprint(), data.num_frames)
    features = FeatureCache(data.feature_cache, settings, build_command(model, data))
    return features, detach_tower(family, features.feature_shape, keep)
