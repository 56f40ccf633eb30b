"""CogVLM2 in transformers' two levels: CogVLM2Model gives hidden states, CogVLMForCausalLM logits."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicCache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from drive_vlm.config import ROW_ENDS
from drive_vlm.models.cogvlm2.configuration import CogVLM2Config
from drive_vlm.models.cogvlm2.language import ExpertLlama, RotaryEmbedding
from drive_vlm.models.cogvlm2.positions import Routes, lay_out, picture_places, row_starts, vision_experts
from drive_vlm.models.cogvlm2.vision import PatchEmbedding, Projector, Tower
from drive_vlm.models.generation import PictureGenerationMixin
from drive_vlm.models.host_copies import known_on_host, to_device

# Names in the published files -> names here, which are those of the parts; transformers undoes it when it saves.
RENAMINGS = {
    r"^model\.vision\.patch_embedding\.": "model.vision_tower.patch_embedding.",
    r"^model\.vision\.transformer\.layers\.": "model.vision_tower.layers.",
    r"^model\.vision\.conv\.": "model.projector.conv.",
    r"^model\.vision\.linear_proj\.": "model.projector.linear_proj.",
    r"^model\.vision\.boi": "model.projector.boi",
    r"^model\.vision\.eoi": "model.projector.eoi",
    r"^model\.embed_tokens\.": "model.language_model.embed_tokens.",
    r"^model\.layers\.": "model.language_model.layers.",
    r"^model\.norm\.": "model.language_model.norm.",
}
register_checkpoint_conversion_mapping(
    CogVLM2Config.model_type, [WeightRenaming(published, own) for published, own in RENAMINGS.items()], overwrite=True
)


class CogVLM2PreTrainedModel(PreTrainedModel):
    config_class = CogVLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TowerLayer", "DecoderLayer"]  # noqa: RUF012 - typed by the base class
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 - typed by the base class
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PatchEmbedding):
            init.normal_(module.cls_embedding, std=self.config.initializer_range)
        elif isinstance(module, Projector):
            init.normal_(module.boi, std=self.config.initializer_range)
            init.normal_(module.eoi, std=self.config.initializer_range)
        elif isinstance(module, RotaryEmbedding):
            init.copy_(module.inv_freq, module.frequencies())


class CogVLM2Model(CogVLM2PreTrainedModel):
    """Tower, adapter and the body of the language model."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__(config)
        self.vision_tower = Tower(config)
        self.projector = Projector(config)
        self.language_model = ExpertLlama(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.language_model.embed_tokens = value

    def tower_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values float[P, 3, H, W] -> float[P, L, Dv] without the class token: what a feature cache holds.

        A frozen tower keeps nothing for a backward pass, whatever comes in: gradient checkpointing turns on gradients of the
        tower's patch embeddings.
        """
        trains = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            return self.vision_tower(pixel_values=pixel_values).last_hidden_state[:, 1:]

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, vision_features: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """`last_hidden_state float[P, L, Dv]` of the tower and `pooler_output float[P, L / 4 + 2, D]` of the adapter."""
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("Give exactly one of pixel_values and vision_features.")
        features = vision_features if pixel_values is None else self.tower_features(pixel_values)
        assert features is not None
        tokens = self.projector(features.to(self.projector.conv.weight.dtype))
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=tokens)

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
        token_type_ids: torch.Tensor | None = None,
        rotary_positions: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`last_hidden_state float[B, T, D]` of the language model.

        Args:
            input_ids: int64[B, T] with `picture_tokens` times the padding token for each picture.
            pixel_values: float[P, 3, H, W], the pictures of all rows in reading order; or
            vision_features: float[P, L, Dv], what `tower_features` gives for them; no tower runs then.
            attention_mask: int64[B, T], 0 for padding.
            position_ids: int64[B, T]; packed rows restart at 0, and have no attention mask. They say no more than that.
            token_type_ids: int64[B, T], 1 for the tokens of pictures (default: read from input_ids).
            rotary_positions: int64[B, T] of tokens behind a filled cache, where positions go on (generation gives them).

        Raises ValueError for pictures that are not as many as their tokens, and for a filled cache without positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        assert inputs_embeds is not None
        caching = self.config.use_cache if use_cache is None else use_cache
        if caching and past_key_values is None and not (self.training and torch.is_grad_enabled()):
            past_key_values = DynamicCache(config=self.config)
        filled = past_key_values is not None and past_key_values.get_seq_length() > 0
        packed = position_ids if attention_mask is None and not filled else None
        if filled:
            if rotary_positions is None:
                raise ValueError("Behind a filled cache rotary_positions int64[B, T] must say where the tokens stand.")
            none = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
            routes, positions = Routes.of(none, 0), rotary_positions
        else:
            device, words = inputs_embeds.device, torch.zeros(inputs_embeds.shape[:2], dtype=torch.int64)
            given = (words if input_ids is None else input_ids, attention_mask, packed, token_type_ids)
            known = [known_on_host(one) for one in given]
            # All of it is worked out on the host where it knows the batch, else on the device, for which the host waits once.
            at_home = all(one is not None or other is None for one, other in zip(known, given, strict=True))
            like, *rest = known if at_home else (to_device(one, device) if one is not None else None for one in given)
            routes, positions, places, seen = self._lay_out(input_ids is not None, like, *rest)
            inputs_embeds = self._with_pictures(
                inputs_embeds, to_device(places, device), seen, pixel_values, vision_features
            )
            routes, positions = routes.to(device), to_device(positions, device)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=packed,
        )
        hidden = self.language_model(
            inputs_embeds,
            positions,
            routes,
            attention_mask=mask,
            past_key_values=past_key_values,
            # Flash attention finds the rows of a pack by them, or is given where they end (data/collate.py).
            position_ids=packed,
            **{name: kwargs[name] for name in ROW_ENDS if name in kwargs},
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)

    def _lay_out(
        self,
        has_ids: bool,
        like: Any,
        mask: torch.Tensor | None,
        packed: torch.Tensor | None,
        kinds: torch.Tensor | None,
    ) -> tuple[Routes, torch.Tensor, torch.Tensor, int]:
        """(routes, positions int64[B, T], places bool[B, T] of pictures, their number) of `like int64[B, T]`: input_ids where `has_ids`."""
        starts = row_starts(packed, like)
        if kinds is not None:
            places = kinds == 1
        elif has_ids:
            places = picture_places(like, self.config.pad_token_id, mask, starts)
        else:
            places = torch.zeros_like(starts)
        experts = vision_experts(places, starts)
        seen, count = torch.stack([places.sum(), experts.sum()]).tolist()
        return Routes.of(experts, count), lay_out(places, mask, starts), places, seen

    def _with_pictures(
        self,
        embeds: torch.Tensor,
        places: torch.Tensor,
        seen: int,
        pixel_values: torch.Tensor | None,
        vision_features: torch.Tensor | None,
    ) -> torch.Tensor:
        """`embeds float[B, T, D]` with the pictures' tokens at `places bool[B, T]`, `seen` of which are true."""
        given = pixel_values if pixel_values is not None else vision_features
        count = 0 if given is None else len(given)
        tokens = self.config.picture_tokens
        if seen != count * tokens:
            raise ValueError(
                f"input_ids hold {seen} picture tokens, but {count} pictures are given, which need {count * tokens} ({tokens} each). Was "
                "a row cut off, or written by the processor of another model?"
            )
        if given is None:
            return embeds
        made = self.get_image_features(pixel_values, vision_features, return_dict=True).pooler_output
        return embeds.masked_scatter(places[..., None].expand_as(embeds), made.to(embeds))


class CogVLMForCausalLM(CogVLM2PreTrainedModel, PictureGenerationMixin):
    """CogVLM2Model with a language modelling head. The name is that in the published config.json."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__(config)
        self.model = CogVLM2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

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
        body = {key: kwargs.pop(key) for key in ("token_type_ids", "rotary_positions", "use_cache") if key in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            vision_features=vision_features,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **body,
        )
        return self.with_head(outputs, labels, logits_to_keep, **kwargs)

    def pictures_of_rows(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[int]:
        places = picture_places(input_ids, self.config.pad_token_id, attention_mask, row_starts(None, input_ids))
        return (places.sum(1) // self.config.picture_tokens).tolist()

    def prepare_inputs_for_generation(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """With positions for the tokens behind the cache."""
        inputs = PictureGenerationMixin.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            mask, starts = kwargs.get("attention_mask"), row_starts(None, input_ids)
            places = picture_places(input_ids, self.config.pad_token_id, mask, starts)
            inputs["rotary_positions"] = lay_out(places, mask, starts)[:, -inputs["input_ids"].shape[1] :]
        return inputs
