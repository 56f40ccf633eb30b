"""The model in transformers' two levels: SiglipQwenModel gives hidden states, SiglipQwenForConditionalGeneration logits."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from drive_vlm.models.generation import PictureGenerationMixin
from drive_vlm.models.host_copies import on_host, to_device
from drive_vlm.models.siglip_qwen.configuration import SiglipQwenConfig
from drive_vlm.models.siglip_qwen.projector import Resampler, build_projector
from drive_vlm.models.siglip_qwen.tiling import too_many_frames


def frame_numbers(
    input_ids: torch.Tensor, position_ids: torch.Tensor | None, image_token_id: int, frame_tokens: int
) -> torch.Tensor:
    """Number within its row of each frame that `input_ids int64[B, T]` speaks of, in reading order: int64[P], on the host.

    A frame is a group of `frame_tokens` image tokens; `position_ids int64[B, T]` that restart at 0 begin a new row of a pack.
    Padding holds no image tokens, so its side does not matter. Raises ValueError when a row's image tokens are no whole frames.
    """
    is_image = on_host(input_ids) == image_token_id
    before = is_image.cumsum(1) - is_image.long()
    if position_ids is not None:
        starts = (on_host(position_ids) == 0).expand_as(is_image)
        before = before - (before * starts).cummax(1).values
    place = before[is_image]
    numbers = place[place % frame_tokens == 0] // frame_tokens
    if len(numbers) * frame_tokens != len(place):
        raise ValueError(
            f"a row's image tokens are no whole frames of {frame_tokens} tokens: {len(place)} tokens in the batch begin "
            f"{len(numbers)} frames. Was a row cut off, or written by the processor of another model?"
        )
    return numbers


class SiglipQwenPreTrainedModel(PreTrainedModel):
    config_class = SiglipQwenConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SiglipEncoderLayer", "Qwen3DecoderLayer"]  # noqa: RUF012 - typed by the base class
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 - typed by the base class
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Resampler):
            init.normal_(module.queries, std=self.config.initializer_range)


class SiglipQwenModel(SiglipQwenPreTrainedModel):
    """Tower, temporal embeddings, projector and the body of the language model.

    `vision_tower` is transformers' SiglipVisionModel without the pooling head. Its features are those after the last norm
    (post_layernorm): what the pooling head of the pre-training saw, of a scale that a projector from scratch can take.
    """

    def __init__(self, config: SiglipQwenConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.temporal_embeddings = nn.Embedding(config.max_frames, config.vision_config.hidden_size)
        self.projector = build_projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def tower_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values float[P, 3, H, W] -> float[P, L, Dv], before the temporal embeddings: what a feature cache holds.

        A frozen tower keeps nothing for a backward pass, whatever comes in: gradient checkpointing turns on gradients of the
        tower's patch embeddings.
        """
        trains = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            return self.vision_tower(pixel_values=pixel_values, return_dict=True).last_hidden_state

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        frames: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """`last_hidden_state float[P, L, Dv]` of the tower and `pooler_output float[P, L', D]` of the projector.

        `frames int64[P]` are the pictures' numbers in their rows (default: each is the first of its row).
        Raises ValueError when a number is not below max_frames, or their count is not that of the pictures.
        """
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("Give exactly one of pixel_values and vision_features.")
        features = vision_features if pixel_values is None else self.tower_features(pixel_values)
        assert features is not None
        if frames is None:
            frames = torch.zeros(len(features), dtype=torch.int64)
        if len(frames) != len(features):
            tokens = self.config.image_seq_length
            raise ValueError(
                f"input_ids hold {len(frames) * tokens} image tokens ({len(frames)} frames of {tokens}), but "
                f"{len(features)} pictures are given, which need {len(features) * tokens}. Was a row cut off, or written by the "
                "processor of another model?"
            )
        last = int(on_host(frames).max()) if len(frames) else 0
        if last >= self.config.max_frames:
            raise ValueError(too_many_frames(last + 1, self.config.max_frames))
        times = self.temporal_embeddings(to_device(frames, features.device))[:, None]
        projected = self.projector(features.to(times.dtype) + times)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=projected)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`last_hidden_state float[B, T, D]` of the language model.

        Args:
            input_ids: int64[B, T] with `image_seq_length` image tokens for each frame.
            pixel_values: float[P, 3, H, W], the frames of all rows in reading order; or
            vision_features: float[P, L, Dv], what `tower_features` gives for them; no tower runs then.
            attention_mask: int64[B, T], 0 for padding.
            position_ids: int64[B, T]; packed rows restart at 0.

        Raises ValueError for pictures without input_ids, both kinds of picture, counts that differ, or too many frames.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None or vision_features is not None:
            if input_ids is None:
                raise ValueError(
                    "Pictures need input_ids: their frame numbers and places are read from the image tokens."
                )
            config = self.config
            frames = frame_numbers(input_ids, position_ids, config.image_token_id, config.image_seq_length)
            tokens = self.get_image_features(pixel_values, vision_features, frames, return_dict=True).pooler_output
            places = (input_ids == config.image_token_id)[..., None].expand_as(inputs_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(places, tokens.to(inputs_embeds))
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class SiglipQwenForConditionalGeneration(SiglipQwenPreTrainedModel, PictureGenerationMixin):
    """SiglipQwenModel with a language modelling head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012 - typed by the base class

    def __init__(self, config: SiglipQwenConfig) -> None:
        super().__init__(config)
        self.model = SiglipQwenModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """`logits float[B, T, V]` (of the last `logits_to_keep` positions), and `loss` when `labels int64[B, T]` are given."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            vision_features=vision_features,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        return self.with_head(outputs, labels, logits_to_keep, **kwargs)

    def pictures_of_rows(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[int]:
        return ((input_ids == self.config.image_token_id).sum(1) // self.config.image_seq_length).tolist()
