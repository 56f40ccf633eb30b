"""What the host knows of a batch that lies on a GPU, so that no forward pass has to ask for it.

A GPU runs behind the Python that feeds it. `item()`, `tolist()`, `bool()`, an index by a mask, or a blocking copy
to the device makes Python wait until the device has done everything before it; then the device waits for Python.
The ids, labels, masks and sizes of a batch come from the host. `to_device` copies without waiting and keeps the host's tensor
with the copy; `on_host` gives it back. A tensor without one (generation, TRL's own batches) is fetched, and the numbers are
the same.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch

_NAME = "drive_vlm_on_host"


def to_device(data: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`data` on `device`, without waiting for it. A copy of whole numbers remembers the host's own."""
    if data.device.type != "cpu" or torch.device(device).type == "cpu":
        return data.to(device)
    if torch.device(device).type == "cuda" and not data.is_pinned():
        # From other memory the driver may wait.
        data = data.pin_memory()
    moved = data.to(device, non_blocking=True)
    return moved if data.is_floating_point() else remember(moved, data)


def remember(moved: torch.Tensor, host: torch.Tensor | None) -> torch.Tensor:
    """`moved`, whose values are those of `host`; None where nobody knows them."""
    if host is not None and moved.device.type != "cpu":
        setattr(moved, _NAME, host)
    return moved


def known_on_host(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The host's tensor with the values of `tensor`; None where only the device has them."""
    if tensor is None or tensor.device.type == "cpu":
        return tensor
    return getattr(tensor, _NAME, None)


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The values of `tensor` on the host: known, or waited for."""
    known = known_on_host(tensor)
    return tensor.cpu() if known is None else known


def places_before_labels(labels: torch.Tensor, ignored: int) -> torch.Tensor:
    """int64[N] on the device of `labels int64[B, T]`: the places, counted row after row, whose next token has a label."""
    known = on_host(labels)
    followed = torch.zeros_like(known, dtype=torch.bool)
    followed[:, :-1] = known[:, 1:] != ignored
    return to_device(followed.flatten().nonzero()[:, 0], labels.device)


# What transformers asks the device in each forward pass


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is known of a batch: whether sequences are packs (None: look), whether rows are padded (None: look), and whether
    attention gets the places where the rows of its one sequence end (ROW_ENDS)."""

    packed: bool | None = None
    padded: bool | None = None
    ends: bool = False


_ROWS: contextvars.ContextVar[Rows | None] = contextvars.ContextVar("rows", default=None)


def rows_known() -> Rows:
    """What is known of the batch that passes the model now."""
    return _ROWS.get() or Rows()


def rows_of(position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, ends: bool = False) -> Rows:
    """`position_ids int64[B, T]` jump where a row of a pack begins; `attention_mask int64[B, T]` is 0 for padding."""
    positions, mask = known_on_host(position_ids), known_on_host(attention_mask)
    return Rows(
        packed=False if position_ids is None else None if positions is None else bool((positions.diff() != 1).any()),
        padded=False if attention_mask is None else None if mask is None else not bool(mask.all()),
        ends=ends,
    )


@contextlib.contextmanager
def knowing(rows: Rows) -> Iterator[None]:
    """Inside, transformers' masks are made with what is known of `rows` instead of asking the device."""
    _install()
    token = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(token)


@functools.cache
def _install() -> None:
    """Three patches of transformers.masking_utils (5.23): whether a batch is packed or padded is read from the device there.

    They act inside of `knowing` only, and give what the functions themselves would give.
    """
    from transformers import masking_utils

    # Any: the patches have the wrapped functions' own types.
    masks: Any = masking_utils
    own_packs, own_causal, own_both = (
        masks.find_packed_sequence_indices,
        masks._ignore_causal_mask_sdpa,
        masks._ignore_bidirectional_mask_sdpa,
    )

    @functools.wraps(own_packs)
    def packs(position_ids: torch.Tensor) -> torch.Tensor | None:
        rows = _ROWS.get()
        if rows is None or rows.packed is None:
            return own_packs(position_ids)
        if not rows.packed:
            return None
        # int64[B, T]: the number of each token's row in its pack.
        return (position_ids.diff(prepend=position_ids[:, :1] - 1) != 1).cumsum(-1)

    @functools.wraps(own_causal)
    def causal(padding_mask: Any, q_length: int, kv_length: int, *args: Any, **kwargs: Any) -> bool:
        rows = _ROWS.get()
        if padding_mask is None or rows is None or rows.padded is None or q_length != kv_length:
            return own_causal(padding_mask, q_length, kv_length, *args, **kwargs)
        return False if rows.padded else own_causal(None, q_length, kv_length, *args, **kwargs)

    @functools.wraps(own_both)
    def both(padding_mask: Any, *args: Any, **kwargs: Any) -> bool:
        rows = _ROWS.get()
        if padding_mask is None or rows is None or rows.padded is None:
            return own_both(padding_mask, *args, **kwargs)
        return False if rows.padded else own_both(None, *args, **kwargs)

    masks.find_packed_sequence_indices = packs
    masks._ignore_causal_mask_sdpa, masks._ignore_bidirectional_mask_sdpa = causal, both


def install_placeholder_check(body: Any) -> None:
    """Let `body.get_placeholder_mask` of native classes count the tokens of pictures on the host, where they are known.

    Its own check formats the count into a message before it looks at it, which waits for the device twice.
    """
    if not hasattr(body, "get_placeholder_mask"):
        return
    own = body.get_placeholder_mask

    @functools.wraps(own)
    def placeholder_mask(input_ids: Any, inputs_embeds: Any, image_features: Any = None, **rest: Any) -> Any:
        ids, token = known_on_host(input_ids), body.config.image_token_id
        tokens = None if ids is None else int((ids == token).sum())
        fits = tokens is not None and image_features is not None and not rest
        if not fits or tokens * inputs_embeds.shape[-1] != image_features.numel():
            # Its own error names both counts.
            return own(input_ids, inputs_embeds=inputs_embeds, image_features=image_features, **rest)
        mask = (input_ids == token)[..., None]
        # Qwen-VL's has a second one, for videos; here a video's tokens are those of pictures.
        return (mask, None) if hasattr(body.config, "video_token_id") else mask

    # The patch: an attribute of this body in the place of its class's method.
    body.get_placeholder_mask = placeholder_mask
