"""Mean, spread, quantiles and bootstrap intervals of per-sample scores, and the paired difference of two systems.

Several questions about one picture are not independent. Every interval therefore takes `groups` (picture, scene or
video of each sample) and resamples whole groups: the cluster bootstrap of Davison & Hinkley, "Bootstrap Methods and
Their Application" (1997), section 3.8. Without `groups` every sample is a group of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)
CONFIDENCE = 0.95
RESAMPLES = 2000
_DRAWS_AT_ONCE = 4_000_000  # indices held in memory while resampling (32 MB)


def _json(result: Any) -> dict[str, Any]:
    """A dataclass as a dict that JSON can hold: NaN (undefined) becomes null."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(result).items()
    }


@dataclass(frozen=True)
class Summary:
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

    def to_dict(self) -> dict[str, Any]:
        return _json(self)


@dataclass(frozen=True)
class PairedDifference:
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

    def to_dict(self) -> dict[str, Any]:
        return _json(self)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` float[N], drawing whole `groups` (length N) with
    replacement. Seeded: equal input gives an equal interval. (NaN, NaN) with fewer than two groups.
    """
    sums, counts = _per_group(_checked(values), groups)
    if len(sums) < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    equal_sizes = bool((counts == counts[0]).all())
    at_once = max(1, _DRAWS_AT_ONCE // len(sums))
    means = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(0, len(sums), size=(min(at_once, resamples - start), len(sums)))
        sizes = counts[0] * len(sums) if equal_sizes else counts[drawn].sum(axis=1)
        means.append(sums[drawn].sum(axis=1) / sizes)
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
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
    return PairedDifference(
        n=len(change),
        groups=_group_count(change, groups),
        mean_first=float(first.mean()),
        mean_second=float(second.mean()),
        difference=float(change.mean()),
        low=low,
        high=high,
        wins=int((change > 0).sum()),
        ties=int((change == 0).sum()),
        losses=int((change < 0).sum()),
    )


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"statistics need one row of at least one score, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {len(array)} scores are not finite")
    return array


def _group_count(values: np.ndarray, groups: Sequence[Any] | None) -> int:
    return len(values) if groups is None else len(set(groups))


def _per_group(values: np.ndarray, groups: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and size of each group, float[G] and int64[G], in the order of first appearance."""
    if groups is None:
        return values, np.ones(len(values), dtype=np.int64)
    if len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} scores")
    numbers: dict[Any, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    return np.bincount(index, weights=values), np.bincount(index)
