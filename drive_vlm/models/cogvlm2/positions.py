"""Which tokens are of pictures, which expert each token passes, and where it stands: from 0 again at every row of a pack.

All of it is computed on the tensors' own device, which is the host where the body knows the batch there. The published code keeps token types next to the ids; here they are read from
the ids, since padding and pictures share one id: no row begins with a picture, so a row that does is the padding of a pack.
"""

import dataclasses
from collections.abc import Callable

import torch

from drive_vlm.models.host_copies import to_device

Layer = Callable[[torch.Tensor], torch.Tensor]


def row_starts(position_ids: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """bool[B, T] like `like [B, T]`: where rows begin. `position_ids int64[B, T]` restart at 0 there; without them each sequence is one row."""
    starts = torch.zeros_like(like, dtype=torch.bool)
    if position_ids is not None:
        starts |= position_ids == 0
    starts[:, :1] = True
    return starts


def _of_start(values: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """`values [B, T]` at the start of each token's row."""
    places = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
    return values.gather(1, (places * starts).cummax(1).values)


def picture_places(ids: torch.Tensor, image_id: int, mask: torch.Tensor | None, starts: torch.Tensor) -> torch.Tensor:
    """bool[B, T]: the tokens of pictures in `ids int64[B, T]`, without padding. `mask int64[B, T]` is 0 for padding."""
    seen = ids == image_id
    return seen & (mask != 0) if mask is not None else seen & ~_of_start(seen, starts)


def _neighbours(places: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bool[B, T] each: whether the token before, and the one behind, is of a picture in the same row."""
    before, behind = torch.zeros_like(places), torch.zeros_like(places)
    before[:, 1:] = places[:, :-1] & ~starts[:, 1:]
    behind[:, :-1] = places[:, 1:] & ~starts[:, 1:]
    return before, behind


def vision_experts(places: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """bool[B, T]: tokens of pictures that are followed by another one. The last of a picture, eoi, passes the language expert."""
    return places & _neighbours(places, starts)[1]


def lay_out(places: torch.Tensor, mask: torch.Tensor | None, starts: torch.Tensor) -> torch.Tensor:
    """int64[B, T]: positions. Those within a picture share one; its first and last token, and words, count by one; padding does not.

    As in the published code, the first token of a row stands at 0 whether it is padding or not.
    """
    before, behind = _neighbours(places, starts)
    inner = places & before & behind
    first_inner = inner & ~torch.nn.functional.pad(inner[:, :-1], (1, 0)) | inner & starts
    steps = ~inner | first_inner
    if mask is not None:
        steps &= mask != 0
    count = steps.long().cumsum(1)
    return count - _of_start(count, starts)


@dataclasses.dataclass(frozen=True)
class Routes:
    """The rows of `hidden float[N, D]` that each expert takes, found once in a forward pass: an index that every layer worked out
    itself would wait for the device in every layer.

    Attributes:
        language, vision: int64[L] and int64[V], the rows' numbers, N = L + V. Either may be empty.
        back: int64[N], where each row stands behind the two.
    """

    language: torch.Tensor
    vision: torch.Tensor
    back: torch.Tensor

    @classmethod
    def of(cls, experts: torch.Tensor, count: int) -> "Routes":
        """Of `experts bool[B, T]`, `count` of which are true."""
        order = experts.flatten().to(torch.uint8).argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        words = len(order) - count
        return cls(order[:words], order[words:], back)

    def to(self, device: torch.device) -> "Routes":
        return Routes(*(to_device(part, device) for part in (self.language, self.vision, self.back)))

    def apply(self, hidden: torch.Tensor, language: Layer, vision: Layer) -> torch.Tensor:
        """hidden float[B, T, D] -> float[B, T, D'], each token through its expert.

        Both experts are called, also with no row: under ZeRO-3 a rank that left one out would let the others wait without end.
        """
        rows = hidden.flatten(0, 1)
        made = torch.cat([language(rows.index_select(0, self.language)), vision(rows.index_select(0, self.vision))])
        return made.index_select(0, self.back).unflatten(0, hidden.shape[:2])
