"""CLIP scores of texts about videos: a video stands for the mean direction of its frames, evenly spread."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from drive_vlm.clip.encoder import ClipEncoder
from drive_vlm.clip.score import ClipScores, clip_scores
from drive_vlm.data.predictions import Prediction
from drive_vlm.data.samples import resolve_below
from drive_vlm.data.vision import load_video


def clip_frame_scores(encoder: ClipEncoder, rows: Sequence[Prediction], root: str, num_frames: int) -> ClipScores:
    """Scores of N rows, whose "video" is relative to `root`; a video is decoded and encoded once.

    Raises BadRow with file:line for a video that is missing, empty or broken.
    """
    with tempfile.TemporaryDirectory() as folder:
        frames: dict[str, list[Path]] = {}
        for row in rows:
            video = row.row["video"]
            if video not in frames:
                where = f"{row.where}: id {row.id!r}"
                pictures = load_video(resolve_below(root, video, where), num_frames, where)
                frames[video] = [Path(folder) / f"{len(frames)}-{i}.png" for i in range(len(pictures))]
                for picture, path in zip(pictures, frames[video], strict=True):
                    picture.save(path)
        texts, references = [row.prediction for row in rows], [row.reference for row in rows]
        return clip_scores(encoder, texts, references, [frames[row.row["video"]] for row in rows])
