"""Positions of M-RoPE: time, row and column of every token, from 0 again at every row of a pack.

transformers lays them out for a batch of single rows (`get_rope_index`) and only where it is given the kind of every token.
Here the body finds the rows of a pack by the positions that the collator gives it, and the pictures by their tokens. A
picture and a video take the same way through the tower, so that all ranks enter it once whatever their rows hold.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from drive_vlm.config import ROW_ENDS
from drive_vlm.models.host_copies import known_on_host, on_host, remember, to_device


def lay_out(
    seen: np.ndarray, starts: np.ndarray, pieces: Iterator[tuple[int, int, int, float]], text: np.ndarray
) -> np.ndarray:
    """int64[3, T]: time, row and column of each token of one sequence.

    Args:
        seen: bool[T], the tokens of pictures and videos.
        starts: int64[S], where its rows begin; the first is 0.
        pieces: (times, rows, columns, steps of the time axis from one time to the next), in tokens, of each picture or video
            of the batch in order; as many are taken as the sequence holds.
        text: bool[T], the tokens that count; the others are padding and stand at 0.
    """
    positions = np.zeros((3, len(seen)), dtype=np.int64)
    for start, end in zip(starts, [*starts[1:], len(seen)], strict=True):
        inside = start + np.flatnonzero(text[start:end])
        positions[:, inside] = _of_row(seen[inside], pieces)
    return positions


def _of_row(seen: np.ndarray, pieces: Iterator[tuple[int, int, int, float]]) -> np.ndarray:
    """int64[3, T] of one row without padding.

    Words count by one on all axes. A piece begins where the words before it end; words go on behind its longer edge, however
    long it lasts (transformers 5.23; older versions went on behind its last time).
    """
    out, done, now = [], 0, 0
    places = np.flatnonzero(seen)
    while len(places):
        begin = int(places[0])
        times, rows, columns, step = next(pieces)
        out.append(np.tile(now + np.arange(begin - done), (3, 1)))
        now += begin - done
        axes = np.floor(np.arange(times) * step + 1e-6), np.arange(rows), np.arange(columns)
        out.append(now + np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).astype(np.int64))
        now += max(rows, columns)
        places, done = places[times * rows * columns :], begin + times * rows * columns
    out.append(np.tile(now + np.arange(len(seen) - done), (3, 1)))
    return np.concatenate(out, axis=1)


def positions_of(
    body: Any,
    input_ids: torch.Tensor,
    grids: torch.Tensor | None,
    steps: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> torch.Tensor:
    """int64[3, B, T] of `input_ids int64[B, T]`, on the host.

    `grids int64[N, 3]` are the patches of each picture, `steps int64[N]` microseconds from one pair of a video's frames to the
    next. `position_ids int64[B, T]` restart at 0 where a row of a pack begins; without them each sequence is one row.
    """
    config = body.config
    merge, rate = config.vision_config.spatial_merge_size, getattr(config.vision_config, "tokens_per_second", 0)
    ids = on_host(input_ids).numpy()
    text = np.ones_like(ids, dtype=bool) if attention_mask is None else on_host(attention_mask).numpy().astype(bool)
    given = [] if grids is None else on_host(grids).tolist()
    between = [0] * len(given) if steps is None else on_host(steps).tolist()
    pieces = iter(
        [(t, h // merge, w // merge, rate * step / 1e6) for (t, h, w), step in zip(given, between, strict=True)]
    )
    begins = None if position_ids is None else (on_host(position_ids) == 0).numpy()
    rows = []
    for b, sequence in enumerate(ids):
        seen = np.isin(sequence, (config.image_token_id, config.video_token_id)) & text[b] & bool(given)
        starts = np.zeros(1, dtype=np.int64)
        if begins is not None:
            starts = np.union1d(starts, np.flatnonzero(begins[b]))
        rows.append(lay_out(seen, starts, pieces, text[b]))
    return torch.from_numpy(np.stack(rows, axis=1))


def _as_pictures(ids: torch.Tensor, body: Any) -> torch.Tensor:
    return ids.masked_fill(ids == body.config.video_token_id, body.config.image_token_id)


def install_positions(model: Any) -> None:
    """Give the body and generation the positions of what they are given.

    Patch 1, of model.model.forward: positions as above, and video tokens go the way of pictures.
    Patch 2, of model._prepare_position_ids_for_generation: it knows pictures only by token kinds, which no stage gives it.
    Patch 3, of model.model.get_image_features: transformers 5.17 hands it where the rows of text end, and the tower has ends of
    its own (5.23 leaves them out itself).
    """
    body = model.model
    own_features = body.get_image_features

    @functools.wraps(own_features)
    def features(*args: Any, **kwargs: Any) -> Any:
        return own_features(*args, **{name: value for name, value in kwargs.items() if name not in ROW_ENDS})

    own_forward, own_prepare = body.forward, model._prepare_position_ids_for_generation

    @functools.wraps(own_forward)
    def forward(
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        cache = kwargs.get("past_key_values")
        native = kwargs.get("pixel_values_videos") is not None or kwargs.get("mm_token_type_ids") is not None
        decoding = cache is not None and cache.get_seq_length() > 0
        mask = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        if native or decoding or (position_ids is not None and position_ids.ndim == 3):
            # A call of transformers' own (its processor's batch, generation) brings all that it needs.
            if native and second_per_grid_ts is not None:
                kwargs["second_per_grid_ts"] = second_per_grid_ts
        else:
            # Of words alone any id will do: only the ids of pictures are looked for.
            near = input_ids if input_ids is not None else kwargs["inputs_embeds"]
            ids = input_ids if input_ids is not None else torch.full(near.shape[:2], -1)
            grids = kwargs.get("image_grid_thw")
            laid = to_device(positions_of(body, ids, grids, second_per_grid_ts, mask, position_ids), near.device)
            # The first of four axes says where rows begin: attention keeps them apart by it.
            position_ids = (
                laid if position_ids is None else torch.cat([position_ids[None].expand(1, *laid.shape[1:]), laid])
            )
        if input_ids is not None and not native:
            known = known_on_host(input_ids)
            input_ids = remember(_as_pictures(input_ids, body), None if known is None else _as_pictures(known, body))
        return own_forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)

    @functools.wraps(own_prepare)
    def prepare(inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]) -> torch.Tensor:
        grids, cache = model_kwargs.get("image_grid_thw"), model_kwargs.get("past_key_values")
        if (
            model_kwargs.get("mm_token_type_ids") is not None
            or grids is None
            or (cache is not None and cache.get_seq_length())
        ):
            return own_prepare(inputs_tensor, model_kwargs)
        ids, mask = model_kwargs.get("input_ids", inputs_tensor), model_kwargs.get("attention_mask")
        laid = positions_of(body, ids, grids, model_kwargs.get("second_per_grid_ts"), mask, None).to(ids.device)
        words = own_prepare(inputs_tensor, {**model_kwargs, "image_grid_thw": None})[:1]
        lengths = mask.sum(1) if mask is not None else torch.full_like(ids[:, 0], ids.shape[1])
        body.rope_deltas = (laid.amax((0, 2)) + 1 - lengths)[:, None]
        return torch.cat([words.expand(1, *laid.shape[1:]), laid])

    body.forward, body.get_image_features = forward, features
    model._prepare_position_ids_for_generation = prepare
