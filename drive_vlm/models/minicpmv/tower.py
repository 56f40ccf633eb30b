"""The tower, a slice at a time: SigLIP with a table of positions that slices of any shape share."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from drive_vlm.models.host_copies import Rows, knowing, to_device


@functools.lru_cache(maxsize=4096)
def buckets(count: int, side: int) -> np.ndarray:
    """int64[count]: which of `side` equal parts of an edge each of `count` places on it falls into.

    The step is rounded to float32 before the places are made of it, on the CPU: i * side // count, or the step in float64, gives
    other numbers for a fifth of all counts.
    """
    step = float(np.float32(1) / np.float32(count))
    places = torch.arange(0, 1 - 1e-6, step, dtype=torch.float32, device="cpu")
    edges = torch.arange(1 / side, 1.0, 1 / side, dtype=torch.float32, device="cpu")
    return torch.bucketize(places, edges, right=True).numpy()


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the patches of P slices are, each slice padded to the longest.

    Attributes:
        sizes: (rows, columns) of patches of each slice.
        valid: bool[P, L], False for padding; None where no slice is padded.
        rows, columns: int64[P, L], each patch's place in its grid.
    """

    sizes: Sequence[Sequence[int]]
    valid: torch.Tensor | None
    rows: torch.Tensor
    columns: torch.Tensor


def places_of(sizes: Sequence[Sequence[int]], longest: int, device: torch.device) -> Places:
    """The places of slices of `sizes` [(rows, columns)] of patches."""
    index = np.arange(longest)[None]
    widths, counts = (np.array(values)[:, None] for values in ([w for _, w in sizes], [h * w for h, w in sizes]))
    valid = index < counts
    rows, columns = np.where(valid, index // widths, 0), np.where(valid, index % widths, 0)
    on_device = [to_device(torch.from_numpy(array), device) for array in (valid, rows, columns)]
    return Places(sizes, None if valid.all() else on_device[0], *on_device[1:])


def position_ids(sizes: Sequence[Sequence[int]], longest: int, side: int, two_axes: bool) -> torch.Tensor:
    """int64[P, L]: the row of the table of side x side positions that each patch of each slice takes.

    With `two_axes` (2.6) by its row and column. Without (2.5) by its running number, as if the slice were one row of patches:
    so the published model was trained, and rows from `side` on are never used.
    """
    ids = np.zeros((len(sizes), longest), dtype=np.int64)
    for place, (rows, columns) in zip(ids, sizes, strict=True):
        if two_axes:
            place[: rows * columns] = (buckets(rows, side)[:, None] * side + buckets(columns, side)).ravel()
        else:
            place[: rows * columns] = buckets(rows * columns, side)
    return torch.from_numpy(ids)


class MiniCPMVTower(Idefics2VisionTransformer):
    """Each slice has positions of its own and sees its own patches only.

    The published batch path of 2.5 lets slices see the padding of the longest slice in the batch and stretches their positions over
    it, so that a result depends on what else is in the batch. Here slices pass as its one-slice path has them.
    """

    def __init__(self, config: Any, two_axes: bool = False) -> None:
        super().__init__(config)
        self.two_axes = two_axes

    def forward(self, pixel_values: torch.Tensor, places: Places, **_: Any) -> BaseModelOutput:
        """`pixel_values float[P, 3, p, p * L]` (patches of p pixels next to each other, row after row) -> last_hidden_state
        float[P, L, Dv]. What stands behind a slice's patches means nothing."""
        patch = self.embeddings.patch_embedding
        embeds = patch(pixel_values.to(patch.weight.dtype)).flatten(2).transpose(1, 2)
        ids = position_ids(places.sizes, embeds.shape[1], self.embeddings.num_patches_per_side, self.two_axes)
        embeds = embeds + self.embeddings.position_embedding(to_device(ids, embeds.device))
        mask: Any = None
        if places.valid is not None:
            with knowing(Rows(padded=True)):
                mask = create_bidirectional_mask(config=self.config, inputs_embeds=embeds, attention_mask=places.valid)
        hidden = self.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        return BaseModelOutput(last_hidden_state=self.post_layernorm(hidden))
