"""Activation memory of a training step, counted from what autograd keeps in transformers' layers.

b is the bytes of the compute dtype. Of one decoder layer and token autograd keeps: for each of two RMS norms an fp32 copy,
the normalised value and the output (8h + 4bh in all); queries, keys, values and output of the attention; gate,
silu(gate), up and their product (4bi). Checked against torch's own count in tests/plan/test_activations.py.
"""

import dataclasses

from drive_vlm.config import CHUNK_ELEMENTS
from drive_vlm.plan.model_sizes import UNKNOWN, ModelSizes, TextSizes, VisionSizes

# Positions and words of a tile of logits in TRL 1.16 (ChunkedLogProbFunction).
_TILE = (4096, 32768)


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
    model: ModelSizes,
    batch: Batch,
    bytes_each: int,
    checkpointing: bool,
    attention: str = "sdpa",
    chunk_tokens: int | None = None,
) -> Activations:
    """Activation bytes of `batch`, in compute dtype of `bytes_each` bytes, with or without gradient checkpointing."""
    trains = model.parts_that_train()
    tokens = batch.rows * batch.tokens
    text, b = model.text, bytes_each
    layer = tokens * _decoder_layer(text, b, full="language_model" in trains)
    layer += _attention_scores(text, batch, b, attention)
    backward = tokens * b * (3 * text.inner + 2 * text.width)
    kept = text.layers * (tokens * b * text.width if checkpointing else layer)
    # The last norm, and its labelled rows.
    kept += tokens * (4 + b) * text.width + batch.labels * b * text.width
    tower_kept, tower_work = _tower(model, trains, batch, b, checkpointing)
    work = max(backward + (layer if checkpointing else 0), tower_work)
    return Activations(kept + tower_kept, work, _loss(text, batch, b, chunk_tokens, "lm_head" in trains))


def _decoder_layer(text: TextSizes, b: int, full: bool) -> int:
    """Bytes kept of one decoder layer for one token; frozen weights need no normalised value for their own gradient."""
    norms = 8 * text.width + (4 if full else 2) * b * text.width
    if text.query_norms:
        norms += (text.queries + text.keys) * (4 + b)
    # Grouped keys and values are repeated to the queries' width before the kernel.
    return norms + b * 4 * text.queries + 4 * text.heads + 4 * b * text.inner


def _attention_scores(text: TextSizes, batch: Batch, b: int, attention: str) -> int:
    """Bytes of scores or masks of one layer: none with flash, the mask with sdpa, scores of every head with eager."""
    square = batch.rows * batch.tokens**2
    if attention == "eager":
        return square * text.heads * (4 + 2 * b)
    return square * b if attention == "sdpa" and batch.rows > 1 else 0


def inference(
    model: ModelSizes, batch: Batch, bytes_each: int, attention: str = "sdpa", distinct: int | None = None
) -> int:
    """Bytes at work in a pass without gradients: pictures, and the fullest of tower, projector and a decoder layer.

    `distinct` tiles of `batch` pass the tower (default: all). A model without a tower is given its features. A decoder layer
    has the residual, the embeddings before and after the pictures, its normalised input, and three inner widths of the MLP;
    with an adapter the frozen and the adapter's output at once, a fourth.
    """
    text, tokens, b = model.text, batch.rows * batch.tokens, bytes_each
    inner = 3 + model.has("lora")
    layer = tokens * b * (inner * text.inner + 4 * text.width)
    layer += _attention_scores(text, batch, b, attention)
    if model.vision is None or not batch.tiles:
        return layer
    passing = dataclasses.replace(batch, tiles=batch.tiles if distinct is None else distinct)
    _, tower = _tower(model, set(), passing, b, False)
    features, width = batch.tiles * model.pictures.tower_tokens, model.vision.width
    projector = b * _projector(model.vision, text, features, batch.tiles * model.pictures.tokens)
    if model.pictures.features:
        return b * batch.tiles * model.pictures.features + layer
    given = batch.tiles * model.pictures.pixels if model.has("vision_tower") else features * width * b
    return given + max(tower, features * width * b + projector, layer)


def kept_features(model: ModelSizes, tiles: int, bytes_each: int) -> int:
    """Bytes of the tower's output for `tiles` tiles."""
    return tiles * model.pictures.tower_tokens * (model.vision.width if model.vision else 0) * bytes_each


