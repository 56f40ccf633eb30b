"""How the pixels of a stored picture become RGB of 8 bits."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from drive_vlm.data.turns import BadRow

if TYPE_CHECKING:
    from PIL.Image import Image

# How pixels become RGB of 8 bits, by Pillow's mode: as they are, laid over white, or 16 bits scaled to 8. Other modes (32 bits, Lab)
# have no range that every file keeps to: they are refused.
PLAIN = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
_LAYERED = {"LA", "La", "PA", "RGBA", "RGBa"}
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N"}
_KINDS = {"F": "32-bit decimal numbers", "I": "32-bit or signed whole numbers"}


def check_mode(image: Any, path: str, where: str) -> None:
    # Pillow reads PGM files of 16 bits as 32-bit numbers of 0 to 65,535.
    if image.mode in PLAIN | _LAYERED | _DEEP or (image.mode == "I" and image.format == "PPM"):
        return
    kind = _KINDS.get(image.mode, f"Pillow's mode {image.mode}")
    way_out = "Write it as a picture of 8 or 16 bits, with the range that you mean, or use --on_bad_row skip"
    raise BadRow("image_mode", where, f"the pixels of {path} are {kind}, whose range is not known", way_out)


def plain_jpeg(image: Any, content: bytes) -> np.ndarray | None:
    """uint8[H, W, 3] of a colour or grey JPEG that is whole, decoded by simplejpeg: the pixels are Pillow's, in less time. None leaves
    it to Pillow, which knows other kinds and says what is wrong with a damaged one."""
    decode = _jpeg_decoder() if image.format == "JPEG" and image.mode in ("RGB", "L") else None
    if decode is None:
        return None
    try:
        return decode(content, colorspace="RGB", fastdct=False, fastupsample=False, strict=True)
    # A warning of libjpeg is an error here: Pillow decides which of them it takes.
    except ValueError:
        return None


@cache
def _jpeg_decoder() -> Callable[..., np.ndarray] | None:
    """None on a machine without the package: the pixels are the same either way."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return decode_jpeg


def as_rgb(image: Any) -> "Image":
    """A decoded picture as RGB of 8 bits: deep ones scaled by their full range, transparent ones on white."""
    from PIL import Image

    if image.mode in _DEEP or image.mode == "I":
        image = _of_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    layers = (image.convert(straight) if straight else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers).convert("RGB")


def _of_8_bits(image: Any) -> Any:
    """L, or LA where one value is declared transparent. TIFF may hold 12 bits in 16, and white as 0, which Pillow leaves as they are."""
    from PIL import Image

    tags = image.tag_v2 if image.format == "TIFF" else {}
    top = (1 << int(np.max(tags.get(258, 16)))) - 1
    deep = np.asarray(image).astype(np.uint32)
    grey = ((deep * 255 + top // 2) // top).clip(0, 255).astype(np.uint8)
    if tags.get(262) == 0:
        grey = 255 - grey
    clear = image.info.get("transparency")
    if clear is None:
        return Image.fromarray(grey)
    return Image.fromarray(np.stack([grey, np.where(deep == clear, 0, 255).astype(np.uint8)], axis=-1))
