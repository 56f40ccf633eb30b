"""Activation memory of a training step, counted from what autograd keeps in transformers' layers.

b is the bytes of the compute dtype. Of one decoder layer and token autograd keeps: for each of two RMS norms an fp32 copy,
the normalised value and the output (8h + 4bh in all); queries, keys, values and output of the attention; gate,
silu(gate), up and their product (4bi). Checked against torch's own count in tests/plan/test_activations.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from drive_vlm.plan.architecture import Architecture, Weight, attention_widths

_CHUNK_ELEMENTS = 1 << 26  # logits at a time, as training_forward.py has it
_TILE = (4096, 32768)  # positions and words of a tile of logits in TRL 1.16


@dataclasses.dataclass(frozen=True)
class Batch:
    """One micro batch of one process: rows of `tokens`, `tiles` in all rows, `labels` learned positions in all rows."""

    rows: int
    tokens: int
    tiles: int
    labels: int


@dataclasses.dataclass(frozen=True)
class Activations:
    """Bytes of a micro batch: kept for the backward pass, the largest layer's own work, and the loss."""

    kept: int
    work: int
    logits: int


def activations(
    architecture: Architecture,
    weights: Sequence[Weight],
    batch: Batch,
    bytes_each: int,
    checkpointing: bool,
    attention: str = "sdpa",
    chunk_tokens: int | None = None,
) -> Activations:
    """Activation bytes of `batch`, in compute dtype of `bytes_each` bytes, with or without gradient checkpointing."""
    trains = {weight.part for weight in weights if weight.trains}
    tokens = batch.rows * batch.tokens
    text, b = architecture.text, bytes_each
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    layer = tokens * _decoder_layer(text, b, full="language_model" in trains)
    layer += _attention_scores(text, batch, b, attention)
    backward = tokens * b * (3 * text["intermediate_size"] + 2 * hidden)
    kept = layers * (tokens * b * hidden if checkpointing else layer)
    kept += tokens * (4 + b) * hidden + batch.labels * b * hidden  # the last norm, its labelled rows
    has_tower = any(weight.part == "vision_tower" for weight in weights)
    tower_kept, tower_work = _tower(architecture, trains, batch, b, checkpointing, has_tower)
    work = max(backward + (layer if checkpointing else 0), tower_work)
    return Activations(kept + tower_kept, work, _loss(text, batch, b, chunk_tokens, "lm_head" in trains))


def _decoder_layer(text: dict[str, Any], b: int, full: bool) -> int:
    """Bytes kept of one decoder layer for one token; frozen weights need no normalised value for their own gradient."""
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    queries, keys = attention_widths(text)
    norms = 8 * hidden + (4 if full else 2) * b * hidden
    if text["model_type"] == "qwen3":
        norms += (queries + keys) * (4 + b)
    # grouped keys and values are repeated to the queries' width before the kernel
    return norms + b * 4 * queries + 4 * text["num_attention_heads"] + 4 * b * inner


def _attention_scores(text: dict[str, Any], batch: Batch, b: int, attention: str) -> int:
    """Bytes of scores or masks of one layer: none with flash, the mask with sdpa, scores of every head with eager."""
    square = batch.rows * batch.tokens**2
    if attention == "eager":
        return square * text["num_attention_heads"] * (4 + 2 * b)
    return square * b if attention == "sdpa" and batch.rows > 1 else 0


def inference(
    architecture: Architecture,
    weights: Sequence[Weight],
    batch: Batch,
    bytes_each: int,
    attention: str = "sdpa",
    distinct: int | None = None,
) -> int:
    """Bytes at work in a pass without gradients: pictures, and the fullest of tower, projector and a decoder layer.

    `distinct` tiles of `batch` pass the tower (default: all); without a tower among `weights` its features come in. A decoder
    layer has the residual, the embeddings before and after the pictures, its normalised input, and three inner widths of the
    MLP; with an adapter the frozen and the adapter's output at once, a fourth.
    """
    text, tokens, b = architecture.text, batch.rows * batch.tokens, bytes_each
    inner = 3 + any(weight.part == "lora" for weight in weights)
    layer = tokens * b * (inner * text["intermediate_size"] + 4 * text["hidden_size"])
    layer += _attention_scores(text, batch, b, attention)
    if architecture.vision is None or not batch.tiles:
        return layer
    has_tower = any(weight.part == "vision_tower" for weight in weights)
    passing = dataclasses.replace(batch, tiles=batch.tiles if distinct is None else distinct)
    _, tower = _tower(architecture, set(), passing, b, False, has_tower)
    features = batch.tiles * architecture.pictures.tower_tokens
    projector = b * _projector(architecture, features, batch.tiles * architecture.pictures.tokens)
    given = batch.tiles * architecture.pictures.pixels if has_tower else features * architecture.vision["hidden_size"]
    return b * given + max(tower, features * architecture.vision["hidden_size"] * b + projector, layer)


