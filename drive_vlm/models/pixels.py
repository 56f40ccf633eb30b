"""Pictures stay uint8 from the file to the device and become decimals in the model's own forward pass.

A quarter of the bytes pass the pipe of a loader worker and the bus, and the workers leave out the slowest step of a processor.
`Normalisation` computes what the processor would have, bit for bit.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from drive_vlm.models.host_copies import to_device

if TYPE_CHECKING:
    from PIL.Image import Image

# Arguments of an image processor that leave its pixels uint8.
AS_THEY_ARE = {"do_rescale": False, "do_normalize": False}


class Normalisation:
    """Pixels uint8[..., 3, H, W] -> float32, as an image processor rescales and normalises them.

    The order of operations is that of the processor's backend, so that every level of every channel gives the same bits:
    torchvision's divides mean and deviation by the factor once (TorchvisionBackend.rescale_and_normalize of transformers),
    numpy's multiplies in float64 and rounds (image_transforms.rescale).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], factor: float | None, fused: bool) -> None:
        """`factor` multiplies the levels 0 to 255 first; None leaves them."""
        self._rule = (tuple(mean), tuple(std), factor, fused)
        self._factor = None if fused else factor
        scale = 1.0 / factor if fused and factor is not None else 1.0
        self._mean, self._std = (torch.tensor(values)[:, None, None] * scale for values in (mean, std))
        self._on: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def of(cls, processor: Any) -> "Normalisation":
        """That of an image (or video) processor of transformers."""
        factor = processor.rescale_factor if processor.do_rescale else None
        if not processor.do_normalize:
            return cls((0.0,) * 3, (1.0,) * 3, factor, fused=False)
        fused = getattr(processor, "backend", "torchvision") == "torchvision"
        return cls(tuple(processor.image_mean), tuple(processor.image_std), factor, fused)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Normalisation) and self._rule == other._rule

    def __hash__(self) -> int:
        return hash(self._rule)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.device not in self._on:
            self._on[pixels.device] = (to_device(self._mean, pixels.device), to_device(self._std, pixels.device))
        mean, std = self._on[pixels.device]
        # Plane by plane in memory, however the levels lie: towers are fastest with that, and round alike.
        planar = torch.contiguous_format
        if self._factor is None:
            return pixels.to(torch.float32, memory_format=planar).sub_(mean).div_(std)
        return (pixels.to(torch.float64, memory_format=planar) * self._factor).float().sub_(mean).div_(std)


def planes(picture: "Image | np.ndarray") -> torch.Tensor:
    """An RGB picture, of Pillow's or uint8[H, W, 3], as uint8[3, H, W]; the channels of a pixel stay next to each other in memory, which
    scaling is fastest with."""
    return torch.from_numpy(picture if isinstance(picture, np.ndarray) else np.array(picture)).permute(2, 0, 1)


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """torch.cat(parts), for tensors without a gradient. In a worker of a DataLoader the result lies in shared memory, where it would
    be copied to next, as torch's own default_collate does it: call it once a batch."""
    if torch.utils.data.get_worker_info() is None:
        return torch.cat(parts)
    # torch keeps a small note of each of the last 128 tensors that it handed over. The notes lie between the freed pixels of their
    # batches in the heap, where glibc (2.36) then finds no room for the next ones: the worker would grow. Another thread writes notes.
    notes = torch.multiprocessing.reductions.shared_cache
    with notes.lock:
        notes.free_dead_references()
    # On meta nothing is computed: the shape, and how torch.cat would lay it in memory. `_new_shared` (torch 2.11 to 2.13) has no public
    # name: share_memory_() would copy what is not written yet.
    like = torch.cat([part.to("meta") for part in parts])
    shared = torch.UntypedStorage._new_shared(like.numel() * like.element_size(), device="cpu")
    out = torch.empty(0, dtype=like.dtype).set_(shared, 0, like.shape, like.stride())
    return torch.cat(parts, out=out)


def resized(pixels: torch.Tensor, height: int, width: int, processor: Any) -> torch.Tensor:
    """uint8[..., 3, height, width] of `pixels uint8[..., 3, H, W]`, scaled as TorchvisionBackend.resize of `processor` scales it, whatever the order in memory."""
    from transformers.image_utils import SizeDict

    return processor.resize(pixels, SizeDict(height=height, width=width), resample=processor.resample)


def is_levels(pixels: Any) -> bool:
    """Whether these are pixels of 8 bits, which are still to be normalised."""
    return isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8


def normalise_on_device(body: Any, decimals: Callable[[Mapping[str, Any]], torch.Tensor]) -> None:
    """Let `body.get_image_features`, and `body.tower_features` where there is one, take pixels as uint8, which `decimals` (of the
    family's VisionAdapter) normalises; decimals and cached features pass as they are."""

    def taking_levels(own: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(own)

        @functools.wraps(own)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            if is_levels(given.get("pixel_values")):
                # In the model's precision, as DeepSpeed casts the decimals of a batch.
                pixels = decimals(given).to(body.dtype)
                # By name or by place, as it came: transformers' decorators look at how an argument is given.
                if "pixel_values" in kwargs:
                    kwargs["pixel_values"] = pixels
                else:
                    args = (pixels, *args[1:])
            return own(*args, **kwargs)

        return call

    # Patch, of these methods of model.model: the ways from a batch to the tower, in training, generation and caches.
    for name in ("get_image_features", "tower_features"):
        if hasattr(body, name):
            setattr(body, name, taking_levels(getattr(body, name)))
