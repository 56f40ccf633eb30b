"""Pictures and videos as Pillow's and as arrays: the pixels must be the same. What one of them refuses, the other refuses too."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drive_vlm.data import vision
from drive_vlm.data.samples import BadRow


def load_image(path: str, where: str) -> Image.Image:
    """That of drive_vlm.data.vision."""
    return _one(vision.load_image, vision.load_levels, path, where)


def load_video(path: str, num_frames: int, where: str) -> list[Image.Image]:
    """That of drive_vlm.data.vision."""
    return _one(vision.load_video, vision.load_video_levels, path, num_frames, where)


def _one(load: Callable[..., Any], levels: Callable[..., Any], *words: Any) -> Any:
    try:
        loaded = load(*words)
    except BadRow as error:
        with pytest.raises(BadRow) as other:
            levels(*words)
        assert str(other.value) == str(error)
        raise
    arrays = levels(*words)
    pairs = zip(loaded, arrays, strict=True) if isinstance(loaded, list) else [(loaded, arrays)]
    for picture, array in pairs:
        assert array.dtype == np.uint8 and array.flags.writeable
        assert (array == np.asarray(picture)).all() and array.shape == (picture.height, picture.width, 3)
    return loaded
