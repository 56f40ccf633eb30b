"""Pictures and video frames from disk: sizes from headers only, decoding with clear errors, never a substitute."""

import io
import os
import re
import stat
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from drive_vlm.data.picture_modes import PLAIN, as_rgb, check_mode, plain_jpeg
from drive_vlm.data.turns import BadRow, RunError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

# The pictures that are read, by Pillow's names. Its other formats run programs (EPS), hold no pixels of the file's size (ICO), or are nobody's cameras.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
# EXIF 2.3, tag 0x0112: how a stored picture is turned to be upright.
_EXIF_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
# Of these, the ones that swap width and height.
_TRANSPOSED = {5, 6, 7, 8}
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
# FFmpeg's names of what is opened. Playlists and lists of files are not: they name other files and addresses.
_VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,ivf,gif,wav"
# Of these, the ones whose header gives the duration, which FFmpeg would otherwise guess from what is there.
_TELL_DURATION = {"matroska", "avi", "flv", "asf"}
_TS_PACKETS = (188, 192, 204)
FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
# The ways out of a file that is not there, and of one that cannot be read.
CHECK_ROOT = "Check the image root (--image_root), or use --on_bad_row skip"
_REPLACE = "Replace the file, or use --on_bad_row skip"


@lru_cache(maxsize=1 << 16)
def image_size(path: str) -> tuple[int, int]:
    """(height, width) as displayed, from the file's header; no pixels are decoded. Raises OSError, and BadRow (image_mode)."""
    from PIL import Image

    image: Any
    with _open_regular(path) as file, Image.open(file, formats=_formats()) as image:
        check_mode(image, path, "")
        # Of a TIFF, Pillow has swapped `size` already.
        width, height = image.size if image.format != "TIFF" else (image.tag_v2[256], image.tag_v2[257])
        turned = _header_orientation(image, file) in _TRANSPOSED
        return (width, height) if turned else (height, width)


def checked_image_size(path: str, where: str) -> tuple[int, int]:
    """`image_size`, with BadRow (image_missing, image_corrupt, image_mode) for whatever it raises."""
    try:
        return image_size(path)
    except Exception as error:
        raise _bad_picture(path, where, error) from error


def load_image(path: str, where: str) -> "Image":
    """The picture as RGB, upright. Raises BadRow (image_missing, image_corrupt, image_mode), also for a truncated file."""
    from PIL import Image

    picture = _decoded(path, where)
    return Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture


def load_levels(path: str, where: str) -> np.ndarray:
    """The pixels of `load_image` as uint8[H, W, 3]. A plain JPEG never becomes a picture of Pillow's, whose pixels are copied in and out."""
    picture = _decoded(path, where)
    # np.array copies: a view of Pillow's pixels cannot be written to, of which torch warns.
    return picture if isinstance(picture, np.ndarray) else np.array(picture)


def _decoded(path: str, where: str) -> "Image | np.ndarray":
    """`load_image`; the pixels of a plain JPEG that stands upright as uint8[H, W, 3]."""
    from PIL import Image

    try:
        with _open_regular(path) as file:
            content = file.read()
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            check_mode(image, path, where)
            levels = plain_jpeg(image, content)
            if levels is None:
                image.load()
            # After `load`, with which Pillow puts a TIFF upright.
            turn = _EXIF_TURNS.get(_orientation(image))
            if levels is not None and turn is None:
                return levels
            picture = as_rgb(image) if levels is None else Image.fromarray(levels)
            return picture.transpose(Image.Transpose[turn]) if turn else picture
    except Exception as error:
        raise _bad_picture(path, where, error) from error


