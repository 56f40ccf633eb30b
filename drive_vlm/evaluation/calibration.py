"""Whether a probability of asking means what it says: ECE, Brier, AUROC, reliability, and risk against coverage.

p is the share of a row's sampled replies that ask, y whether asking is right. With K samples p has K + 1 values, so everything but
the risk follows from how many rows of y = 0 and y = 1 have each value, which intervals by group draw.

* ECE: sum over bins of (share of rows) |mean p - mean y|. Bins of equal width are closed on the right. Those of equal mass end at the
  quantiles of p; rows of one p stay together, so that there may be fewer.
* Brier: mean (p - y)^2. AUROC: share of pairs (y = 1, y = 0) in which p is larger, equal ones count half.
* Risk and coverage: the rows with the smallest p are answered first, asking is abstaining; the risk is the mean error of what is
  answered. AURC: mean risk over the rows that any sample answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from drive_vlm.evaluation.agreement import Rate
from drive_vlm.evaluation.statistics import group_sums, pooled

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Rows whose p lies in one bin: how many, and the means of p and y."""

    n: int
    p: float
    y: float


@dataclass(frozen=True)
class Coverage:
    """Where the rows with p <= `p` are answered: their share of all rows, and their mean error."""

    p: float
    coverage: float
    risk: float


def equal_width(p: np.ndarray, bins: int = BINS) -> np.ndarray:
    """int64[N]: the bin of each p float[N] in [0, 1], closed on the right; 0 belongs to the first."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p, side="left")


def equal_mass(p: np.ndarray, bins: int = BINS) -> np.ndarray:
    """int64[N]: the bin of each p float[N], each of about as many rows; equal ones share a bin."""
    # The last row of each bin by whole numbers: quantiles of 0.1, 0.2 ... round to either side.
    last = [-(-len(p) * number // bins) - 1 for number in range(1, bins)]
    return np.searchsorted(np.unique(np.sort(p)[last]), p, side="left")


def calibration(
    p: Sequence[float], y: Sequence[bool], groups: Sequence[str], bins: int = BINS, seed: int = 0
) -> dict[str, Rate]:
    """{ECE_mass, ECE_width, Brier, AUROC} with intervals that draw whole groups; the bins are those of all rows."""
    chances, truth = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=bool)
    levels, place = np.unique(chances, return_inverse=True)
    columns = np.zeros((len(chances), 2 * len(levels)))
    columns[np.arange(len(chances)), place + len(levels) * truth] = 1
    # Of each level the bin of the first row that has it: rows of one p have one bin.
    first = [int(np.flatnonzero(place == level)[0]) for level in range(len(levels))]
    cuts = {"ECE_mass": equal_mass(chances, bins)[first], "ECE_width": equal_width(chances, bins)[first]}
    found = pooled(group_sums(columns, groups), partial(_scores, levels=levels, cuts=cuts), seed)
    return {name: Rate.of(len(chances), value) for name, value in found.items()}


def _scores(sums: np.ndarray, levels: np.ndarray, cuts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores float[...] of counts float[..., 2 L]: rows of y = 0 by level, then those of y = 1."""
    clear, wanted = sums[..., : len(levels)], sums[..., len(levels) :]
    total = sums.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            # n |mean p - mean y| of a bin is |sum p - sum y|.
            name: np.abs(((clear + wanted) * levels - wanted) @ np.eye(bin_of.max() + 1)[bin_of]).sum(-1) / total
            for name, bin_of in cuts.items()
        }
        found["Brier"] = (clear * levels**2 + wanted * (1 - levels) ** 2).sum(-1) / total
        below = np.cumsum(clear, axis=-1) - clear / 2
        found["AUROC"] = (wanted * below).sum(-1) / (clear.sum(-1) * wanted.sum(-1))
    return found


def reliability(p: Sequence[float], y: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """The bins of equal mass, in the order of p."""
    chances, truth = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=np.float64)
    place = equal_mass(chances, bins)
    members = [place == number for number in np.unique(place)]
    return [Bin(int(rows.sum()), float(chances[rows].mean()), float(truth[rows].mean())) for rows in members]


def risk_coverage(p: Sequence[float], errors: Sequence[float]) -> list[Coverage]:
    """One point for each value of p under 1, the smallest first. A row of p = 1 is never answered, so that its error is not read."""
    chances, wrong = np.asarray(p, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    points = []
    for level in np.unique(chances[chances < 1]):
        taken = chances <= level
        points.append(Coverage(float(level), float(taken.mean()), float(wrong[taken].mean())))
    return points


def area_under_risk(points: Sequence[Coverage]) -> float | None:
    """AURC: the risk of each row when all with its p or less are answered, averaged over the rows of any point."""
    steps = [
        now.coverage - before for now, before in zip(points, [0.0, *(item.coverage for item in points)], strict=False)
    ]
    return float(np.dot([item.risk for item in points], steps) / points[-1].coverage) if points else None