def key_value_cache(text: TextSizes, rows: int, tokens: int, key_bytes: int, value_bytes: int) -> int:
    """Bytes of keys and values of all layers for `rows` sequences of `tokens`."""
    return text.layers * rows * tokens * text.keys * (key_bytes + value_bytes)


def decoding(text: TextSizes, rows: int, tokens: int, cache: int, bytes_each: int) -> int:
    """Working memory on top of the KV cache while the last token is sampled.

    It is the largest of one layer's cache a second time while it grows, one layer's cache repeated to the queries' width, and
    the logits: as they are, and in fp32 once cast, once scaled, once as probabilities.
    """
    layer = cache // text.layers
    repeated = 2 * rows * tokens * text.queries * bytes_each if text.queries > text.keys else 0
    return max(layer, repeated, rows * text.vocabulary * (bytes_each + 12))


def fused_head(
    text: TextSizes, labels: int, bytes_each: int, weight_bytes: int, backward: bool, head_trains: bool
) -> int:
    """Bytes of TRL's head (ChunkedLogProbFunction), which holds one tile of logits at a time.

    They are the tile, and its weights in the compute dtype where they have another; in the backward pass the fp32 gradient of
    the positions, and of a head that trains.
    """
    positions, columns = min(labels, _TILE[0]), _TILE[1]
    cast = min(columns, text.vocabulary) * text.width * bytes_each if weight_bytes != bytes_each else 0
    gradients = 4 * text.width * (labels + text.vocabulary * head_trains) if backward else 0
    return positions * columns * bytes_each + cast + gradients


def _tower(model: ModelSizes, trains: set[str], batch: Batch, b: int, checkpointing: bool) -> tuple[int, int]:
    """(bytes kept of tower and projector, bytes at work in one layer of the tower); without a tower its features are given."""
    vision, pictures = model.vision, model.pictures
    if vision is None or not batch.tiles:
        return 0, 0
    if pictures.features:
        return batch.tiles * pictures.features * b, 0
    width, inner = vision.width, vision.inner
    tower_tokens = batch.tiles * pictures.tower_tokens
    layer = tower_tokens * b * (8 * width + 2 * inner + (2 * width if vision.scaled else 0))
    # A batch brings its pixels as a byte each; the tower takes them normalised.
    kept, taken = batch.tiles * pictures.pixels, batch.tiles * pictures.pixels * b
    if not model.has("vision_tower"):
        kept, work = tower_tokens * b * width, 0
    elif "vision_tower" in trains:
        kept += taken + vision.layers * (tower_tokens * b * width if checkpointing else layer)
        work = tower_tokens * b * (2 * inner + 2 * width) + (layer if checkpointing else 0)
    else:
        work = taken + tower_tokens * b * (2 * inner + 2 * width)
    if trains & {"vision_tower", "temporal_embeddings", "projector"}:
        kept += b * _projector(vision, model.text, tower_tokens, batch.tiles * pictures.tokens)
    return kept, work


def _projector(vision: VisionSizes, text: TextSizes, tower_tokens: int, tokens: int) -> int:
    """Numbers kept of a projector that takes `tower_tokens` and gives `tokens`.

    siglip_qwen's mlp: what is pooled, the pooled tokens, two hidden layers. Its resampler: the features, and in each layer their
    norm, keys and values, and of the queries five widths, two of the MLP's norm and two inner ones.
    """
    width, layers = vision.width, vision.projector_layers
    if vision.projector == "glu":
        # The features and what the convolution takes; its output, two widths around the activation, three inner ones.
        return 2 * tower_tokens * width + tokens * (width + 3 * text.width + 3 * text.inner)
    if vision.projector in ("patches", UNKNOWN):
        return 2 * tower_tokens * width + 3 * tokens * text.width
    if vision.projector == "resampler":
        return tower_tokens * width * (1 + 3 * layers) + tokens * (layers * (7 * width + 2 * vision.inner) + 2 * width)
    return (tower_tokens * (vision.projector == "pooled") + tokens) * width + 2 * tokens * text.width


def _loss(text: TextSizes, batch: Batch, b: int, chunk_tokens: int | None, head_trains: bool) -> int:
    """The loss of one chunk: logits, their fp32 copy, log-softmax, its gradient, the logits' gradient; the head's gradient."""
    rows = min(batch.labels, chunk_tokens or max(1, CHUNK_ELEMENTS // text.vocabulary))
    copies = (b + 4 + 4 + 4 + b) if b < 4 else 16
    head = b * text.vocabulary * text.width if head_trains and batch.labels > rows else 0
    return rows * text.vocabulary * copies + head
