"""Configuration of the SigLIP2 + Qwen3 video model."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig, SiglipVisionConfig

from drive_vlm.models.siglip_qwen.tiling import frame_tokens

PROJECTORS = ("mlp", "resampler")


class SiglipQwenConfig(PreTrainedConfig):
    """Sizes of tower, projector and language model.

    Args:
        vision_config: SiglipVisionConfig, or its dict; the tower is used without its pooling head.
        text_config: config of a causal language model, or its dict with `model_type` (default: Qwen3).
        image_token_id: the token that stands `image_seq_length` times for one frame.
        projector_type: `mlp` (average pooling of the grid of patches, then two layers) or `resampler` (learned queries).
        pool_size: side of a pooling window of the mlp projector, in patches; 1 keeps every patch.
        num_queries, resampler_layers: queries and layers of the resampler.
        max_frames: frames of a row at most, the number of temporal embeddings.
        initializer_range: standard deviation of new weights.

    Raises ValueError for an unknown projector and for sizes that cannot be.
    """

    model_type = "siglip_qwen"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": SiglipVisionConfig, "text_config": AutoConfig}

    vision_config: Any = None
    text_config: Any = None
    image_token_id: int = 151655
    projector_type: str = "mlp"
    pool_size: int = 3
    num_queries: int = 64
    resampler_layers: int = 2
    max_frames: int = 16
    initializer_range: float = 0.02
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """PreTrainedConfig makes a dataclass of this class, and gives it here what is no field."""
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = SiglipVisionConfig(**{**(self.vision_config or {}), "vision_use_head": False})
        if not isinstance(self.text_config, PreTrainedConfig):
            words = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(words.pop("model_type", "qwen3"), **words)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        side = self.vision_config.image_size // self.vision_config.patch_size
        if self.projector_type not in PROJECTORS:
            raise ValueError(f"projector_type {self.projector_type!r} is unknown. Use one of {', '.join(PROJECTORS)}.")
        if not 1 <= self.pool_size <= side:
            raise ValueError(f"pool_size {self.pool_size} must be from 1 to {side}, the patches on a side of a frame.")
        if min(self.max_frames, self.num_queries, self.resampler_layers) < 1:
            raise ValueError(
                f"max_frames {self.max_frames}, num_queries {self.num_queries} and resampler_layers "
                f"{self.resampler_layers} must be at least 1."
            )

    @property
    def patches(self) -> int:
        """Patches of a frame, L."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def image_seq_length(self) -> int:
        """Tokens of the language model for one frame."""
        return frame_tokens(self.patches, self.projector_type, self.pool_size, self.num_queries)
