"""The picture side of a family: how it cuts pictures, in plain numbers, and what the data path asks of it.

A family writes two classes. Its `Tiling` knows sizes and counts only, and loads neither torch nor transformers: a memory
plan asks it. Its `VisionAdapter` holds the real processor, asks the same tiling, and makes tokens and tensors.
"""

import abc
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import ProcessorMixin

    from drive_vlm.models.pixels import Normalisation

# How one picture is cut: its number of tiles; or (tiles, ...) where its tokens depend on more than that.
Layout = int | tuple[int, ...]
L = TypeVar("L", bound=Layout)


def tiles_in(layout: Layout) -> int:
    """The number of tiles of a picture cut like this."""
    return layout if isinstance(layout, int) else layout[0]


class Tiling(abc.ABC, Generic[L]):
    """How pictures are cut and how many tokens they become, from the numbers of a processor alone.

    Attributes:
        tile: (height, width) of a tile in pixels.
        limits: the fewest and most pixels that a picture is scaled to, where it keeps its own resolution.
        timed: whether the model sees when a video's frames are: then video_layouts says how they are cut, not frame_layout.
    """

    tile: tuple[int, int]
    limits: tuple[int, int] | None = None
    timed = False

    @classmethod
    @abc.abstractmethod
    def read(cls, numbers: Mapping[str, Any], max_tiles: int | None = None) -> "Tiling[L]":
        """The tiling of a processor; `numbers` are those of its processor_config.json, `max_tiles` is --max_tiles.

        Raises ValueError for a limit that the family cannot keep, KeyError for a number that is missing.
        """

    @abc.abstractmethod
    def layout(self, height: int, width: int, num_images: int = 1, max_tiles: int | None = None) -> L:
        """How one of `num_images` pictures of a row is cut; `max_tiles` is the limit of its data file."""

    @abc.abstractmethod
    def frame_layout(self) -> L:
        """How every frame of a video is cut, whatever its size."""

    def video_layouts(self, height: int, width: int, times: Sequence[float], duration: float) -> list[L]:
        """How a video is cut, one layout for each of its image tokens: frames of this size, seconds when each one begins, and
        the seconds of the whole video."""
        return [self.frame_layout()] * len(times)

    def limit_pixels(self, least: int | None, most: int | None) -> None:
        """Take over --min_pixels and --max_pixels. Raises ValueError where pictures are cut into tiles of one size."""
        raise ValueError(
            "--min_pixels and --max_pixels are for models that keep a picture's own resolution (Qwen-VL). Give --max_tiles."
        )

    @abc.abstractmethod
    def largest(self) -> L:
        """The layout with the most tiles that a picture alone in its row can get."""

    @abc.abstractmethod
    def tokens(self, layout: L) -> int:
        """Tokens of the language model for one picture cut like this: the length of VisionAdapter.image_ids."""


class OneTile(Tiling[int]):
    """One tile a picture, whatever its size; frames of a video are pictures as well."""

    def layout(self, height: int, width: int, num_images: int = 1, max_tiles: int | None = None) -> int:
        return 1

    def frame_layout(self) -> int:
        return 1

    def largest(self) -> int:
        return 1


