"""How far two raters agree beyond chance (Cohen's kappa), and whether two systems differ on the same rows (McNemar).

kappa = 1 - sum(w O) / sum(w E), with O the counts of pairs of labels, E those of raters who label by their own frequencies alone,
and w the weight of a disagreement: 1 for any (Cohen 1960), or the squared distance of the labels (quadratic, Cohen 1968). The share
of equal labels flatters: two judges that nearly always say "pass" are equal nearly always.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from drive_vlm.evaluation.statistics import Estimate, Result, group_sums, pooled


@dataclass(frozen=True)
class Rate(Result):
    """A score of `n` cases with its 95 % interval; None: undefined."""

    n: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, n: float, found: Estimate) -> "Rate":
        return cls(round(n), found.value, found.low, found.high)


@dataclass(frozen=True)
class McNemar(Result):
    """Rows that only the first, or only the second of two systems gets right, and the exact two-sided p (McNemar 1947).

    It takes rows as independent: rows of one picture are not, and then the interval of the difference, which draws groups, is wider.
    """

    n: int
    only_first: int
    only_second: int
    p: float


def kappa(first: Sequence[Any], second: Sequence[Any], quadratic: bool = False) -> float:
    """Cohen's kappa of two raters' labels; NaN where both give one and the same label alone, or there are none.

    >>> kappa([1, 1, 2, 2], [1, 2, 2, 2])
    0.5
    """
    columns, labels = _pairs(first, second)
    return float(_kappa_of(columns.sum(axis=0), labels, quadratic)["kappa"])


def agreement(
    first: Sequence[Any], second: Sequence[Any], groups: Sequence[str], quadratic: bool = False, seed: int = 0
) -> dict[str, Rate]:
    """{"kappa", "exact": share of equal labels}, with intervals that draw whole groups."""
    if not len(first):
        return {name: Rate(0, None, None, None) for name in ("kappa", "exact")}
    columns, labels = _pairs(first, second)
    found = pooled(group_sums(columns, groups), partial(_kappa_of, labels=labels, quadratic=quadratic), seed)
    return {name: Rate.of(len(first), value) for name, value in found.items()}


def _pairs(first: Sequence[Any], second: Sequence[Any]) -> tuple[np.ndarray, list[Any]]:
    """(float[N, L * L]: which pair of labels each case has, the L labels in order)."""
    assert len(first) == len(second), "both raters see the same cases"
    labels = sorted({*first, *second})
    place = {label: i for i, label in enumerate(labels)}
    cells = [place[a] * len(labels) + place[b] for a, b in zip(first, second, strict=True)]
    return np.eye(len(labels) ** 2)[cells], labels


def _kappa_of(sums: np.ndarray, labels: list[Any], quadratic: bool) -> dict[str, np.ndarray]:
    """Scores float[...] of counts float[..., L * L]."""
    size = len(labels)
    counts = sums.reshape(*sums.shape[:-1], size, size)
    total = counts.sum((-2, -1))
    if quadratic:
        values = np.array(labels, dtype=np.float64)
        weights = (values[:, None] - values[None]) ** 2
    else:
        weights = 1 - np.eye(size)
    chance = counts.sum(-1)[..., :, None] * counts.sum(-2)[..., None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 1 - total * (weights * counts).sum((-2, -1)) / (weights * chance).sum((-2, -1))
        return {"kappa": found, "exact": np.trace(counts, axis1=-2, axis2=-1) / total}


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Whether two systems are right on different rows. p is 1 where they differ on none.

    >>> mcnemar([True, True, True, False], [False, False, False, False]).p
    0.25
    """
    pairs = list(zip(first, second, strict=True))
    old, new = (sum(1 for pair in pairs if pair == wanted) for wanted in ((True, False), (False, True)))
    tail = sum(math.comb(old + new, k) for k in range(min(old, new) + 1))
    # A quotient of whole numbers: 2 ** n has no float from n = 1,024 on.
    return McNemar(len(pairs), old, new, min(1.0, 2 * tail / 2 ** (old + new)))
