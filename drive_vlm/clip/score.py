"""CLIP cosine scores: prediction against target text (the row's own answer), and prediction against picture.

Scores are plain cosines in [-1, 1], without the factor 100 and the clamp at 0 of torchmetrics' `clip_score`.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.clip.encoder import ClipEncoder, Progress
from drive_vlm.data.predictions import Prediction
from drive_vlm.data.samples import resolve_below
from drive_vlm.data.vision import load_video


@dataclass(frozen=True)
class ClipScores:
    """text_text, text_image float[N]: cosines; truncated bool[N]: prediction or target was cut to the context.

    predictions, targets, images float[N, D] are the unit features behind them, kept for the shuffled baseline.
    """

    text_text: np.ndarray
    text_image: np.ndarray
    truncated: np.ndarray
    predictions: np.ndarray
    targets: np.ndarray
    images: np.ndarray

    def part(self, index: Any) -> "ClipScores":
        """The scores of some samples: `index` is a slice or a list of positions."""
        return ClipScores(*(getattr(self, field.name)[index] for field in fields(self)))

    def shuffled(self, partners: np.ndarray) -> dict[str, np.ndarray]:
        """Both scores float[N] of each prediction against target and picture of its partner, int64[N]."""
        return {
            "text_text": cosine(self.predictions, self.targets[partners]),
            "text_image": cosine(self.predictions, self.images[partners]),
        }


def clip_scores(
    encoder: ClipEncoder,
    predictions: Sequence[str],
    targets: Sequence[str],
    images: Sequence[Sequence[Path]],
    batch_size: int = 64,
    workers: int = 2,
    progress: Progress | None = None,
) -> ClipScores:
    """Scores of N samples; `images[i]` are the pictures of sample i, at least one (several: `mean_features`)."""
    count = len(predictions)
    assert count == len(targets) == len(images), "one prediction, target and list of pictures a sample"
    texts = encoder.encode_texts([*predictions, *targets], batch_size, progress)
    pictures = encoder.encode_images([path for paths in images for path in paths], batch_size, workers, progress)
    said, expected = texts.features[:count], texts.features[count:]
    seen = mean_features(pictures, [len(paths) for paths in images])
    truncated = texts.truncated[:count] | texts.truncated[count:]
    return ClipScores(cosine(said, expected), cosine(said, seen), truncated, said, expected, seen)


def clip_frame_scores(encoder: ClipEncoder, rows: Sequence[Prediction], root: str, num_frames: int) -> ClipScores:
    """Scores of N rows about videos, whose "video" is relative to `root`. A video stands for the mean direction of
    `num_frames` frames, evenly spread; it is decoded and encoded once.

    Raises BadRow with file:line for a video that is missing, empty or broken.
    """
    with tempfile.TemporaryDirectory() as folder:
        frames: dict[str, list[Path]] = {}
        for row in rows:
            video = row.row["video"]
            if video not in frames:
                where = f"{row.where}: id {row.id!r}"
                path = resolve_below(root, video, where)
                frames[video] = save_frames(path, num_frames, Path(folder) / str(len(frames)), where)
        texts, targets = [row.prediction for row in rows], [row.reference for row in rows]
        return clip_scores(encoder, texts, targets, [frames[row.row["video"]] for row in rows])


def save_frames(video: str, num_frames: int, folder: Path, where: str) -> list[Path]:
    """`num_frames` frames of the video at path `video`, evenly spread, as PNG files in a new `folder`. Raises BadRow as load_video."""
    folder.mkdir()
    pictures = load_video(video, num_frames, where)
    paths = [folder / f"{i}.png" for i in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    return paths


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Row-wise cosine float64[N] of two float[N, D] whose rows have length 1."""
    return np.einsum("nd,nd->n", first, second, dtype=np.float64)


def mean_features(features: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """float[N, D] of length 1 from float[sum(counts), D]: a sample with several pictures gets the mean direction of
    their unit features. counts int[N], each at least 1."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    sums = np.add.reduceat(features, starts, axis=0)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(min=1e-12)


def shuffled_partners(keys: Sequence[str], seed: int = 0) -> np.ndarray | None:
    """int64[N]: for each sample another one with a different key (another picture), or None when all keys are equal.

    The baseline of a score: what a prediction gets against the picture or target of a sample it does not belong to.
    Samples are laid out picture by picture in random order, and each draws evenly from all places outside its picture.
    """
    generator = np.random.default_rng(seed)
    codes = np.unique(np.asarray(keys), return_inverse=True)[1]
    codes = generator.permutation(codes.max() + 1)[codes]
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        return None
    ends, own = np.cumsum(sizes)[codes], sizes[codes]
    offsets = generator.integers(0, len(codes) - own)
    return order[(ends + offsets) % len(codes)]
