"""Configuration of CogVLM2, with the names of the published config.json: the language model's numbers stand at the top."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from drive_vlm.models.cogvlm2.tiling import POOL

TEMPLATES = ("base", "chat", "vqa")
# Words of Vicuna, the language model of CogVLM 1.
_VICUNA = 32000


class CogVLM2VisionConfig(PreTrainedConfig):
    """Sizes of the tower. `num_positions` counts the patches of a picture and the class token."""

    model_type = "cogvlm2_vision"
    base_config_key = "vision_config"
    attribute_map: ClassVar[dict[str, str]] = {"num_attention_heads": "num_heads"}

    hidden_size: int = 1792
    intermediate_size: int = 15360
    num_hidden_layers: int = 63
    num_heads: int = 16
    in_channels: int = 3
    image_size: int = 1344
    patch_size: int = 14
    num_positions: int = 9217
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    dropout_prob: float = 0.0


class CogVLM2Config(PreTrainedConfig):
    """Sizes of tower, adapter and language model.

    Args:
        vision_config: CogVLM2VisionConfig, or its dict.
        num_multi_query_heads: heads of keys and values; the published config.json leaves it out.
        pad_token_id: also the token that stands for pictures.
        template_version: base, chat or vqa, the layout of questions (processing.py).
        projector_type: what the memory plan calls the adapter.

    Raises ValueError for CogVLM 1, an unknown template, and sizes that cannot be.
    """

    model_type = "cogvlm2"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": CogVLM2VisionConfig}
    attribute_map: ClassVar[dict[str, str]] = {"num_key_value_heads": "num_multi_query_heads"}

    vision_config: Any = None
    vocab_size: int = 128256
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_multi_query_heads: int = 8
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    template_version: str = "chat"
    use_cache: bool = True
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = 128002
    tie_word_embeddings: bool = False
    projector_type: str = "glu"

    def __post_init__(self, **kwargs: Any) -> None:
        """PreTrainedConfig makes a dataclass of this class, and gives it here what is no field."""
        # It names the published code, which transformers 5 cannot run.
        kwargs.pop("auto_map", None)
        self.eos_token_id = [128001, 128009] if self.eos_token_id is None else self.eos_token_id
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = CogVLM2VisionConfig(**(self.vision_config or {}))
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        vision = self.vision_config
        if self.vocab_size == _VICUNA or vision.image_size == 490:
            raise ValueError(
                f"this is CogVLM 1 (cogvlm-chat-hf and its kin: {self.vocab_size:,} words, {vision.image_size} pixels), which has another "
                "language model under the same class name. The family cogvlm2 is CogVLM2-llama3-chat-19B: 128,256 words, 1,344 pixels."
            )
        if self.template_version not in TEMPLATES:
            raise ValueError(
                f"template_version {self.template_version!r} is unknown. Use one of {', '.join(TEMPLATES)}."
            )
        side, rest = divmod(vision.image_size, vision.patch_size)
        if rest or side % POOL or vision.num_positions != side * side + 1:
            raise ValueError(
                f"image_size {vision.image_size}, patch_size {vision.patch_size} and num_positions {vision.num_positions} do not fit: an "
                f"even number of patches along a side, and one position for each patch and one more."
            )
        if self.num_attention_heads % self.num_multi_query_heads or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must divide hidden_size {self.hidden_size} and be a multiple of "
                f"num_multi_query_heads {self.num_multi_query_heads}."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def image_token_id(self) -> int | None:
        """By the name that TRL asks for."""
        return self.pad_token_id

    @property
    def picture_tokens(self) -> int:
        """Tokens of the language model for one picture, with its boi and eoi."""
        return (self.vision_config.num_positions - 1) // POOL**2 + 2
