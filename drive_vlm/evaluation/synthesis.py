"""Figures of synthetic rows, one round next to another: distinct words, length, objects that no source has, rows that changed.

distinct-n (Li et al. 2016, arXiv 1510.03055) is the number of different n-grams of all answers over the number of all of them. It falls
as rows are added, so compare rounds of one size. Resampling groups would repeat n-grams and lower it: its interval is the jackknife's,
which leaves out one group at a time (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11). The other intervals
draw whole groups (statistics.py).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drive_vlm.evaluation.statistics import Estimate, group_numbers, group_sums, pooled

# Half of a 95 % interval in standard errors.
_Z = 1.959964


@dataclass(frozen=True)
class RowFacts:
    """What the figures need of a row.

    Attributes:
        key: what makes it the same row in another round: the picture, the task, the question.
        words: of its answer.
        claims: objects that it says are there and that a source could have seen; `false`: those that no source has.
    """

    key: Hashable
    group: str
    words: tuple[str, ...]
    claims: int
    false: int


def figures(rows: Sequence[RowFacts], seed: int = 0) -> dict[str, Estimate]:
    """distinct_1, distinct_2 (0-1), answer_words (mean), hallucinated (false claims of all claims, 0-1) and rows_hallucinated (share of the
    rows with a false claim). Raises ValueError without rows."""
    if not rows:
        raise ValueError("no rows: figures of an empty set are undefined")
    columns = np.array([[len(row.words), row.false, row.claims, row.false > 0, 1] for row in rows], dtype=np.float64)

    def scores(sums: np.ndarray) -> dict[str, np.ndarray]:
        words, false, claims, with_false, count = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "answer_words": words / count,
                "hallucinated": np.where(claims > 0, false / claims, np.nan),
                "rows_hallucinated": with_false / count,
            }

    groups = [row.group for row in rows]
    distinct = {f"distinct_{n}": distinct_n([row.words for row in rows], groups, n) for n in (1, 2)}
    return distinct | pooled(group_sums(columns, groups), scores, seed)


def distinct_n(texts: Sequence[Sequence[str]], groups: Sequence[Hashable], n: int) -> Estimate:
    """Different n-grams of all texts over all their n-grams, with the jackknife interval over groups, cut to 0-1."""
    numbers = group_numbers(groups).tolist()
    count = max(numbers, default=-1) + 1
    total = np.zeros(count)
    holders: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for words, number in zip(texts, numbers, strict=True):
        for start in range(len(words) - n + 1):
            total[number] += 1
            holders[tuple(words[start : start + n])].add(number)
    if not total.sum():
        return Estimate(None, None, None)
    # What goes with a group are the n-grams that it alone has.
    alone = Counter(next(iter(owners)) for owners in holders.values() if len(owners) == 1)
    own = np.array([alone[number] for number in range(count)], dtype=np.float64)
    value = len(holders) / float(total.sum())
    rest = total.sum() - total
    if count < 2 or not (rest > 0).all():
        return Estimate(value, None, None)
    without = (len(holders) - own) / rest
    error = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    return Estimate(value, max(0.0, value - _Z * error), min(1.0, value + _Z * error))


@dataclass(frozen=True)
class Changed:
    """Rows of a round next to those of an earlier one, by key: in both, in the new one alone, in the old one alone; `share`: of the rows
    in both, those whose answer has other words."""

    both: int
    new: int
    gone: int
    changed: int
    share: Estimate


def changed(before: Sequence[RowFacts], now: Sequence[RowFacts], seed: int = 0) -> Changed:
    """Compares answers by their words. A key that comes twice in a round (the same question of a picture) is taken in order."""
    old, new = _numbered(before), _numbered(now)
    shared = [key for key in new if key in old]
    differ = [float(old[key].words != new[key].words) for key in shared]
    share = Estimate(None, None, None)
    if shared:
        sums = group_sums(np.column_stack([differ, np.ones(len(differ))]), [new[key].group for key in shared])
        share = pooled(sums, lambda s: {"share": s[..., 0] / s[..., 1]}, seed)["share"]
    return Changed(len(shared), len(new) - len(shared), len(old) - len(shared), int(sum(differ)), share)


def _numbered(rows: Sequence[RowFacts]) -> Mapping[tuple[Hashable, int], RowFacts]:
    seen: Counter[Hashable] = Counter()
    found = {}
    for row in rows:
        found[row.key, seen[row.key]] = row
        seen[row.key] += 1
    return found
