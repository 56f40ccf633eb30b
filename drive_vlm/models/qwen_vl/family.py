"""The families `qwen2_5_vl` and `qwen3_vl`: one picture side, two ways to say when a video's frames are."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.models.family import CachedModule, FamilySpec, llm_linears
from drive_vlm.models.qwen_vl.tiling import STILL, Grid, Qwen2_5Tiling, Qwen3Tiling, QwenTiling
from drive_vlm.models.vision import VisionAdapter

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from drive_vlm.models.pixels import Normalisation


class QwenVision(VisionAdapter[Grid]):
    """`pixel_values uint8[P, 4, D]` holds the patches of each tile, `image_grid_thw int64[N, 3]` the patches of each picture.

    A piece of a video stands among the pictures, so that a batch enters the tower once.
    """

    tiling: QwenTiling
    keys: tuple[str, ...] = ("pixel_values", "image_grid_thw")
    # The patches of a picture see each other: its tiles pass the tower together.
    apart = False

    def __init__(self, processor: Any, tiling: QwenTiling) -> None:
        super().__init__(processor, tiling)
        # The processor must scale as the tiling says, also where --min_pixels or --max_pixels say it.
        least, most = tiling.limits
        processor.image_processor.size = {"shortest_edge": least, "longest_edge": most}

    def fingerprint(self) -> dict[str, Any]:
        pixels, tiling = self.processor.image_processor, self.tiling
        return {
            "family": type(self).__name__,
            "tile": [tiling.patch, tiling.merge, tiling.temporal],
            "limits": [*tiling.limits, *tiling.video, str(tiling.most_of_frame)],
            "pixels": [list(pixels.image_mean), list(pixels.image_std), int(pixels.resample)],
        }

    def image_ids(self, layout: Grid) -> list[int]:
        token = self.processor.image_token_id if layout[-1] == STILL else self.processor.video_token_id
        return [token] * layout[0]

    def load_pixels(
        self, images: Sequence["Image"], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, "torch.Tensor"], list[Grid]]:
        from drive_vlm.models.pixels import AS_THEY_ARE

        out = self.processor.image_processor(images=list(images), return_tensors="pt", **AS_THEY_ARE)
        return self._tensors(out["pixel_values"], out["image_grid_thw"].tolist(), [STILL] * len(images))

    def load_video(
        self, frames: Sequence["Image"], max_tiles: int | None, expected: Sequence[Grid]
    ) -> tuple[dict[str, "torch.Tensor"], list[Grid]]:
        """Frames of other sizes than the first one's are scaled to it. The times are those of `expected`."""
        from drive_vlm.models.pixels import AS_THEY_ARE

        frames = [frame if frame.size == frames[0].size else frame.resize(frames[0].size) for frame in frames]
        height, width = self.tiling.frame_size(frames[0].height, frames[0].width, len(frames))
        # A frame alone stands twice, as a picture does.
        frames = frames * self.tiling.temporal if len(frames) == 1 else frames
        as_they_are: dict[str, Any] = {"do_sample_frames": False, "do_resize": False, **AS_THEY_ARE}
        resized = [self._resized(frames, height, width)]
        out = self.processor.video_processor(videos=resized, return_tensors="pt", **as_they_are)
        (times, rows, columns), pieces = out["video_grid_thw"][0].tolist(), len(expected)
        grids = [(times // pieces, rows, columns)] * pieces
        return self._tensors(out["pixel_values_videos"], grids, [layout[-1] for layout in expected])

    def _resized(self, frames: Sequence["Image"], height: int, width: int) -> "torch.Tensor":
        """The frames as uint8[T, 3, H, W], scaled as the native processor scales them."""
        import numpy as np
        import torch
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        stacked = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(0, 3, 1, 2)
        return resize(stacked, [height, width], InterpolationMode.BICUBIC, antialias=True)

    def _tensors(
        self, patches: "torch.Tensor", grids: Sequence[Sequence[int]], when: Sequence[int]
    ) -> tuple[dict[str, "torch.Tensor"], list[Grid]]:
        tiling = self.tiling
        tiles = patches.reshape(-1, tiling.merge**2, patches.shape[-1])
        layouts = [
            tiling.grid(t, h * tiling.patch, w * tiling.patch, at) for (t, h, w), at in zip(grids, when, strict=True)
        ]
        return {"pixel_values": tiles, **self.beside_pixels(layouts)}, layouts

    @functools.cached_property
    def normalisation(self) -> "Normalisation":
        """Raises ValueError where pictures and videos are normalised in two ways: their patches stand in one tensor."""
        from drive_vlm.models.pixels import Normalisation

        if Normalisation.of(self.processor.video_processor) != (own := super().normalisation):
            raise ValueError(
                "image_mean, image_std or rescale_factor of the video processor differ from those of the image processor. Make "
                "video_preprocessor_config.json agree with preprocessor_config.json."
            )
        return own

    def decimals(self, vision: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """The numbers of a patch are those of its channels, one after the other."""
        tiles = vision["pixel_values"]
        channels = tiles.reshape(*tiles.shape[:2], 3, -1, 1)
        return super().decimals({"pixel_values": channels}).reshape(tiles.shape)

    def beside_pixels(self, layouts: Sequence[Grid]) -> dict[str, "torch.Tensor"]:
        import torch

        return {"image_grid_thw": torch.tensor([layout[1:4] for layout in layouts])}

    def passes(self, vision: Mapping[str, "torch.Tensor"], count: int) -> Iterator[dict[str, "torch.Tensor"]]:
        grids = vision["image_grid_thw"].split(count)
        tiles = [int(part.prod(1).sum()) // self.tiling.merge**2 for part in grids]
        for pixels, part in zip(vision["pixel_values"].split(tiles), grids, strict=True):
            yield {"pixel_values": pixels, "image_grid_thw": part}

    def dummy_inputs(self) -> dict[str, "torch.Tensor"]:
        """One black tile."""
        import torch

        tiling = self.tiling
        pixels = torch.zeros(1, tiling.merge**2, 3 * tiling.temporal * tiling.patch**2)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, tiling.merge, tiling.merge]])}


