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

from drive_vlm.evaluation.statistics import CONFIDENCE, RESAMPLES

POOLED = ("precision", "recall", "f1", "chair_i", "chair_s")
COUNTS = ("claims", "verified", "found", "wanted")
HALF = 0.5


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; None: undefined (nothing claimed, nothing wanted, fewer than two groups)."""

    value: float | None
    low: float | None
    high: float | None


def pooled_scores(counts: np.ndarray, groups: Sequence[Any], seed: int = 0) -> dict[str, Estimate]:
    """POOLED scores of N texts from counts float[N, 4] (columns COUNTS); `groups`, length N, are resampled whole."""
    sums = _group_sums(counts, groups)
    drawn = _draws(len(sums), seed)
    values, samples = _scores(sums.sum(axis=0)), _scores(sums[drawn].sum(axis=1)) if drawn is not None else None
    return {name: _estimate(values[name], None if samples is None else samples[name]) for name in POOLED}


def pooled_differences(
    first: np.ndarray, second: np.ndarray, groups: Sequence[Any], seed: int = 0
) -> dict[str, Estimate]:
    """`second - first` of the POOLED scores, text i against text i; both are drawn together, which narrows the interval."""
    one, two = _group_sums(first, groups), _group_sums(second, groups)
    drawn = _draws(len(one), seed)
    before, after = _scores(one.sum(axis=0)), _scores(two.sum(axis=0))
    samples = None
    if drawn is not None:
        old, new = _scores(one[drawn].sum(axis=1)), _scores(two[drawn].sum(axis=1))
        samples = {name: new[name] - old[name] for name in POOLED}
    return {name: _estimate(after[name] - before[name], None if samples is None else samples[name]) for name in POOLED}


def _group_sums(counts: np.ndarray, groups: Sequence[Any]) -> np.ndarray:
    """float[G, 6]: COUNTS, texts with a false claim and texts, summed over each group."""
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[1] != len(COUNTS) or not len(counts):
        raise ValueError(f"counts must be [N, {len(COUNTS)}] with N of at least 1, got {counts.shape}")
    if len(groups) != len(counts):
        raise ValueError(f"{len(groups)} groups for {len(counts)} texts")
    columns = np.column_stack([counts, counts[:, 1] < counts[:, 0], np.ones(len(counts))])
    numbers: dict[Any, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    sums = np.zeros((len(numbers), columns.shape[1]))
    np.add.at(sums, index, columns)
    return sums


def _draws(groups: int, seed: int) -> np.ndarray | None:
    """int64[RESAMPLES, G] drawn with replacement; None with fewer than two groups."""
    return None if groups < 2 else np.random.default_rng(seed).integers(0, groups, size=(RESAMPLES, groups))


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


def _estimate(value: Any, samples: np.ndarray | None) -> Estimate:
    number = float(value)
    if math.isnan(number):
        return Estimate(None, None, None)
    samples = None if samples is None else samples[~np.isnan(samples)]
    if samples is None or not len(samples):
        return Estimate(number, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Estimate(number, float(low), float(high))


@dataclass(frozen=True)
class Adherence:
    """Whether "concise" was obeyed, over the videos that have both a detailed and a concise text.

    ratio: median of concise words / detailed words; shorter, half: shares of the videos whose concise text is shorter, and
    at most half as long. videos: with both texts; unpaired: with one of them; silent: their detailed text is empty, so
    that there is no ratio (the shares count them as not obeyed).
    """

    videos: int
    unpaired: int
    silent: int
    ratio: Estimate
    shorter: Estimate
    half: Estimate


def length_adherence(
    detailed: Mapping[str, int], concise: Mapping[str, int], groups: Mapping[str, Any], seed: int = 0
) -> Adherence:
    """From words of each video's texts; `groups` gives what is resampled whole for each video."""
    both = [video for video in detailed if video in concise]
    pairs = np.array([[concise[video], detailed[video]] for video in both], dtype=np.float64).reshape(-1, 2)
    ratios = np.divide(pairs[:, 0], pairs[:, 1], out=np.full(len(pairs), np.nan), where=pairs[:, 1] > 0)
    members: dict[Any, list[int]] = {}
    for index, video in enumerate(both):
        members.setdefault(groups[video], []).append(index)
    drawn = _draws(len(members), seed)
    lists = [np.array(rows) for rows in members.values()]
    resampled = [] if drawn is None else [np.concatenate([lists[i] for i in row]) for row in drawn]

    def estimate(values: np.ndarray, statistic: Any) -> Estimate:
        if not len(values):
            return Estimate(None, None, None)
        samples = np.array([statistic(values[rows]) for rows in resampled]) if resampled else None
        return _estimate(statistic(values), samples)

    return Adherence(
        videos=len(both),
        unpaired=len(detailed.keys() ^ concise.keys()),
        silent=int((pairs[:, 1] == 0).sum()),
        ratio=estimate(ratios, _median),
        shorter=estimate((ratios < 1).astype(float), np.mean),
        half=estimate((ratios <= HALF).astype(float), np.mean),
    )


def _median(ratios: np.ndarray) -> float:
    """Of those that there are; NaN without any."""
    there = ratios[~np.isnan(ratios)]
    return float(np.median(there)) if len(there) else math.nan
