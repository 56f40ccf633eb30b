"""Pictures and video frames from disk: sizes from headers only, decoding with clear errors, never a substitute."""

import io
import os
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.data.turns import BadRow, RunError

if TYPE_CHECKING:
    from PIL.Image import Image

_TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that swap width and height
# How a frame is put upright, by the signs of a, b, c, d in its display matrix: x' = a x + c y, y' = b x + d y, y down
# (ISO/IEC 14496-12, 8.3.2); all others are shown as they are stored.
_UPRIGHT = {
    (0, 1, -1, 0): "ROTATE_270",
    (-1, 0, 0, -1): "ROTATE_180",
    (0, -1, 1, 0): "ROTATE_90",
    (-1, 0, 0, 1): "FLIP_LEFT_RIGHT",
    (1, 0, 0, -1): "FLIP_TOP_BOTTOM",
    (0, 1, 1, 0): "TRANSPOSE",
    (0, -1, -1, 0): "TRANSVERSE",
}
FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
# The ways out of a file that is not there, and of one that cannot be read.
CHECK_ROOT = "Check the image root (--image_root), or use --on_bad_row skip"
_REPLACE = "Replace the file, or use --on_bad_row skip"


@lru_cache(maxsize=1 << 16)
def image_size(path: str) -> tuple[int, int]:
    """(height, width) as displayed, from the file's header; no pixels are decoded. Raises OSError."""
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        exif = Image.Image.getexif(image)  # a PNG's own getexif decodes the pixels first
        return (width, height) if exif.get(0x0112) in _TRANSPOSED else (height, width)


def checked_image_size(path: str, where: str) -> tuple[int, int]:
    """`image_size`, with BadRow (image_missing, image_corrupt) instead of OSError."""
    from PIL.Image import DecompressionBombError

    try:
        return image_size(path)
    except FileNotFoundError as error:
        raise _missing(path, where) from error
    except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
        raise _corrupt(path, where, error) from error


def load_image(path: str, where: str) -> "Image":
    """The picture as RGB, upright. Raises BadRow (image_missing, image_corrupt), also for a truncated file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(Path(path).read_bytes())) as image:
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise _missing(path, where) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _corrupt(path, where, error) from error


def _missing(path: str, where: str) -> BadRow:
    return BadRow("image_missing", where, f"the picture {path} does not exist", CHECK_ROOT)


def _corrupt(path: str, where: str, error: Exception) -> BadRow:
    return BadRow("image_corrupt", where, f"the picture {path} cannot be read ({error})", _REPLACE)


def frame_indices(total: int, count: int) -> list[int]:
    """`count` frame numbers spread evenly over `total` (the middle of equal shares); all of them when there are fewer."""
    if total <= count:
        return list(range(total))
    return [int((i + 0.5) * total / count) for i in range(count)]


def video_length(path: str, where: str) -> int:
    """Number of frames: of a folder of pictures, or of a video file by its header (decoded only when it tells none)."""
    count: int | None
    if os.path.isdir(path):
        count = len(frame_files(path))
    elif os.path.isfile(path):
        av = _pyav()
        file = os.stat(path)
        try:
            count = _file_length(path, file.st_size, file.st_mtime_ns)
        except av.error.FFmpegError as error:
            raise _corrupt_video(path, where, error) from error
    else:
        raise BadRow("video_missing", where, f"the video {path} does not exist", CHECK_ROOT)
    if count is None:
        raise BadRow("video_empty", where, f"the file {path} holds no video stream", _REPLACE)
    if not count:
        raise BadRow("video_empty", where, f"the video {path} has zero frames", _REPLACE)
    return count


def load_video(path: str, num_frames: int, where: str) -> list["Image"]:
    """Up to `num_frames` frames as RGB, upright, spread evenly. Raises BadRow (video_missing, video_empty, video_corrupt)."""
    total = video_length(path, where)
    wanted = frame_indices(total, num_frames)
    if os.path.isdir(path):
        files = frame_files(path)
        return [load_image(files[i], where) for i in wanted]
    av = _pyav()
    frames: list[Image] = []
    try:
        with _open(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for i, frame in enumerate(container.decode(stream)):
                if i == wanted[len(frames)]:
                    frames.append(_upright(frame))
                    if len(frames) == len(wanted):
                        break
    except av.error.FFmpegError as error:
        raise _corrupt_video(path, where, error) from error
    if len(frames) < len(wanted):
        raise _corrupt_video(path, where, f"frame {wanted[len(frames)]} of {total} is missing")
    return frames


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise RunError(
            f"videos are read with PyAV, which is missing ({error}): pip install drive-vlm[video]"
        ) from error
    return av


def _open(path: str) -> Any:
    """A whole path: FFmpeg takes a name like "t:x.mp4" for an address with the protocol t."""
    return _pyav().open(os.path.abspath(path))


@lru_cache(maxsize=1 << 16)
def _file_length(path: str, size: int, mtime_ns: int) -> int | None:
    """Number of frames of a file of this size and time of change, counted once; None without a video stream. Raises FFmpegError."""
    with _open(path) as container:
        if not container.streams.video:
            return None
        stream = container.streams.video[0]
        return _frames_shown(container, stream) or sum(1 for _ in container.decode(stream))


def _upright(frame: Any) -> "Image":
    """The frame as RGB, turned and mirrored as players show it."""
    from PIL.Image import Transpose

    picture, matrix = frame.to_image(), frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    turn = _UPRIGHT.get(tuple((value > 0) - (value < 0) for value in (a, b, c, d)))
    return picture.transpose(Transpose[turn]) if turn else picture


def _frames_shown(container: Any, stream: Any) -> int:
    """Number of frames by the header, 0 where it tells none. `stream.frames` also counts those that the edit list of an
    mp4 cut without re-encoding hides: the decoder needs them and does not show them."""
    if container.format.name.startswith("mov,mp4") and 0 < len(stream.index_entries) <= stream.frames:
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames


def _corrupt_video(path: str, where: str, error: object) -> BadRow:
    return BadRow("video_corrupt", where, f"the video {path} cannot be decoded ({error})", _REPLACE)


def frame_files(folder: str) -> list[str]:
    """Frames of a folder in the order of their names, numbers in them by value: frame_2 before frame_10."""
    names = (entry.name for entry in os.scandir(folder) if Path(entry.name).suffix.lower() in FRAME_SUFFIXES)
    return [os.path.join(folder, name) for name in sorted(names, key=_by_number)]


def _by_number(name: str) -> tuple[list[str | int], str]:
    """Texts and numbers of `name` in turn; the name itself tells 01 from 1."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name