def picture_bytes(path: str, where: str) -> bytes:
    """What a chat server is sent: the file's bytes where they show what `load_image` gives, else that picture as PNG. Raises BadRow."""
    from PIL import Image

    picture = load_image(path, where)
    content = Path(path).read_bytes()
    file = io.BytesIO(content)
    with Image.open(file) as image:
        shown = image.format in ("JPEG", "MPO", "PNG", "GIF", "WEBP") and image.mode in PLAIN
        if shown and not image.has_transparency_data and _header_orientation(image, file) not in _EXIF_TURNS:
            return content
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def _open_regular(path: str) -> IO[bytes]:
    """Opening a pipe waits for a writer without end, and a device may have no end. Raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is not a regular file")
    return open(path, "rb")


def _formats() -> list[str]:
    """Those of PICTURE_FORMATS that this Pillow was built with: it fails with a KeyError on others."""
    from PIL import Image

    Image.init()
    return [name for name in PICTURE_FORMATS if name in Image.OPEN]


def _orientation(image: Any) -> int:
    """EXIF orientation, 1 to 8. A damaged EXIF block, which many sound pictures carry, says nothing."""
    from PIL import Image

    try:
        # A PNG's own getexif decodes the pixels first.
        return int(Image.Image.getexif(image).get(0x0112, 1))
    # Pillow raises struct.error, SyntaxError, KeyError and more for a damaged block; the pixels are whole all the same.
    except Exception:
        return 1


def _header_orientation(image: Any, file: IO[bytes]) -> int:
    """`_orientation` of a picture that was opened from `file` and is not decoded."""
    from PIL import Image

    return _orientation(Image.open(_without_pixels(file)) if image.format == "PNG" else image)


def _without_pixels(file: IO[bytes]) -> IO[bytes]:
    """A PNG with the chunks of `file` but those of pixels: EXIF and XMP may stand behind these, where Pillow looks when it decodes."""
    file.seek(0)
    kept = [file.read(8)]
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        # What stands behind the end is no chunk.
        if kind == b"IEND":
            break
        if kind in (b"IDAT", b"fdAT", b"fcTL", b"acTL"):
            file.seek(length + 4, os.SEEK_CUR)
        else:
            kept += [head, file.read(length + 4)]
    end = struct.pack(">I4sI", 0, b"IDAT", 0x35AF061E) + struct.pack(">I4sI", 0, b"IEND", 0xAE426082)
    return io.BytesIO(b"".join(kept) + end)


def _bad_picture(path: str, where: str, error: Exception) -> BadRow:
    """The BadRow of whatever Pillow raised: damaged files make its codecs raise almost anything."""
    from PIL import UnidentifiedImageError

    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, BadRow):
        return BadRow(error.reason, where, error.problem, error.way_out)
    if isinstance(error, FileNotFoundError):
        return BadRow("image_missing", where, f"the picture {path} does not exist", CHECK_ROOT)
    text: object = error
    if isinstance(error, UnidentifiedImageError):
        text = f"it is not a whole picture of the formats {', '.join(PICTURE_FORMATS)}"
    return BadRow("image_corrupt", where, f"the picture {path} cannot be read ({text})", _REPLACE)


# ---- videos


def frame_indices(total: int, count: int) -> list[int]:
    """`count` frame numbers spread evenly over `total` (the middle of equal shares); all of them when there are fewer."""
    if total <= count:
        return list(range(total))
    return [int((i + 0.5) * total / count) for i in range(count)]


def frames_at(times: np.ndarray, count: int) -> list[int]:
    """The frame that is on the screen in the middle of each of `count` equal shares of the time. `times float64[N + 1]`: when each
    frame begins, and when the last one ends. A frame that stands for long is taken more than once."""
    middles = times[0] + (np.arange(count) + 0.5) * (times[-1] - times[0]) / count
    return (np.searchsorted(times[:-1], middles, side="right") - 1).tolist()


def video_length(path: str, where: str) -> int:
    """Number of frames: of a folder of pictures, or of a video file by its header (decoded only when it tells none). Raises BadRow."""
    if os.path.isdir(path):
        count = len(frame_files(path, where))
    elif not os.path.exists(path):
        raise BadRow("video_missing", where, f"the video {path} does not exist", CHECK_ROOT)
    else:
        file, header = _file_and_header(path, where)
        if not header.video:
            raise BadRow("video_empty", where, f"the file {path} holds no video stream", _REPLACE)
        count = header.frames or _guarded(_timing, file, where).frames
    if not count:
        raise BadRow("video_empty", where, f"the video {path} has zero frames", _REPLACE)
    return count


def video_frames(path: str, num_frames: int, where: str) -> list[int]:
    """Numbers of the frames that every tool takes of a video: `num_frames` evenly spread over its time, or all where there are not
    more. A folder of pictures, and a file of one frame rate, are spread by number, which is the same. Raises as `load_video`."""
    total = video_length(path, where)
    if total <= num_frames or os.path.isdir(path):
        return frame_indices(total, num_frames)
    file, header = _file_and_header(path, where)
    timing = None if header.even else _guarded(_timing, file, where)
    if timing is None or timing.even or timing.times is None:
        return frame_indices(total, num_frames)
    return frames_at(timing.times, num_frames)


def frame_times(path: str, where: str) -> np.ndarray | None:
    """`times float64[N + 1]` (frames_at) of a video file in seconds; None where it does not tell them. Raises as `load_video`."""
    return _guarded(_timing, _file_and_header(path, where)[0], where).times


def load_video(path: str, num_frames: int, where: str) -> list["Image"]:
    """The frames `video_frames` as RGB, upright. Raises BadRow (video_missing, video_empty, video_corrupt, video_mixed)."""
    return load_frames(path, video_frames(path, num_frames, where), where)


def load_video_levels(path: str, num_frames: int, where: str) -> list[np.ndarray]:
    """The pixels of `load_video` as uint8[H, W, 3] each, as `load_levels` gives those of a picture."""
    return _load_frames(path, video_frames(path, num_frames, where), where, load_levels, _shown_levels)


def load_frames(path: str, wanted: list[int], where: str) -> list["Image"]:
    """The frames of these ascending numbers, which the video has. Raises as `load_video`."""
    return _load_frames(path, wanted, where, load_image, _shown)


def _load_frames(
    path: str, wanted: list[int], where: str, of_file: Callable[[str, str], T], of_frame: Callable[[Any, Any], T]
) -> list[T]:
    """`load_frames`: a folder's by `of_file(path, where)`, a video file's by `of_frame(its frame, its stream)`."""
    if os.path.isdir(path):
        files = frame_files(path, where)
        return [of_file(files[i], where) for i in wanted]
    frames: list[T] = []
    try:
        with _open(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for i, frame in enumerate(container.decode(stream)):
                if i == wanted[len(frames)]:
                    frames += [of_frame(frame, stream)] * wanted.count(i)
                    if len(frames) == len(wanted):
                        break
    except _pyav().error.FFmpegError as error:
        raise _corrupt_video(path, where, error) from error
    if len(frames) < len(wanted):
        total = video_length(path, where)
        raise _corrupt_video(path, where, f"frame {wanted[len(frames)]} of {total} is missing")
    return frames


class _File(NamedTuple):
    """A file of this size and time of change: what is read of it is kept, and read again where it is another."""

    path: str
    size: int
    mtime_ns: int


class _Header(NamedTuple):
    """What the header tells: whether there is a video stream, its frames (0: unknown), and whether they follow evenly."""

    video: bool
    frames: int = 0
    even: bool = False


class _Timing(NamedTuple):
    """Frames of a whole file, `times float64[N + 1]` (frames_at) in seconds where it tells them, and whether they follow evenly."""

    frames: int
    times: np.ndarray | None
    even: bool = True


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise RunError(
            f"videos are read with PyAV, which is missing ({error}): pip install drive-vlm[video]"
        ) from error
    return av


def _open(path: str) -> Any:
    """A whole path: FFmpeg takes a name like "t:x.mp4" for an address with the protocol t. Titles may be in any encoding."""
    allowed = {"format_whitelist": _VIDEO_FORMATS, "protocol_whitelist": "file"}
    return _pyav().open(os.path.abspath(path), metadata_errors="replace", options=allowed)


def _file_and_header(path: str, where: str) -> tuple[_File, _Header]:
    """Raises BadRow (video_corrupt)."""
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise _corrupt_video(path, where, "it is not a regular file")
    file = _File(path, about.st_size, about.st_mtime_ns)
    return file, _guarded(_header, file, where)


def _guarded(read: Callable[[_File], T], file: _File, where: str) -> T:
    """`read(file)`, with BadRow (video_corrupt) for what FFmpeg raises and for a file that was cut off."""
    try:
        return read(file)
    except (_pyav().error.FFmpegError, EOFError) as error:
        raise _corrupt_video(file.path, where, error) from error


@lru_cache(maxsize=1 << 16)
def _header(file: _File) -> _Header:
    """Raises FFmpegError. An index is trusted where it names every frame, once."""
    with _open(file.path) as container:
        if not container.streams.video:
            return _Header(video=False)
        stream = container.streams.video[0]
        entries = stream.index_entries
        # The edit list of an mp4 cut without re-encoding hides frames that the decoder needs and does not show: some demuxers leave
        # them out of the index, others mark them, and `stream.frames` counts them all.
        whole = len(entries) == stream.frames or container.format.name.startswith("mov,mp4")
        if not whole or not 0 < len(entries) <= stream.frames or any(not entry.size for entry in entries):
            return _Header(video=True)
        shown = np.array([entry.timestamp for entry in entries if not entry.is_discard], dtype=np.float64)
        even = _even(shown)
        if even and len(shown) > 1 and stream.duration:
            # The index holds times of decoding: a gap before the last frames shows in the duration alone.
            step = (shown[-1] - shown[0]) / (len(shown) - 1)
            even = stream.duration < (len(shown) + 2) * step
        return _Header(True, len(shown), even)


@lru_cache(maxsize=1 << 16)
def _timing(file: _File) -> _Timing:
    """Raises FFmpegError, and EOFError for a file that ends too early."""
    counted = _header(file).frames
    with _open(file.path) as container:
        stream = container.streams.video[0]
        if counted:
            # The times of packets are read without decoding: as many as there are frames, in another order.
            packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
            shown = sorted((packet.pts, packet.duration or 0) for packet in packets)
            if len(shown) < counted:
                raise EOFError(f"it ends after {len(shown)} of {counted} frames")
        else:
            stream.thread_type = "AUTO"
            shown, last = [], None
            for last in container.decode(stream):
                shown.append((last.pts, last.duration or 0))
            if last is not None and last.is_corrupt and container.format.name in ("mpeg", "mpegts"):
                raise EOFError("its last frame is not whole: the file was cut off")
        if not shown or any(pts is None for pts, _ in shown):
            return _Timing(len(shown), None)
        starts = np.array([pts for pts, _ in shown], dtype=np.float64) * float(stream.time_base)
        steps = np.diff(starts)
        usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
        # Times that go back, as in two recordings joined: the next frame follows at the usual distance.
        starts = starts[0] + np.concatenate([[0.0], np.where(steps > 0, steps, usual).cumsum()])
        end = starts[-1] + (shown[-1][1] * float(stream.time_base) or usual)
        if not counted:
            _check_whole(container, file, float(end), usual)
    return _Timing(len(starts), np.append(starts, end), _even(starts))


def _even(starts: np.ndarray) -> bool:
    """Whether frames follow at one distance, but for the rounding of their times."""
    if len(starts) < 2:
        return True
    steps = np.linspace(starts[0], starts[-1], len(starts))
    return bool(np.abs(starts - steps).max() <= 0.1 * (starts[-1] - starts[0]) / (len(starts) - 1))


def _check_whole(container: Any, file: _File, end: float, usual: float) -> None:
    """EOFError where a file without an index was cut off, which decoders do not notice: the last frame ends at `end` seconds."""
    name = container.format.name.split(",")[0]
    if name == "mpegts" and all(file.size % packet for packet in _TS_PACKETS):
        raise EOFError("it ends in the middle of a packet: the file was cut off")
    if name == "mpeg" and _ends_in_a_packet(file):
        raise EOFError("it ends in the middle of a packet: the file was cut off")
    slack = 0.05 + 2 * usual
    if name not in _TELL_DURATION or not container.duration or end >= (stated := container.duration / 1e6) - slack:
        return
    # The sound may be longer than the pictures.
    with _open(file.path) as again:
        ends = [(p.pts + (p.duration or 0)) * float(p.time_base) for p in again.demux() if p.pts is not None]
    if max(ends, default=0.0) < stated - slack:
        raise EOFError(f"it ends after {end:.2f} of {stated:.2f} seconds: the file was cut off")


def _ends_in_a_packet(file: _File) -> bool:
    """Whether the last packet of an MPEG program stream (.mpg) says that it goes on behind the end of the file."""
    with open(file.path, "rb") as content:
        content.seek(max(0, file.size - (1 << 17)))
        tail = content.read()
    at = tail.find(b"\0\0\1\xba")
    while 0 <= at < len(tail):
        kind, head = tail[at + 3 : at + 4], tail[at : at + 14]
        if tail[at : at + 3] != b"\0\0\1"[: len(tail) - at]:
            # Lost: nothing is known.
            return False
        if kind == b"\xb9":
            return False
        if kind == b"\xba":
            # A pack's header: of MPEG-2 with up to 7 bytes behind it, of MPEG-1 without.
            at += 14 + (head[13] & 7) if len(head) == 14 and head[4] >> 6 == 1 else 12
        else:
            at += 6 + int.from_bytes(head[4:6], "big")
    return at > len(tail)


def _shown(frame: Any, stream: Any) -> "Image":
    """The frame as RGB as players show it: square pixels, turned and mirrored."""
    from PIL.Image import Transpose

    picture, matrix = frame.to_image(), frame.side_data.get("DISPLAYMATRIX")
    aspect = float(stream.sample_aspect_ratio or 1)
    # Beyond that, players take the number for a mistake.
    if 0.1 <= aspect <= 10 and aspect != 1:
        picture = picture.resize((max(1, round(picture.width * aspect)), picture.height))
    if matrix is None:
        return picture
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    turn = _UPRIGHT.get(tuple((value > 0) - (value < 0) for value in (a, b, c, d)))
    return picture.transpose(Transpose[turn]) if turn else picture


def _shown_levels(frame: Any, stream: Any) -> np.ndarray:
    """`_shown` as uint8[H, W, 3]."""
    if frame.side_data.get("DISPLAYMATRIX") is None and float(stream.sample_aspect_ratio or 1) == 1:
        levels = frame.to_ndarray(format="rgb24")
        # PyAV gives a frame that FFmpeg stores upside down as a view with negative strides, which torch does not take.
        return levels if min(levels.strides) > 0 else levels.copy()
    return np.array(_shown(frame, stream))


def _corrupt_video(path: str, where: str, error: object) -> BadRow:
    return BadRow("video_corrupt", where, f"the video {path} cannot be decoded ({error})", _REPLACE)


def frame_files(folder: str, where: str) -> list[str]:
    """Frames of a folder in the order of their names, numbers in them by value: frame_2 before frame_10.

    Raises BadRow (video_mixed) where the names, numbers apart, are of several kinds, as those of frames and their masks.
    """
    names = [entry.name for entry in os.scandir(folder) if Path(entry.name).suffix.lower() in FRAME_SUFFIXES]
    # Names with a dot in front are what a system stores next to a file.
    names = sorted((name for name in names if not name.startswith(".")), key=_by_number)
    kinds = {re.sub(r"\d+", "#", Path(name).stem): name for name in names}
    stems = {Path(name).stem: name for name in names}
    mixed = [*kinds.values()][:2] if len(kinds) > 1 and any("#" in kind for kind in kinds) else []
    if len(stems) < len(names):
        # 0001.jpg next to 0001.png.
        mixed = next([name, last] for name in names if (last := stems[Path(name).stem]) != name)
    if mixed:
        problem = f"the folder {folder} holds {' and '.join(mixed)}: it is not clear which pictures are its frames"
        raise BadRow("video_mixed", where, problem, "Leave only the frames in it, named alike but for their numbers")
    return [os.path.join(folder, name) for name in names]


def _by_number(name: str) -> tuple[list[str | int], str]:
    """Texts and numbers of `name` in turn; the name itself tells 01 from 1."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name
