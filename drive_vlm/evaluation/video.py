"""Scores of texts about videos from counted facts: objects and hallucinations over a set of texts, and obeyed lengths.

What a text claims and what of it is borne out is counted elsewhere (tools/video_eval.py takes it from the physics reward);
here the counts of N texts become numbers with 95 % intervals that resample whole videos.

- precision = verified / claims, recall = found / wanted, F1 their harmonic mean: sums over all texts, so that a text that
  claims nothing has no say in precision and costs recall.
- CHAIR (Rohrbach et al. 2018, "Object Hallucination in Image Captioning"): chair_i = false claims / claims, chair_s = texts
  with a false claim / texts. There every mention of an object counts, here each object of a text once; and there the truth
  is annotated, here it is what is given: a detector's classes, or the exact ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drive_vlm.evaluation.statistics import Estimate, draws, estimate, group_numbers, group_sums, pooled, pooled_change

POOLED = ("precision", "recall", "f1", "chair_i", "chair_s")
COUNTS = ("claims", "verified", "found", "wanted")
HALF = 0.5


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
        f1 = np.where(both > 0, 2 * precision * recall / both, both)  # 0 where both are 0, NaN where one is undefined
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
