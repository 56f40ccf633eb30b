"""The family `minicpmv`: registered with transformers' Auto classes when first asked for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.models.family import CachedModule, FamilySpec
from drive_vlm.models.minicpmv.tiling import Grid, MiniCPMVTiling
from drive_vlm.models.minicpmv.versions import version_of
from drive_vlm.models.vision import Tiling, VisionAdapter

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class MiniCPMVVision(VisionAdapter[Grid]):
    """`pixel_values uint8[P, 3, p, p * L]` holds the slices of all pictures, padded to the longest; `tgt_sizes int64[P, 2]` rows
    and columns of each one's patches."""

    tiling: MiniCPMVTiling
    keys: tuple[str, ...] = ("pixel_values", "tgt_sizes")
    # Slices do not see each other, but how far one is padded depends on the batch: its features cannot be laid to others'.
    apart = False

    def fingerprint(self) -> dict[str, Any]:
        pixels, tiling = self.processor.image_processor, self.tiling
        return {
            "family": "minicpmv",
            "version": tiling.version.name,
            "slices": [tiling.side, tiling.patch, tiling.most, tiling.max_tiles],
            "tokens": tiling.queries,
            "pixels": [pixels.norm_mean, pixels.norm_std],
        }

    def image_ids(self, layout: Grid) -> list[int]:
        return self.processor.tokenizer(self.processor.text_of(layout), add_special_tokens=False)["input_ids"]

    def load_pixels(
        self, images: Sequence["Image"], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, "torch.Tensor"], list[Grid]]:
        from drive_vlm.models.minicpmv.processing import join_slices

        most = self.tiling.slices(len(images), 1 if is_video else max_tiles)
        cut = [self.processor.image_processor.cells(image, most) for image in images]
        slices = [self.processor.image_processor.patches(cell) for cells, _ in cut for cell in cells]
        return join_slices(slices), [layout for _, layout in cut]

    def decimals(self, vision: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        from drive_vlm.models.pixels import is_levels

        pixels = vision["pixel_values"]
        return self.processor.image_processor.normalised(pixels, vision["tgt_sizes"]) if is_levels(pixels) else pixels

    def collate_vision(self, rows: Sequence[Mapping[str, "torch.Tensor"]]) -> dict[str, "torch.Tensor"]:
        import torch

        from drive_vlm.models.minicpmv.processing import padded
        from drive_vlm.models.pixels import joined

        if not rows:
            return {}
        pixels = joined(padded([row["pixel_values"] for row in rows]))
        return {"pixel_values": pixels, "tgt_sizes": torch.cat([row["tgt_sizes"] for row in rows])}

    def passes(self, vision: Mapping[str, "torch.Tensor"], count: int) -> Iterator[dict[str, "torch.Tensor"]]:
        for pixels, sizes in zip(vision["pixel_values"].split(count), vision["tgt_sizes"].split(count), strict=True):
            yield {"pixel_values": pixels, "tgt_sizes": sizes}

    def dummy_inputs(self) -> dict[str, "torch.Tensor"]:
        """One slice of four grey patches."""
        import torch

        patch = self.tiling.patch
        return {"pixel_values": torch.zeros(1, 3, patch, 4 * patch), "tgt_sizes": torch.tensor([[2, 2]])}


def register() -> None:
    """Let AutoConfig, AutoProcessor and AutoModelForImageTextToText know the classes; calling it again does nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from drive_vlm.models.minicpmv.configuration import MiniCPMVConfig
    from drive_vlm.models.minicpmv.modeling import MiniCPMVForConditionalGeneration, MiniCPMVModel
    from drive_vlm.models.minicpmv.processing import MiniCPMVProcessor

    AutoConfig.register(MiniCPMVConfig.model_type, MiniCPMVConfig, exist_ok=True)
    AutoModel.register(MiniCPMVConfig, MiniCPMVModel, exist_ok=True)
    AutoModelForImageTextToText.register(MiniCPMVConfig, MiniCPMVForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(MiniCPMVConfig, MiniCPMVProcessor, exist_ok=True)


def _configure(hf_config: Any, stored: Mapping[str, Any], tiling: Tiling | None) -> None:
    """Numbers of tokens that no published config.json has: the tokenizer says them."""
    special_ids = getattr(tiling, "special_ids", None)
    if special_ids:
        hf_config.special_ids, hf_config.image_token_id = dict(special_ids), special_ids["image"]


def _settle(model: Any) -> None:
    """Answers end where the published code ends them, and hold no tag of a picture: read again, there is no picture for it."""
    special_ids = getattr(model.config, "special_ids", None)
    if special_ids:
        model.generation_config.eos_token_id = special_ids["stops"]
        model.generation_config.pad_token_id = special_ids["stops"][0 if model.config.version == "2.5" else -1]
        model.generation_config.suppress_tokens = special_ids["pictures"]


def _tile_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    """Of a slice of 448 x 448 pixels; slices have other shapes with about as many patches."""
    side, patch = config.get("image_size", 448), config["vision_config"]["patch_size"]
    return (side // patch) ** 2, config.get("query_num") or version_of(config).queries


def _queries(config: Mapping[str, Any]) -> int:
    return _tile_tokens(config)[1]


def _features(body: Any, vision: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    return body.get_image_features(**vision, return_dict=True).pooler_output


def _stand_in(encoder: Any) -> Any:
    from drive_vlm.models.minicpmv.modeling import NoSliceEncoder

    return NoSliceEncoder(encoder)


FAMILY = FamilySpec(
    name="minicpmv",
    parts={
        "vision_tower": ("model.vision.tower",),
        "projector": ("model.vision.resampler",),
        "language_model": ("model.language_model", "lm_head"),
    },
    # The published script adapts attention alone.
    lora_targets=r".*language_model\..*\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
    tile_tokens=_tile_tokens,
    tiling=MiniCPMVTiling,
    adapter=MiniCPMVVision,
    register=register,
    configure=_configure,
    settle=_settle,
    refuse=version_of,
    cached=CachedModule("model.vision", _features, _stand_in, _queries),
    tiny="drive_vlm.models.tiny.minicpmv:build_tiny_minicpmv",
)
