"""The forward pass of training: a loss without the logits, and a vision tower that every batch passes.

* The head runs on labelled positions only, a chunk at a time, and each chunk's logits are recomputed in the backward
  pass: 16,384 labelled tokens on InternVL3's vocabulary would otherwise hold 9.9 GB of fp32 logits.
* A batch without a picture sends one dummy tile through tower and projector, times zero. Under ZeRO-3 every module
  gathers its weights from all ranks, so a rank that left the tower out would let the others wait without end.

`load_family(for_training=True)` patches three forwards here, the model's, its head's and its body's, and the body's check of
picture tokens; pixels.py wraps `get_image_features`, which normalises pixels. The loss is therefore
computed in the patched model.forward, which Trainer.compute_loss reaches by `model(**batch)`. It divides by the tokens of all
ranks, and the ranks' gradients are averaged: Trainer.compute_loss multiplies the loss by the number of processes in between.
"""

import dataclasses
import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from drive_vlm.config import CHUNK_ELEMENTS, IGNORE_INDEX, ROW_ENDS
from drive_vlm.models.host_copies import install_placeholder_check, knowing, places_before_labels, rows_of, to_device
from drive_vlm.models.vision import VisionAdapter


def _losses(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, reduction: str
) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction=reduction)


@dataclasses.dataclass
class TokenLogProbs(ModelOutput):
    """`log_probs float32[N]` of the labelled tokens, row after row. With a temperature also the `entropies float32[N]` of what
    each was drawn from, and from a model with a value head the `state_values float32[N]` of the states before them."""

    log_probs: torch.Tensor | None = None
    entropies: torch.Tensor | None = None
    state_values: torch.Tensor | None = None


# A logit that no token is drawn with. It is finite, so that 0 times it is 0 in an entropy.
NEVER = -1e30


def _policy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    temperature: float,
    never: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = F.linear(hidden, weight, bias).float() / temperature
    logits = logits.index_fill(1, never, NEVER)
    scale = logits.logsumexp(1)
    return logits.gather(1, labels[:, None])[:, 0] - scale, scale - (logits.softmax(1) * logits).sum(1)


