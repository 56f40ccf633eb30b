"""Head and generation of our own classes: what transformers does for pictures under names that it does not know."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast


# transformers looks for "GenerationMixin" in the names of a class's bases: without it a model cannot generate.
class PictureGenerationMixin(GenerationMixin):
    """Logits and loss of `self.lm_head`, and generation from rows with pictures.

    A class says by `picture_inputs` which tensors hold the pictures of all rows along their first axis, and by `pictures_of_rows`
    how many of them each row has.
    """

    picture_inputs: tuple[str, ...] = ("pixel_values", "vision_features")

    def pictures_of_rows(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> Sequence[int]:
        """How many pictures (frames, slices) each row of `input_ids int64[B, T]` has."""
        raise NotImplementedError

    def with_head(
        self: Any, outputs: Any, labels: torch.Tensor | None, logits_to_keep: int | torch.Tensor, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        """`logits float[B, T, V]` (of the last `logits_to_keep` positions) of the body's `outputs`, and `loss` when `labels
        int64[B, T]` are given."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            vocabulary = self.config.get_text_config().vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers does it, with pictures for the prompt only: it knows pixel_values by name, not the others."""
        inputs = GenerationMixin.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            for name in self.picture_inputs:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self: Any, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat rows with all their pictures: transformers would repeat each picture, and mix the pictures of a row's copies."""
        if expand_size == 1:
            return input_ids, kwargs
        # A static method in transformers 5.17 and one of the instance in 5.23: its own descriptor knows how to bind it.
        expand = vars(GenerationMixin)["_expand_inputs_for_generation"].__get__(self)
        pictures = {key: kwargs.pop(key) for key in self.picture_inputs if kwargs.get(key) is not None}
        if pictures:
            counts = list(self.pictures_of_rows(input_ids, kwargs.get("attention_mask")))
            for key, value in pictures.items():
                pictures[key] = torch.cat([row for row in value.split(counts) for _ in range(expand_size)])
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | pictures
