"""R1, the reward "clip": do a row's pictures and the text about them lie in one direction for CLIP?

    R1 = cos(mean of the unit features of the row's pictures or frames, feature of the text), in [-1, 1], neither cut nor scaled

The text is the answer's justification, its description, or all of it (--clip_text). A text that has not begun, or never
does, gets 0. CLIP's own tokenizer cuts a text at its context of 77 tokens: what is said behind it earns nothing.

It scores prefixes as well, the text so far of an answer that is being written (`prefixes`, see drive_vlm/rewards): its words
are paid where they are said. Pictures go through CLIP once for each row of a run.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.clip.encoder import ClipEncoder
from drive_vlm.clip.score import cosine, mean_features, save_frames
from drive_vlm.config import field
from drive_vlm.evaluation.oia_labels import said_so_far
from drive_vlm.launch.topology import read_topology
from drive_vlm.rewards.text import completion_text

# openai/clip-vit-base-patch32 in open_clip's names: the weights of the seed paper.
_SEED_MODEL = "ViT-B-32-quickgelu"
# A row's pictures, or its one video, by their files.
Media = tuple[str, ...]


@dataclasses.dataclass
class ClipConfig:
    """Flags of the reward "clip"."""

    clip_model: str = field(
        _SEED_MODEL, help="open_clip model (this one: openai's ViT-B/32), or a directory written by tools/train_clip.py"
    )
    clip_pretrained: str | None = field(
        None, help=f"tag of open_clip or local weights file ({_SEED_MODEL}: openai unless given)"
    )
    clip_text: str = field(
        "justification",
        help="what CLIP reads of an answer: its justification, its description, or whole",
        choices=("justification", "description", "whole"),
    )
    clip_frames: int = field(8, help="frames of a video that CLIP sees, evenly spread")
    clip_device: str = field("auto", help="auto: this process's GPU, else the CPU; or cpu, cuda, cuda:1 ...")
    MAY_CHANGE = ("clip_device",)


@dataclasses.dataclass(frozen=True, slots=True)
class ClipTerms:
    """One text that was scored. `truncated`: CLIP's context cut it."""

    cosine: float
    text: str
    truncated: bool


class ClipReward:
    """The reward as TRL calls it; `last_terms` are those of the last call."""

    __name__ = "clip"

    def __init__(self, config: ClipConfig, encoder: ClipEncoder | None = None) -> None:
        self.config = config
        device = _device() if config.clip_device == "auto" else config.clip_device
        self.encoder = encoder or ClipEncoder.load(config.clip_model, config.clip_pretrained, device)
        self.last_terms: list[ClipTerms] = []
        self._seen: dict[Media, np.ndarray] = {}

    def check(self, **columns: Any) -> list[str | None]:
        """For each row why it cannot be scored (it shows nothing), None where it can."""
        return [None if files else "the row has no picture and no video to hold a text against" for files in columns["files"]]  # fmt: skip

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One cosine a completion. `columns`: `files`, and `video` where a row's file is one."""
        texts = [self._part(completion_text(completion)) for completion in completions]
        self._keep(self._terms(texts, self._pictures(columns)), columns)
        return [term.cosine for term in self.last_terms]

    def prefixes(self, texts: Sequence[Sequence[str]], **columns: Any) -> list[list[float | None]]:
        """The cosine of each text so far of each completion; `columns` as in a call."""
        said = [[self._part(text) for text in so_far] for so_far in texts]
        counts = [len(so_far) for so_far in said]
        seen = self._pictures(columns).repeat(counts, axis=0)
        terms = iter(self._terms([text for so_far in said for text in so_far], seen))
        found = [[next(terms) for _ in range(count)] for count in counts]
        self._keep([so_far[-1] for so_far in found if so_far], columns)
        return [[term.cosine for term in so_far] for so_far in found]

    def _keep(self, terms: list[ClipTerms], columns: dict[str, Any]) -> None:
        """Those of the whole texts, for samples and curves."""
        self.last_terms = terms
        if columns.get("log_metric") and terms:
            columns["log_metric"]("clip/truncated", sum(term.truncated for term in terms) / len(terms))
            columns["log_metric"]("clip/without_text", sum(not term.text for term in terms) / len(terms))

    def _part(self, text: str) -> str:
        return text.strip() if self.config.clip_text == "whole" else said_so_far(text, self.config.clip_text)

    def _terms(self, texts: Sequence[str], seen: np.ndarray) -> list[ClipTerms]:
        """Of N texts next to `seen` float[N, D]; an empty one has the cosine 0."""
        spoken = [i for i, text in enumerate(texts) if text]
        cosines, cut = np.zeros(len(texts)), np.zeros(len(texts), dtype=bool)
        if spoken:
            found = self.encoder.encode_texts([texts[i] for i in spoken])
            cosines[spoken], cut[spoken] = cosine(found.features, seen[spoken]), found.truncated
        rows = zip(cosines.tolist(), texts, cut.tolist(), strict=True)
        return [ClipTerms(*row) for row in rows]

    def _pictures(self, columns: dict[str, Any]) -> np.ndarray:
        """float[N, D] of length 1: the mean direction of each completion's pictures or frames. New ones are encoded.

        Raises ValueError for a picture or video that cannot be read.
        """
        files = [tuple(map(str, row)) for row in columns["files"]]
        videos = columns.get("video") or [None] * len(files)
        new = {media: video for media, video in zip(files, videos, strict=True) if media not in self._seen}
        if new:
            with tempfile.TemporaryDirectory() as folder:
                paths = [
                    list(map(Path, media))
                    if video is None
                    else save_frames(media[0], self.config.clip_frames, Path(folder) / str(i), media[0])
                    for i, (media, video) in enumerate(new.items())
                ]
                features = self.encoder.encode_images([path for row in paths for path in row])
            pooled = mean_features(features, [len(row) for row in paths])
            self._seen.update(zip(new, pooled, strict=True))
        return np.stack([self._seen[media] for media in files])


def _device() -> str:
    import torch

    return f"cuda:{read_topology().local_rank}" if torch.cuda.is_available() else "cpu"


def build(config: ClipConfig) -> ClipReward:
    """Raises ValueError where CLIP's weights cannot be had."""
    return ClipReward(config)
