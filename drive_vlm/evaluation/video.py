"""Every number of tools/video_eval.py: objects and hallucinations over a set of texts, obeyed lengths, and what changes
from one checkpoint to another.

What a text claims, and how much of it a detector confirms, is counted elsewhere (tools/video_eval.py takes it from the
physics reward). Here the counts of N texts become numbers with 95 % intervals that resample whole videos.

- precision = verified / claims, recall = found / wanted, F1 their harmonic mean: sums over all texts, so that a text that
  claims nothing has no say in precision and costs recall.
- CHAIR (Rohrbach et al. 2018, "Object Hallucination in Image Captioning"): chair_i = false claims / claims, chair_s = texts
  with a false claim / texts. There every mention of an object counts, here each object of a text once; and there the truth
  is annotated, here it is what is given: a detector's classes, or the exact ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from drive_vlm.data.predictions import Prediction
from drive_vlm.evaluation.statistics import (
    Estimate,
    draws,
    estimate,
    group_numbers,
    group_sums,
    paired_difference,
    pooled,
    pooled_change,
    summarize,
)
from drive_vlm.evaluation.text_overlap import language_counts, scores_of_counts

POOLED = ("precision", "recall", "f1", "chair_i", "chair_s")
COUNTS = ("claims", "verified", "found", "wanted")
HALF = 0.5
TERMS = ("object", "temporal", "detail", "hallucination", "reward", "words")
# Of these, what cannot be said of a text without a reference.
OF_REFERENCE = ("temporal", "detail", "reward")
# The mode of rows that name none.
NO_MODE = "(none)"
# Modes whose lengths are compared.
PAIRED = ("detailed", "concise")


def pooled_scores(counts: np.ndarray, groups: Sequence[Any], seed: int = 0) -> dict[str, Estimate]:
    """POOLED scores of N texts from counts float[N, 4] (columns COUNTS); `groups`, length N, are resampled whole."""
    return pooled(group_sums(_columns(counts), groups), _scores, seed)


def pooled_differences(
    first: np.ndarray, second: np.ndarray, groups: Sequence[Any], seed: int = 0
) -> dict[str, Estimate]:
    """`second - first` of the POOLED scores, text i against text i."""
    return pooled_change(group_sums(_columns(first), groups), group_sums(_columns(second), groups), _scores, seed)


def _columns(counts: np.ndarray) -> np.ndarray:
    """float[N, 6]: COUNTS, whether a text has a false claim, and 1 for the text itself."""
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[1] != len(COUNTS) or not len(counts):
        raise ValueError(f"counts must be [N, {len(COUNTS)}] with N of at least 1, got {counts.shape}")
    return np.column_stack([counts, counts[:, 1] < counts[:, 0], np.ones(len(counts))])


def _scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    """POOLED scores of sums float[..., 6]; NaN where a denominator is 0."""
    claims, verified, found, wanted, flawed, texts = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = verified / claims, found / wanted
        both = precision + recall
        # 0 where both are 0, NaN where one is undefined.
        f1 = np.where(both > 0, 2 * precision * recall / both, both)
        return {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "chair_i": (claims - verified) / claims,
            "chair_s": flawed / texts,
        }


@dataclass(frozen=True)
class Adherence:
    """Whether "concise" was obeyed, over the captions that have both a detailed and a concise text.

    ratio: median of concise words / detailed words; shorter, half: shares of these pairs whose concise text is shorter, and
    at most half as long. pairs: with both texts; unpaired: texts without the other; silent: pairs whose detailed text is
    empty, so that there is no ratio (the shares count them as not obeyed).
    """

    pairs: int
    unpaired: int
    silent: int
    ratio: Estimate
    shorter: Estimate
    half: Estimate


def length_adherence(
    detailed: Mapping[Any, int], concise: Mapping[Any, int], groups: Mapping[Any, Any], seed: int = 0
) -> Adherence:
    """From words of each caption's texts; `groups` gives what is resampled whole for each caption."""
    both = [caption for caption in detailed if caption in concise]
    words = np.array([[concise[caption], detailed[caption]] for caption in both], dtype=np.float64).reshape(-1, 2)
    ratios = np.divide(words[:, 0], words[:, 1], out=np.full(len(words), np.nan), where=words[:, 1] > 0)
    owners = [groups[caption] for caption in both]
    shares = dict.fromkeys(("shorter", "half"), Estimate(None, None, None))
    if both:
        columns = np.column_stack([ratios < 1, ratios <= HALF, np.ones(len(both))])
        shares = pooled(
            group_sums(columns, owners),
            lambda sums: {"shorter": sums[..., 0] / sums[..., 2], "half": sums[..., 1] / sums[..., 2]},
            seed,
        )
    return Adherence(
        pairs=len(both),
        unpaired=len(detailed.keys() ^ concise.keys()),
        silent=int((words[:, 1] == 0).sum()),
        ratio=_median(ratios, group_numbers(owners), seed),
        **shares,
    )


