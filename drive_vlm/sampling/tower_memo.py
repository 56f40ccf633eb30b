"""A frozen vision tower runs once for each picture: its output is kept by the picture's content until `clear`.

In GRPO a picture comes back in every completion of its group, in generation, in the passes of policy and reference, and in
each iteration; the frozen tower would give the same features each time.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

# Of 64 bits each.
_LANES = 2


class TowerMemo:
    """Features of the pictures seen since `clear`, shared by all towers it is installed on: their weights must be equal.

    Memory: the features of the distinct pictures of one generation batch, on the tower's device.

    Attributes:
        pictures: pictures that a tower was really run on, since the beginning.
        asked: pictures that features were asked for, since the beginning.
    """

    def __init__(self) -> None:
        self.pictures = self.asked = 0
        self._kept: dict[tuple[Any, ...], list[torch.Tensor | None]] = {}
        self._multipliers: dict[tuple[int, torch.device], torch.Tensor] = {}
        self._shape: Any = None

    def clear(self) -> None:
        """Forget all pictures."""
        self._kept.clear()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Inside, other rows are answered: their pictures are forgotten afterwards, and those that are kept now stay."""
        kept, self._kept = self._kept, {}
        try:
            yield
        finally:
            self._kept = kept

    def install(self, tower: torch.nn.Module) -> None:
        """Put the memo before `tower.forward(pixel_values float[P, ...], ...)`. Raises ValueError when its output may change."""
        if any(parameter.requires_grad for parameter in tower.parameters()):
            raise ValueError("the vision tower trains: its features change with every step and cannot be kept")
        own = tower.forward

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            pixels = kwargs.pop("pixel_values") if "pixel_values" in kwargs else args[0]
            assert len(args) < 2, "a tower takes its pictures first and all else by name"
            return self._features(own, pixels, kwargs)

        tower.forward = forward

    def _features(self, own: Callable[..., Any], pixels: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        if not len(pixels):
            return own(pixel_values=pixels, **kwargs)
        by_picture = {k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor) and len(v) == len(pixels)}
        rest = {k: v for k, v in kwargs.items() if k not in by_picture}
        # An encoder has no cache, but transformers hands the flag of the language model down to it, here and not there.
        settings = repr(sorted(item for item in rest.items() if item[0] != "use_cache"))
        keys = self._keys([pixels, *by_picture.values()], settings)
        new = {key: i for i, key in enumerate(keys) if key not in self._kept}
        self.asked += len(keys)
        self.pictures += len(new)
        # A frozen tower keeps nothing for a backward pass.
        with torch.no_grad():
            if new:
                chosen = torch.tensor(list(new.values()), device=pixels.device)
                picked = {name: tensor[chosen] for name, tensor in by_picture.items()}
                leaves, self._shape = pytree.tree_flatten(own(pixel_values=pixels[chosen], **picked, **rest))
                self._kept |= {key: [_one(leaf, place) for leaf in leaves] for place, key in enumerate(new)}
            columns = zip(*(self._kept[key] for key in keys), strict=True)
            return pytree.tree_unflatten([_all(column) for column in columns], self._shape)

    def _keys(self, tensors: list[torch.Tensor], settings: str) -> list[tuple[Any, ...]]:
        """One key a picture: its bytes, the settings of the call, and the precision that autocast would choose."""
        device = tensors[0].device.type
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        digests = [self._digests(tensor).tolist() for tensor in tensors]
        return [(settings, cast, *map(tuple, parts)) for parts in zip(*digests, strict=True)]

    def _digests(self, tensor: torch.Tensor) -> torch.Tensor:
        """int64[P, 2]: the bits of each picture `tensor [P, ...]` times fixed random numbers, summed modulo 2^64 (multilinear
        hashing, Lemire and Kaser 2014). On the tensor's own device: no pixel is copied to the CPU."""
        bits = tensor.detach().reshape(len(tensor), -1).contiguous()
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()]
        numbers = bits.view(width)
        count = numbers.shape[1]
        if (count, tensor.device) not in self._multipliers:
            chance = torch.Generator().manual_seed(count)
            bounds = torch.iinfo(torch.int64)
            drawn = torch.randint(bounds.min, bounds.max, (_LANES, count), generator=chance)
            self._multipliers[count, tensor.device] = drawn.to(tensor.device)
        lanes = self._multipliers[count, tensor.device]
        # A picture at a time: the products take eight bytes a number.
        return torch.stack([(one.to(torch.int64) * lanes).sum(1) for one in numbers])


def _one(leaf: torch.Tensor | None, place: int) -> torch.Tensor | None:
    return None if leaf is None else leaf[place]


def _all(column: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
    """An output's field for all pictures, or a field that the tower leaves out."""
    given = [leaf for leaf in column if leaf is not None]
    return torch.stack(given) if given else None
