"""Every number of tools/video_eval.py: of one checkpoint and mode, the change to another checkpoint, and lengths obeyed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from drive_vlm.data.predictions import Prediction
from drive_vlm.evaluation.statistics import group_sums, paired_difference, pooled, pooled_change, summarize
from drive_vlm.evaluation.text_overlap import language_counts, scores_of_counts
from drive_vlm.evaluation.video import length_adherence, pooled_differences, pooled_scores

TERMS = ("object", "temporal", "detail", "hallucination", "reward", "words")
NO_MODE = "(none)"  # of rows that name none
PAIRED = ("detailed", "concise")  # modes whose lengths are compared


def mode_of(item: Prediction) -> str:
    return str(item.row.get("mode") or NO_MODE)


def pair_keys(items: Sequence[Prediction]) -> list[tuple[str, str]]:
    """Of each row, what the detailed and the concise text of one caption share: the video and the id without "-<mode>"; the video
    alone where one of its ids does not end so.

    Raises ValueError where both modes are there and one has two texts of one key.
    """
    paired = PAIRED if set(PAIRED) <= {mode_of(item) for item in items} else ()
    ends = [f"-{mode_of(item)}" for item in items]
    others = {item.row["video"] for item, end in zip(items, ends, strict=True) if not item.id.endswith(end)}
    keys: list[tuple[str, str]] = []
    seen: dict[tuple[str, tuple[str, str]], Prediction] = {}
    for item, end in zip(items, ends, strict=True):
        video, mode = item.row["video"], mode_of(item)
        keys.append((video, "" if video in others else item.id.removesuffix(end)))
        first = seen.setdefault((mode, keys[-1]), item)
        if first is not item and mode in paired:
            raise ValueError(
                f"{item.where}: id {item.id!r}: video {video!r} has a second {mode} text (the first: {first.id!r}, {first.where}); "
                "give one of each, or ids that end in -detailed and -concise and else are the same for the texts of one caption"
            )
    return keys


@dataclass(frozen=True)
class Scored:
    """One prediction with its terms (drive_vlm.rewards.physics.Terms); `truth` are those against the exact classes, where the rows
    hold them, else None. `pair`: pair_keys."""

    item: Prediction
    pair: tuple[str, str]
    terms: Any
    truth: Any

    @property
    def video(self) -> str:
        return self.item.row["video"]

    @property
    def mode(self) -> str:
        return mode_of(self.item)

    @property
    def group(self) -> str:
        return str(self.item.row.get("group") or self.video)


@dataclass(frozen=True)
class Part:
    """Rows of one checkpoint and mode; `clip` holds float[N] for each CLIP score."""

    rows: list[Scored]
    clip: dict[str, np.ndarray]

    @property
    def groups(self) -> list[str]:
        return [row.group for row in self.rows]

    @cached_property
    def overlap(self) -> np.ndarray:
        """float[G, 13]: language_counts of the groups. CIDEr's idf is that of all references here, in every resample too."""
        texts = language_counts([row.item.prediction for row in self.rows], [row.item.reference for row in self.rows])
        return group_sums(texts, self.groups)


def counts_of(found: list[Any]) -> np.ndarray:
    """float[N, 4] as drive_vlm.evaluation.video.COUNTS."""
    return np.array([[item.claims, item.verified, item.found, item.wanted] for item in found], dtype=float)


def by_mode(rows: list[Scored]) -> dict[str, list[int]]:
    """Row numbers of each mode, and of all rows where there are several modes."""
    members: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(row.mode, []).append(index)
    ordered = dict(sorted(members.items(), key=lambda entry: (entry[0] != "detailed", entry[0])))
    return ordered if len(ordered) == 1 else {**ordered, "(all)": list(range(len(rows)))}


def score_mode(part: Part, seed: int) -> dict[str, Any]:
    """Every number of one checkpoint and mode."""
    rows, groups = part.rows, part.groups
    found = [row.terms for row in rows]
    exact = [row.truth for row in rows if row.truth is not None]
    return {
        "n": len(rows),
        "videos": len({row.video for row in rows}),
        "objects": _plain(pooled_scores(counts_of(found), groups, seed)),
        "truth": _plain(pooled_scores(counts_of(exact), groups, seed)) if exact else None,
        "terms": {name: summarize([getattr(item, name) for item in found], groups, seed).to_dict() for name in TERMS},
        "text_overlap": _plain(pooled(part.overlap, scores_of_counts, seed)),
        "clip": {name: summarize(values, groups, seed).to_dict() for name, values in part.clip.items()} or None,
        "unverified": sum(item.unverified for item in found),
        "empty": sum(not row.item.prediction.strip() for row in rows),
        "no_reference": sum(bool(item.no_reference) for item in found),
    }


def compare_mode(first: Part, second: Part, seed: int) -> dict[str, Any]:
    """`second - first` of what `score_mode` gives an interval."""
    groups = first.groups
    result: dict[str, Any] = {"truth": None}
    sides = [[row.terms for row in part.rows] for part in (first, second)]
    exact = [[row.truth for row in part.rows if row.truth is not None] for part in (first, second)]
    for name, (old, new) in {"objects": sides, "truth": exact}.items():
        if old and new:
            result[name] = _plain(pooled_differences(counts_of(old), counts_of(new), groups, seed))
    before, after = ({name: [getattr(item, name) for item in side] for name in TERMS} for side in sides)
    result["terms"] = {name: paired_difference(before[name], after[name], groups, seed).to_dict() for name in TERMS}
    result["text_overlap"] = _plain(pooled_change(first.overlap, second.overlap, scores_of_counts, seed))
    result["clip"] = {
        name: paired_difference(first.clip[name], second.clip[name], groups, seed).to_dict() for name in first.clip
    } or None
    return result


def _plain(estimates: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    return {name: asdict(value) for name, value in estimates.items()}


def adherence(rows: list[Scored], seed: int) -> dict[str, Any] | None:
    """Lengths of the concise and the detailed text of one caption; None where one of the modes is not there."""
    words = {mode: {row.pair: row.terms.words for row in rows if row.mode == mode} for mode in PAIRED}
    if not all(words.values()):
        return None
    groups = {row.pair: row.group for row in rows}
    return asdict(length_adherence(words["detailed"], words["concise"], groups, seed))