class Qwen2_5Vision(QwenVision):
    """Next to the grids stands `second_per_grid_ts int64[N]`: microseconds from one pair of a video's frames to the next.

    They are whole numbers, since trainers cast decimals to half precision.
    """

    keys = ("pixel_values", "image_grid_thw", "second_per_grid_ts")

    def expand_video(self, text: str, layouts: Sequence[Grid]) -> str:
        return text.replace(self.processor.video_token, self.image_token)

    def beside_pixels(self, layouts: Sequence[Grid]) -> dict[str, "torch.Tensor"]:
        import torch

        between = torch.tensor([max(layout[-1], 0) for layout in layouts])
        return {**super().beside_pixels(layouts), "second_per_grid_ts": between}


class Qwen3Vision(QwenVision):
    """Words in front of each pair of a video's frames say its time.

    They stand within the template's own begin and end of a video, as Qwen3VLProcessor writes them (transformers 5.23; that of
    4.57 wrote them in the place of the template's).
    """

    def expand_video(self, text: str, layouts: Sequence[Grid]) -> str:
        begin, end = self.processor.vision_start_token, self.processor.vision_end_token
        pieces = "".join(f"<{at // 10}.{at % 10} seconds>{begin}{self.image_token}{end}" for *_, at in layouts)
        return text.replace(self.processor.video_token, pieces)


def _tile_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    return config["vision_config"].get("spatial_merge_size", 2) ** 2, 1


def _settle(model: Any) -> None:
    from drive_vlm.models.qwen_vl.positions import install_positions

    install_positions(model)
    # A completion with a placeholder could not be read again: there is no picture for it.
    model.generation_config.suppress_tokens = [model.config.image_token_id, model.config.video_token_id]


def _features(body: Any, vision: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    from drive_vlm.models.qwen_vl.features import features_of

    return features_of(body, vision)


def _stand_in(visual: Any) -> Any:
    from drive_vlm.models.qwen_vl.features import CachedVisual

    return CachedVisual(visual)


def _merged(config: Mapping[str, Any]) -> int:
    return 1


def _with_deepstack(config: Mapping[str, Any]) -> int:
    # A configuration that is saved again leaves out what is the class's default: three layers.
    return 1 + len(config["vision_config"].get("deepstack_visual_indexes", range(3)))


QWEN2_5 = FamilySpec(
    name="qwen2_5_vl",
    parts={
        # The projector lies inside of `visual`.
        "vision_tower": ("model.visual.patch_embed", "model.visual.blocks"),
        "projector": ("model.visual.merger",),
        "language_model": ("model.language_model", "lm_head"),
    },
    lora_targets=llm_linears("language_model"),
    tile_tokens=_tile_tokens,
    tiling=Qwen2_5Tiling,
    adapter=Qwen2_5Vision,
    settle=_settle,
    cached=CachedModule("model.visual", _features, _stand_in, _merged),
    tiny="drive_vlm.models.tiny.qwen_vl:build_tiny_qwen2_5_vl",
)
QWEN3 = FamilySpec(
    name="qwen3_vl",
    parts={
        "vision_tower": ("model.visual.patch_embed", "model.visual.pos_embed", "model.visual.blocks"),
        "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
        "language_model": ("model.language_model", "lm_head"),
    },
    lora_targets=llm_linears("language_model"),
    tile_tokens=_tile_tokens,
    tiling=Qwen3Tiling,
    adapter=Qwen3Vision,
    settle=_settle,
    cached=CachedModule("model.visual", _features, _stand_in, _with_deepstack),
    tiny="drive_vlm.models.tiny.qwen_vl:build_tiny_qwen3_vl",
)