class VisionAdapter(abc.ABC, Generic[L]):
    """What the data path needs to know of a model's pictures.

    Attributes:
        processor: the model's own processor.
        tiling: how it cuts pictures.
        image_token: the token that the chat template writes for one picture.
        keys: names of the vision tensors, each with the tiles or pictures of a row first. `pixel_values` are uint8[P, ...] until
            the model's own forward pass (pixels.py), or decimals where an adapter normalises them itself.
        read_by_host: those of the keys that the model reads number by number: they stay on the host, whatever the device.
        last_answer_only: whether the model learns the last answer of a row only: its layout writes earlier ones without an end.
        reads_levels: whether `load_pixels` and `load_video` take pictures as arrays uint8[H, W, 3] as well as Pillow's, whose pixels
            are copied in and out.
        apart: whether tiles pass the tower apart from each other, so that the features of each can be kept.
    """

    keys: tuple[str, ...] = ("pixel_values",)
    read_by_host: tuple[str, ...] = ()
    reads_levels = False
    apart = True
    last_answer_only = False

    def __init__(self, processor: "ProcessorMixin", tiling: Tiling[L]) -> None:
        # Any: each family's processor has attributes of its own, which ProcessorMixin does not name.
        own: Any = processor
        self.processor, self.tiling = own, tiling
        self.image_token: str = own.image_token

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Whatever changes token counts or pixels: the key of caches."""

    def layout(self, height: int, width: int, num_images: int, max_tiles: int | None) -> L:
        """How one of `num_images` pictures of this size is cut, before any pixel is read."""
        return self.tiling.layout(height, width, num_images, max_tiles)

    def frame_layout(self) -> L:
        """How every frame of a video is cut, whatever its size."""
        return self.tiling.frame_layout()

    @abc.abstractmethod
    def image_ids(self, layout: L) -> list[int]:
        """Token ids that stand for one picture cut like this."""

    def expand_video(self, text: str, layouts: Sequence[L]) -> str:
        """`text` with the template's video placeholder written out as one image token for each of `layouts` (a frame).

        A template that writes nothing for a video is given the frames as pictures instead. Raises ValueError for more
        frames than the model takes.
        """
        return text.replace("<video>", "\n".join([self.image_token] * len(layouts)))

    @functools.cached_property
    def normalisation(self) -> "Normalisation":
        """What the processor makes of the levels 0 to 255."""
        from drive_vlm.models.pixels import Normalisation

        return Normalisation.of(self.processor.image_processor)

    def decimals(self, vision: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """`pixel_values` as the processor normalises them, float32 of the same shape, where their device is. `vision` are the
        vision tensors of a row or a batch; pixels that are decimals already are handed on."""
        from drive_vlm.models.pixels import is_levels

        pixels = vision["pixel_values"]
        return self.normalisation(pixels) if is_levels(pixels) else pixels

    @abc.abstractmethod
    def load_pixels(
        self, images: Sequence["Image"], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, "torch.Tensor"], Sequence[L]]:
        """Vision tensors of one row, and how each picture was cut: what the tensors themselves say. With `reads_levels` the pictures
        may be numpy.ndarray uint8[H, W, 3]."""

    def load_video(
        self, frames: Sequence["Image"], max_tiles: int | None, expected: Sequence[L]
    ) -> tuple[dict[str, "torch.Tensor"], Sequence[L]]:
        """`load_pixels` of a video's frames; `expected` is how they should be cut, times included."""
        return self.load_pixels(frames, max_tiles, is_video=True)

    def beside_pixels(self, layouts: Sequence[L]) -> dict[str, "torch.Tensor"]:
        """The vision tensors of a row that its layouts alone decide: a row from a feature cache has them too."""
        return {}

    def passes(self, vision: Mapping[str, "torch.Tensor"], count: int) -> Iterator[dict[str, "torch.Tensor"]]:
        """Vision tensors in parts of at most `count` tiles (pictures, where the tiles of one see each other)."""
        for part in vision["pixel_values"].split(count):
            yield {"pixel_values": part}

    def collate_vision(self, rows: Sequence[Mapping[str, "torch.Tensor"]]) -> dict[str, "torch.Tensor"]:
        """The vision tensors of the rows of a batch, joined along their first axis; {} without rows."""
        from drive_vlm.models.pixels import joined

        return {key: joined([row[key] for row in rows]) for key in self.keys} if rows else {}

    def dummy_inputs(self) -> dict[str, "torch.Tensor"]:
        """Vision tensors of one small picture, for batches without any (training_forward.py): here one black tile."""
        import torch

        return {"pixel_values": torch.zeros(1, 3, *self.tiling.tile)}