def kept_features(architecture: Architecture, tiles: int, bytes_each: int) -> int:
    """Bytes of the tower's output for `tiles` tiles."""
    width = architecture.vision["hidden_size"] if architecture.vision else 0
    return tiles * architecture.pictures.tower_tokens * width * bytes_each


def key_value_cache(architecture: Architecture, rows: int, tokens: int, key_bytes: int, value_bytes: int) -> int:
    """Bytes of keys and values of all layers for `rows` sequences of `tokens`."""
    text = architecture.text
    _, keys = attention_widths(text)
    return int(text["num_hidden_layers"]) * rows * tokens * keys * (key_bytes + value_bytes)


def decoding(architecture: Architecture, rows: int, tokens: int, cache: int, bytes_each: int) -> int:
    """Bytes at work beside `cache` when the last token of `rows` sequences of `tokens` is drawn: one layer's cache a second
    time while it grows, or repeated to the queries' width; logits, in fp32 once as they are, once scaled, once as probabilities."""
    text = architecture.text
    queries, keys = attention_widths(text)
    layer = cache // text["num_hidden_layers"]
    repeated = 2 * rows * tokens * queries * bytes_each if queries > keys else 0
    return max(layer, repeated, rows * text["vocab_size"] * (bytes_each + 12))


def fused_head(
    architecture: Architecture, labels: int, bytes_each: int, weight_bytes: int, backward: bool, head_trains: bool
) -> int:
    """Bytes of TRL's head (ChunkedLogProbFunction), which holds one tile of logits at a time: the tile, the weights of it in the
    compute dtype where they have another; in the backward pass the fp32 gradient of the positions, and of a head that trains."""
    hidden, vocab = architecture.text["hidden_size"], architecture.text["vocab_size"]
    positions, columns = min(labels, _TILE[0]), _TILE[1]
    cast = min(columns, vocab) * hidden * bytes_each if weight_bytes != bytes_each else 0
    gradients = 4 * hidden * (labels + vocab * head_trains) if backward else 0
    return positions * columns * bytes_each + cast + gradients


def _tower(
    architecture: Architecture, trains: set[str], batch: Batch, b: int, checkpointing: bool, has_tower: bool
) -> tuple[int, int]:
    """(bytes kept of tower and projector, bytes at work in one layer of the tower); without a tower its features are given."""
    vision = architecture.vision
    if vision is None or not batch.tiles:
        return 0, 0
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    tower_tokens = batch.tiles * architecture.pictures.tower_tokens
    layer = tower_tokens * b * (8 * width + 2 * inner + (2 * width if architecture.kind == "internvl" else 0))
    kept = batch.tiles * architecture.pictures.pixels * b
    if not has_tower:
        kept, work = tower_tokens * b * width, 0
    elif "vision_tower" in trains:
        kept += vision["num_hidden_layers"] * (tower_tokens * b * width if checkpointing else layer)
        work = tower_tokens * b * (2 * inner + 2 * width) + (layer if checkpointing else 0)
    else:
        work = tower_tokens * b * (2 * inner + 2 * width)
    if trains & {"vision_tower", "temporal_embeddings", "projector"}:
        kept += b * _projector(architecture, tower_tokens, batch.tiles * architecture.pictures.tokens)
    return kept, work


def _projector(architecture: Architecture, tower_tokens: int, tokens: int) -> int:
    """Numbers kept of a projector that takes `tower_tokens` and gives `tokens`.

    siglip_qwen's mlp: what is pooled, the pooled tokens, two hidden layers. Its resampler: the features, and in each layer their
    norm, keys and values, and of the queries five widths, two of the MLP's norm and two inner ones.
    """
    width, hidden, config = (
        architecture.config["vision_config"]["hidden_size"],
        architecture.text["hidden_size"],
        architecture.config,
    )
    if architecture.kind != "siglip_qwen":
        return 2 * tower_tokens * width + 3 * tokens * hidden
    if config["projector_type"] == "mlp":
        return (tower_tokens * (config["pool_size"] > 1) + tokens) * width + 2 * tokens * hidden
    layers, inner = config["resampler_layers"], config["vision_config"]["intermediate_size"]
    return tower_tokens * width * (1 + 3 * layers) + tokens * (layers * (7 * width + 2 * inner) + 2 * width)


def _loss(text: dict[str, Any], batch: Batch, b: int, chunk_tokens: int | None, head_trains: bool) -> int:
    """The loss of one chunk: logits, their fp32 copy, log-softmax, its gradient, the logits' gradient; the head's gradient."""
    vocab = text["vocab_size"]
    rows = min(batch.labels, chunk_tokens or max(1, _CHUNK_ELEMENTS // vocab))
    copies = (b + 4 + 4 + 4 + b) if b < 4 else 16
    head = b * vocab * text["hidden_size"] if head_trains and batch.labels > rows else 0
    return rows * vocab * copies + head