def chunked_policy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    temperature: float,
    chunk_tokens: int | None = None,
    never: Sequence[int] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities of `labels int64[N]`, entropies), float32[N] each, under softmax((hidden float[N, D] @ weight.T
    float[D, V] + bias) / temperature) over all tokens but `never`, with as many logits at a time as in
    `chunked_cross_entropy`."""
    left_out = to_device(torch.tensor(never, dtype=torch.long), hidden.device)
    parts = [
        checkpoint(_policy, h, weight, bias, y, temperature, left_out, use_reentrant=False)
        for h, y in _chunks(hidden, weight, labels, chunk_tokens)
    ]
    log_probs, entropies = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


def _chunks(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk_tokens: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = chunk_tokens or max(1, CHUNK_ELEMENTS // weight.shape[0])
    # Without a label there is still one (empty) chunk, so that every rank's graph reaches every parameter.
    return zip(hidden.split(rows) or (hidden,), labels.split(rows) or (labels,), strict=True)


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    chunk_tokens: int | None = None,
    apart: bool = False,
) -> torch.Tensor:
    """Sum of the cross entropy of `labels int64[N]` under softmax(hidden float[N, D] @ weight.T float[D, V] + bias).

    With `apart` the log-probability of each label, float32[N]. At most `chunk_tokens` rows of logits exist at a time, forward
    or backward (default: 64 M elements).
    """
    kind = "none" if apart else "sum"
    chunks = _chunks(hidden, weight, labels, chunk_tokens)
    losses = [checkpoint(_losses, h, weight, bias, y, kind, use_reentrant=False) for h, y in chunks]
    return -torch.cat(losses) if apart else sum(losses, hidden.new_zeros((), dtype=torch.float32))


def install_training_forward(model: Any, vision: VisionAdapter | None, chunk_tokens: int | None = None) -> None:
    """Replace `model.forward` for calls with `labels`; without labels the model's own forward runs.

    The model is a causal language model of transformers' two-level layout: `model.model` (the body) and an output
    embedding that is a linear layer. Given `labels int64[B, T]` it returns `loss`: the summed cross entropy of the next
    tokens divided by `num_items_in_batch` (labelled tokens of the whole step), or by the batch's own count. With
    `token_log_probs` it returns TokenLogProbs instead; with a `temperature` the logits are divided by it, and the
    tokens `never` are no part of the distribution. `value_gradient` asks for the values: False keeps their gradient out of the
    body.
    """
    own_forward, head = model.forward, model.get_output_embeddings()
    dummy_vision = vision.dummy_inputs() if vision else None
    if vision is not None and dummy_vision is not None:
        _install_tower_pass(model.model, dummy_vision, vision.read_by_host)
        # Patch 4, of model.model.get_placeholder_mask where there is one: the host counts the tokens of pictures.
        install_placeholder_check(model.model)

    def head_forward(
        self: torch.nn.Linear,
        hidden: torch.Tensor,
        labels: torch.Tensor | None = None,
        apart: bool = False,
        temperature: float | None = None,
        never: Sequence[int] = (),
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits; or, when labels are given, the summed loss, or the log-probability of each label apart, with a temperature
        the entropies too. One module call, so that ZeRO-3 gathers the weight once."""
        if labels is None:
            return F.linear(hidden, self.weight, self.bias)
        if temperature is not None:
            return chunked_policy(hidden, self.weight, self.bias, labels, temperature, chunk_tokens, never)
        return chunked_cross_entropy(hidden, self.weight, self.bias, labels, chunk_tokens, apart)

    # Patch 1, of lm_head.forward: chunks must be formed inside the module's call, where ZeRO-3 has its weight gathered.
    head.forward = types.MethodType(head_forward, head)

    @functools.wraps(own_forward)
    def forward(
        *args: Any,
        labels: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        token_log_probs: bool = False,
        temperature: float | None = None,
        value_gradient: bool | None = None,
        never: Sequence[int] = (),
        **kwargs: Any,
    ) -> Any:
        if labels is None:
            return own_forward(*args, **kwargs)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        # With a cache, sdpa would not keep packed rows apart.
        kwargs["use_cache"] = False
        if dummy_vision is not None and all(kwargs.get(key) is None for key in (*dummy_vision, "vision_features")):
            kwargs["tower_pass"] = True
        # From here on nothing waits for the device where the host knows the batch (host_copies.py).
        ends = kwargs.get(ROW_ENDS[0]) is not None
        with knowing(rows_of(kwargs.get("position_ids"), kwargs.get("attention_mask"), ends)):
            hidden = model.model(*args, **kwargs)[0]
        places = places_before_labels(labels, IGNORE_INDEX)
        states = hidden.flatten(0, 1).index_select(0, places)
        # The label of a place is the token behind it. No place is the last of its sequence.
        wanted = labels.flatten().index_select(0, places + 1)
        if token_log_probs and temperature is not None:
            # The rows that the head predicts the tokens from are those that the values are of.
            log_probs, entropies = head(states, labels=wanted, temperature=temperature, never=never)
            if value_gradient is None:
                return TokenLogProbs(log_probs, entropies)
            # Asked for at each call: peft puts a wrapper in its place.
            return TokenLogProbs(log_probs, entropies, model.value_head(states if value_gradient else states.detach()))
        if token_log_probs:
            return TokenLogProbs(head(states, labels=wanted, apart=True))
        total = head(states, labels=wanted)
        if num_items_in_batch is None:
            num_items_in_batch = torch.full((), len(places), device=total.device)
        count = torch.as_tensor(num_items_in_batch)
        return CausalLMOutputWithPast(loss=total / count.clamp(min=1).to(total.device))

    # Patch 2, of model.forward: this is where a training's loss is computed.
    model.forward = forward


def _install_tower_pass(body: Any, dummy: dict[str, torch.Tensor], read_by_host: Sequence[str]) -> None:
    """Let `body(input_ids=..., tower_pass=True)` add zero times the dummy picture's features to the token embeddings. Tensors of
    the names `read_by_host` stay on the host.

    This happens inside the body's forward, since ZeRO-3 compares the order in which ranks enter modules: top, body,
    embeddings, tower, projector, language model, with a picture or without.
    """
    own_forward = body.forward
    # Without a tower these become a picture's features (vision_features.detach_tower).
    body.tower_pass_inputs = dummy

    @functools.wraps(own_forward)
    def forward(*args: Any, tower_pass: bool = False, **kwargs: Any) -> Any:
        if tower_pass:
            embeds = body.get_input_embeddings()(kwargs.pop("input_ids"))
            picture = {
                key: value if key in read_by_host else to_device(value, embeds.device)
                for key, value in body.tower_pass_inputs.items()
            }
            features = body.get_image_features(**picture, return_dict=True)
            # Some families return a tensor for each picture; Qwen3-VL also features of deeper layers (DeepStack).
            made = (features.pooler_output, getattr(features, "deepstack_features", None))
            total = torch.stack([one.sum() for one in _tensors(made)]).sum()
            kwargs["inputs_embeds"] = embeds + 0.0 * total.to(embeds.dtype)
        return own_forward(*args, **kwargs)

    # Patch 3, of model.model.forward: the tower pass must happen between the embeddings and the language model.
    body.forward = forward


def _tensors(nested: Any) -> Iterator[torch.Tensor]:
    """The tensors of a list of lists, or of nothing."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif nested is not None:
        for one in nested:
            yield from _tensors(one)