def _median(ratios: np.ndarray, owners: np.ndarray, seed: int) -> Estimate:
    """Median of the ratios float[N] that are not NaN; `owners` int64[N] are their groups. A group drawn k times counts its ratios
    k times, so one sorting serves all draws."""
    there = np.flatnonzero(~np.isnan(ratios))
    there = there[np.argsort(ratios[there])]
    ordered = ratios[there]

    def middle(times: np.ndarray) -> float:
        ends = np.cumsum(times[owners[there]])
        if not len(ends) or not ends[-1]:
            return math.nan
        lower, upper = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
        return float(ordered[lower] + ordered[upper]) / 2

    count = int(owners.max(initial=-1)) + 1
    samples = [middle(np.bincount(row, minlength=count)) for block in draws(count, seed) for row in block]
    return estimate(middle(np.ones(count, dtype=np.int64)), np.array(samples, dtype=np.float64))


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
    def compared(self) -> "Part":
        """The rows that have a reference."""
        kept = [i for i, row in enumerate(self.rows) if row.item.reference.strip()]
        return Part([self.rows[i] for i in kept], {name: values[kept] for name, values in self.clip.items()})

    def of(self, score: str) -> "Part":
        """The rows that a term or CLIP score is said of."""
        return self.compared if score in (*OF_REFERENCE, "text_text") else self

    def values(self, score: str) -> Any:
        """A term or CLIP score of the rows `of(score)`."""
        part = self.of(score)
        return part.clip[score] if score in part.clip else [getattr(row.terms, score) for row in part.rows]

    @cached_property
    def overlap(self) -> np.ndarray:
        """float[G, 13]: language_counts of the groups, of the rows with a reference. CIDEr's idf is that of all references here, in
        every resample too."""
        rows = self.compared.rows
        texts = language_counts([row.item.prediction for row in rows], [row.item.reference for row in rows])
        return group_sums(texts, self.compared.groups)


def counts_of(found: list[Any]) -> np.ndarray:
    """float[N, 4] as COUNTS."""
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
        "terms": {name: _summary(part, name, seed) for name in TERMS},
        "text_overlap": _plain(pooled(part.overlap, scores_of_counts, seed)) if part.compared.rows else None,
        "clip": {name: _summary(part, name, seed) for name in part.clip} or None,
        "unverified": sum(item.unverified for item in found),
        "empty": sum(not row.item.prediction.strip() for row in rows),
        "no_reference": sum(bool(row.terms.no_reference) for row in part.compared.rows),
        "without_reference": len(rows) - len(part.compared.rows),
    }


def _summary(part: Part, score: str, seed: int) -> dict[str, Any] | None:
    """A term or CLIP score with its interval; None where no row has the reference that it needs."""
    part, values = part.of(score), part.values(score)
    return summarize(values, part.groups, seed).to_dict() if part.rows else None


def _difference(first: Part, second: Part, score: str, seed: int) -> dict[str, Any] | None:
    part = first.of(score)
    if not part.rows:
        return None
    return paired_difference(first.values(score), second.values(score), part.groups, seed).to_dict()


def compare_mode(first: Part, second: Part, seed: int) -> dict[str, Any]:
    """`second - first` of what `score_mode` gives an interval."""
    groups = first.groups
    result: dict[str, Any] = {"truth": None}
    sides = [[row.terms for row in part.rows] for part in (first, second)]
    exact = [[row.truth for row in part.rows if row.truth is not None] for part in (first, second)]
    for name, (old, new) in {"objects": sides, "truth": exact}.items():
        if old and new:
            result[name] = _plain(pooled_differences(counts_of(old), counts_of(new), groups, seed))
    result["terms"] = {name: _difference(first, second, name, seed) for name in TERMS}
    result["text_overlap"] = None
    if first.compared.rows:
        result["text_overlap"] = _plain(pooled_change(first.overlap, second.overlap, scores_of_counts, seed))
    result["clip"] = {name: _difference(first, second, name, seed) for name in first.clip} or None
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
