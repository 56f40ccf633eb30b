"""When the frames that are taken of a video begin, and how large they are: for models that see time."""

import os
from functools import lru_cache

import numpy as np

from drive_vlm.data.vision import checked_image_size, frame_files, frame_times, load_frames, video_frames, video_length
from drive_vlm.models.vision import L, Tiling

# Frames a second of a folder of pictures, whose files tell no time: what Qwen's own tools take for a list of frames.
FOLDER_FPS = 2.0


def video_layouts(tiling: Tiling[L], path: str, num_frames: int, where: str) -> list[L]:
    """How a video is cut, one layout for each of its image tokens. Raises BadRow."""
    if not tiling.timed:
        return [tiling.frame_layout()] * min(video_length(path, where), num_frames)
    begins, duration = times_of(path, num_frames, where)
    return tiling.video_layouts(*frame_size(path, where), begins, duration)


def times_of(path: str, num_frames: int, where: str) -> tuple[list[float], float]:
    """(seconds when each of the frames `video_frames` begins, seconds of the whole video); the first frame begins at 0."""
    taken = video_frames(path, num_frames, where)
    times = None if os.path.isdir(path) else frame_times(path, where)
    if times is None:
        times = np.arange(video_length(path, where) + 1) / FOLDER_FPS
    return (times[taken] - times[0]).tolist(), float(times[-1] - times[0])


def frame_size(path: str, where: str) -> tuple[int, int]:
    """(height, width) of a video's first frame, upright. Of a video file it is decoded: a header does not say how it is shown."""
    if os.path.isdir(path):
        return checked_image_size(frame_files(path, where)[0], where)
    about = os.stat(path)
    return _first_frame(path, about.st_size, about.st_mtime_ns, where)


@lru_cache(maxsize=1 << 16)
def _first_frame(path: str, size: int, mtime_ns: int, where: str) -> tuple[int, int]:
    frame = load_frames(path, [0], where)[0]
    return frame.height, frame.width
