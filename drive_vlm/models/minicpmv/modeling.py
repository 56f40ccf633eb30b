"""The model in transformers' two levels: MiniCPMVModel gives hidden states, MiniCPMVForConditionalGeneration logits."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from drive_vlm.models.generation import PictureGenerationMixin
from drive_vlm.models.host_copies import on_host
from drive_vlm.models.minicpmv.configuration import MiniCPMVConfig
from drive_vlm.models.minicpmv.resampler import CrossAttention, Resampler
from drive_vlm.models.minicpmv.tower import MiniCPMVTower, places_of

# Published names -> names of the modules here; transformers undoes it when it saves.
RENAMINGS = (
    (r"^llm\.lm_head", "lm_head"),
    (r"^llm\.model\.", "model.language_model."),
    (r"^vpm\.", "model.vision.tower."),
    (r"^resampler\.", "model.vision.resampler."),
)


class MiniCPMVPreTrainedModel(PreTrainedModel):
    config_class = MiniCPMVConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Idefics2EncoderLayer", "LlamaDecoderLayer", "Qwen2DecoderLayer"]  # noqa: RUF012 - typed by the base class
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 - typed by the base class
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Resampler):
            init.normal_(module.query, std=std)
            init.normal_(module.proj, std=std)
        elif isinstance(module, CrossAttention):
            init.normal_(module.in_proj_weight, std=std)
            init.zeros_(module.in_proj_bias)


class SliceEncoder(nn.Module):
    """Tower and resampler: slices of pictures -> tokens of the language model."""

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        vision, width = config.vision_config, config.text_config.hidden_size
        assert config.query_num is not None, "the configuration fills it in"
        self.tower = MiniCPMVTower(vision, two_axes=config.version == "2.6")
        self.resampler = Resampler(config.query_num, vision.hidden_size, width)

    def forward(self, pixel_values: torch.Tensor, tgt_sizes: torch.Tensor) -> BaseModelOutputWithPooling:
        """As `MiniCPMVModel.get_image_features`. A frozen tower keeps nothing for a backward pass: gradient checkpointing turns on
        gradients of its embeddings."""
        places = places_of(
            on_host(tgt_sizes).tolist(), pixel_values.shape[-1] // pixel_values.shape[-2], pixel_values.device
        )
        trains = any(parameter.requires_grad for parameter in self.tower.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            features = self.tower(pixel_values=pixel_values, places=places).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=self.resampler(features, places))


class NoSliceEncoder(nn.Module):
    """What stands in the place of SliceEncoder where a feature cache holds its tokens."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        # Parts are looked up by their paths (FLOPs); without weights they count nothing.
        for name, _ in encoder.named_children():
            self.add_module(name, nn.Module())

    def forward(self, *_: Any, **__: Any) -> Any:
        raise ValueError("pixel_values are given: this model was loaded for --feature_cache, without its vision tower.")


class MiniCPMVModel(MiniCPMVPreTrainedModel):
    """Tower, resampler and the body of the language model."""

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__(config)
        self.vision = SliceEncoder(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        tgt_sizes: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """`last_hidden_state float[P, L, Dv]` of the tower and `pooler_output float[P, Q, D]` of the resampler, for
        `pixel_values float[P, 3, p, p * L]`; `tgt_sizes int64[P, 2]` are rows and columns of each slice's patches. Or
        `vision_features float[P, Q, D]`, what the resampler made of them: a feature cache holds these."""
        if vision_features is not None:
            return BaseModelOutputWithPooling(pooler_output=vision_features)
        return self.vision(pixel_values, tgt_sizes)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        tgt_sizes: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`last_hidden_state float[B, T, D]` of the language model.

        Args:
            input_ids: int64[B, T] with `query_num` image tokens for each slice.
            pixel_values: float[P, 3, p, p * L], the slices of all rows in reading order, padded to the longest.
            tgt_sizes: int64[P, 2], rows and columns of each slice's patches.
            vision_features: float[P, Q, D] in the place of both, from a feature cache.
            attention_mask: int64[B, T], 0 for padding.
            position_ids: int64[B, T]; packed rows restart at 0.

        Raises ValueError for slices without input_ids, and for counts that differ.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None or vision_features is not None:
            if input_ids is None or (tgt_sizes is None and vision_features is None):
                raise ValueError("Pictures need input_ids, which say where they stand, and tgt_sizes.")
            tokens = self.get_image_features(pixel_values, tgt_sizes, vision_features, return_dict=True).pooler_output
            inputs_embeds = self._lay_in(inputs_embeds, input_ids, tokens)
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def _lay_in(self, embeds: torch.Tensor, input_ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`embeds float[B, T, D]` with `tokens float[P, Q, D]` in the places of the image tokens."""
        image, queries = self.config.image_token_id, self.config.query_num
        if image is None:
            raise ValueError("config.image_token_id is not set: its number is in the tokenizer (<unk>). Set it first.")
        places = input_ids == image
        written, made = int((on_host(input_ids) == image).sum()), tokens.shape[0] * tokens.shape[1]
        if written != made:
            raise ValueError(
                f"input_ids hold {written} image tokens, but {len(tokens)} slices are given, which need {made} ({queries} each). Was "
                "a row cut off, or written by the processor of another model?"
            )
        return embeds.masked_scatter(places[..., None].expand_as(embeds), tokens.to(embeds))


class MiniCPMVForConditionalGeneration(MiniCPMVPreTrainedModel, PictureGenerationMixin):
    """MiniCPMVModel with a language modelling head."""

    picture_inputs = ("pixel_values", "tgt_sizes", "vision_features")
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012 - typed by the base class

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__(config)
        self.model = MiniCPMVModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        tgt_sizes: torch.Tensor | None = None,
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
            tgt_sizes=tgt_sizes,
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
        return ((input_ids == self.config.image_token_id).sum(1) // self.config.query_num).tolist()


register_checkpoint_conversion_mapping(
    MiniCPMVForConditionalGeneration.__name__, [WeightRenaming(*names) for names in RENAMINGS], overwrite=True
)
