"""Every number of tools/video_eval.py: of one checkpoint and mode, the change to another checkpoint, and lengths obeyed."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drive_vlm.data.predictions import Prediction
from drive_vlm.evaluation.statistics import paired_difference, summarize
from drive_vlm.evaluation.text_overlap import language_scores
from drive_vlm.evaluation.video import length_adherence, pooled_differences, pooled_scores

TERMS = ("object", "temporal", "detail", "hallucination", "reward", "words")
NO_MODE = "(none)"  # of rows that name none


@dataclass(frozen=True)
class Scored:
    """One prediction with its terms (drive_vlm.rewards.physics.Terms); `truth` are those against the exact classes, where the rows
    hold them, else None."""

    item: Prediction
    video: str
    mode: str
    terms: Any
    truth: Any

    @property
    def group(self) -> str:
        return str(self.item.row.get("group") or self.video)


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


def score_mode(rows: list[Scored], clip: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Every number of one checkpoint and mode; `clip` holds float[N] for each CLIP score."""

    groups = [row.group for row in rows]
    found = [row.terms for row in rows]
    exact = [row.truth for row in rows if row.truth is not None]
    return {
        "n": len(rows),
        "videos": len({row.video for row in rows}),
        "objects": {name: asdict(value) for name, value in pooled_scores(counts_of(found), groups, seed).items()},
        "truth": {name: asdict(value) for name, value in pooled_scores(counts_of(exact), groups, seed).items()}
        if exact
        else None,
        "terms": {name: summarize([getattr(item, name) for item in found], groups, seed).to_dict() for name in TERMS},
        "text_overlap": language_scores([row.item.prediction for row in rows], [row.item.reference for row in rows]),
        "clip": {name: summarize(values, groups, seed).to_dict() for name, values in clip.items()} or None,
        "unverified": sum(item.unverified for item in found),
        "empty": sum(not row.item.prediction.strip() for row in rows),
        "no_reference": sum(bool(item.no_reference) for item in found),
    }


def compare_mode(
    first: list[Scored], second: list[Scored], clips: list[dict[str, np.ndarray]], seed: int
) -> dict[str, Any]:
    """`second - first` of what `score_mode` gives an interval."""

    groups = [row.group for row in first]
    result: dict[str, Any] = {"truth": None}
    sides = [[row.terms for row in rows] for rows in (first, second)]
    exact = [[row.truth for row in rows if row.truth is not None] for rows in (first, second)]
    for name, (old, new) in {"objects": sides, "truth": exact}.items():
        if old and new:
            changes = pooled_differences(counts_of(old), counts_of(new), groups, seed)
            result[name] = {key: asdict(value) for key, value in changes.items()}
    before, after = ({name: [getattr(item, name) for item in side] for name in TERMS} for side in sides)
    result["terms"] = {name: paired_difference(before[name], after[name], groups, seed).to_dict() for name in TERMS}
    old_clip, new_clip = clips
    result["clip"] = {
        name: paired_difference(old_clip[name], new_clip[name], groups, seed).to_dict() for name in old_clip
    } or None
    return result


def adherence(rows: list[Scored], seed: int) -> dict[str, Any] | None:
    """Lengths of concise and detailed texts of the same video; None where one of the modes is not there."""

    if not {"detailed", "concise"} <= {row.mode for row in rows}:
        return None
    words: dict[str, dict[str, int]] = {"detailed": {}, "concise": {}}
    for row in rows:
        of_mode = words.get(row.mode, {})
        if row.video in of_mode:
            raise ValueError(f"{row.item.where}: video {row.video!r} has a second {row.mode} text; give one of each")
        of_mode[row.video] = row.terms.words
    groups = {row.video: row.group for row in rows}
    return asdict(length_adherence(words["detailed"], words["concise"], groups, seed))
