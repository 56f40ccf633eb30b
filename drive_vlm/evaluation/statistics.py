"""Mean, spread, quantiles and bootstrap intervals of per-sample scores, and the paired difference of two systems.

Several questions about one picture are not independent. Every interval therefore takes `groups` (picture, scene or
video of each sample) and resamples whole groups: the cluster bootstrap of Davison & Hinkley, "Bootstrap Methods and
Their Application" (1997), section 3.8. Without `groups` every sample is a group of its own.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)
CONFIDENCE = 0.95
RESAMPLES = 2000
# Indices held in memory while resampling (32 MB).
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Result:
    """Numbers that JSON can hold as `to_dict` gives them: NaN (undefined) becomes null."""

    def to_dict(self) -> dict[str, Any]:
        numbers = asdict(self).items()
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in numbers}


@dataclass(frozen=True)
class Summary(Result):
    """Scores of one system. `low`, `high`: 95 % interval of the mean, NaN with fewer than two groups."""

    n: int
    groups: int
    mean: float
    sd: float
    q05: float
    q25: float
    q50: float
    q75: float
    q95: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference(Result):
    """`second - first` on the same samples. `low`, `high`: 95 % interval of the mean difference."""

    n: int
    groups: int
    mean_first: float
    mean_second: float
    difference: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; None: undefined (a denominator of 0, fewer than two groups)."""

    value: float | None
    low: float | None
    high: float | None


def group_numbers(groups: Sequence[Any]) -> np.ndarray:
    """int64[N]: each distinct group by its number, in the order of first appearance."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def group_sums(columns: np.ndarray, groups: Sequence[Any]) -> np.ndarray:
    """float[G, K]: columns float[N, K] summed over each group, in the order of first appearance."""
    if len(groups) != len(columns):
        raise ValueError(f"{len(groups)} groups for {len(columns)} samples")
    index = group_numbers(groups)
    return np.stack([np.bincount(index, weights=column) for column in columns.T], axis=1)


def draws(groups: int, seed: int = 0, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """int64[B, G] of group numbers drawn with replacement: `resamples` rows in blocks of bounded memory, none with fewer than
    two groups. Seeded; the rows do not depend on the size of the blocks."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // max(1, groups))
    for start in range(0, resamples if groups > 1 else 0, at_once):
        yield generator.integers(0, groups, size=(min(at_once, resamples - start), groups))


def resampled_sums(sums: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """float[R, K]: sums float[G, K] of the groups, added up over each of the `draws`; R is 0 with fewer than two groups."""
    blocks = [np.empty((0, sums.shape[1]))]
    for drawn in draws(len(sums), seed, resamples):
        # How often each group was drawn: one product serves all columns, several times faster than picking each column's numbers.
        times = np.stack([np.bincount(row, minlength=len(sums)) for row in drawn]).astype(np.float64)
        blocks.append(times @ sums)
    return np.concatenate(blocks)


def estimate(value: float, samples: np.ndarray) -> Estimate:
    """`value` with the percentile interval of its resampled `samples` float[R]; NaN in either means undefined."""
    samples = samples[~np.isnan(samples)]
    if math.isnan(value):
        return Estimate(None, None, None)
    if not len(samples):
        return Estimate(value, None, None)
    return Estimate(value, *interval(samples))


# sums float[..., K] -> each score float[...], NaN: undefined.
Scores = Callable[[np.ndarray], dict[str, np.ndarray]]


def pooled(sums: np.ndarray, scores: Scores, seed: int = 0) -> dict[str, Estimate]:
    """Scores of all samples from the sums float[G, K] of their groups, with intervals that draw whole groups."""
    samples = scores(resampled_sums(sums, seed))
    return {name: estimate(float(value), samples[name]) for name, value in scores(sums.sum(axis=0)).items()}


def pooled_change(first: np.ndarray, second: np.ndarray, scores: Scores, seed: int = 0) -> dict[str, Estimate]:
    """`second - first` of such scores, float[G, K] each of the same groups; both are drawn together, which narrows the
    interval."""

    def change(sums: np.ndarray) -> dict[str, np.ndarray]:
        old, new = (scores(part) for part in np.split(sums, 2, axis=-1))
        return {name: new[name] - old[name] for name in old}

    return pooled(np.hstack([first, second]), change, seed)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` float[N], drawing whole `groups` (length N) with
    replacement. Seeded: equal input gives an equal interval. (NaN, NaN) with fewer than two groups.
    """
    columns = np.column_stack([_checked(values), np.ones(len(values))])
    sums = columns if groups is None else group_sums(columns, groups)
    if len(sums) < 2:
        return math.nan, math.nan
    totals, sizes = resampled_sums(sums, seed, resamples).T
    return interval(totals / sizes)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The range that holds the middle 95 % of `samples` float[R]."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def summarize(values: Sequence[float] | np.ndarray, groups: Sequence[Any] | None = None, seed: int = 0) -> Summary:
    """Mean, sample standard deviation (N - 1), quantiles and 95 % interval of the mean of `values` float[N].

    Raises ValueError without values or with a value that is not finite.
    """
    values = _checked(values)
    low, high = bootstrap_interval(values, groups, seed)
    sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    q05, q25, q50, q75, q95 = np.quantile(values, QUANTILES).tolist()
    groups_seen, mean = _group_count(values, groups), float(values.mean())
    return Summary(len(values), groups_seen, mean, sd, q05, q25, q50, q75, q95, low, high)


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> PairedDifference:
    """Mean of `second - first` (float[N] each, sample i against sample i) with its 95 % bootstrap interval.

    Pairing removes the spread between easy and hard samples, so the interval is narrower than that of two
    separate means. Raises ValueError when the lengths differ.
    """
    first, second = _checked(first), _checked(second)
    if len(first) != len(second):
        raise ValueError(f"a paired difference needs the same samples twice, got {len(first)} and {len(second)}")
    change = second - first
    low, high = bootstrap_interval(change, groups, seed)
    old, new, mean = (float(values.mean()) for values in (first, second, change))
    wins, ties, losses = (int((np.sign(change) == sign).sum()) for sign in (1, 0, -1))
    return PairedDifference(len(change), _group_count(change, groups), old, new, mean, low, high, wins, ties, losses)


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"statistics need one row of at least one score, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {len(array)} scores are not finite")
    return array


def _group_count(values: np.ndarray, groups: Sequence[Any] | None) -> int:
    return len(values) if groups is None else len(set(groups))
