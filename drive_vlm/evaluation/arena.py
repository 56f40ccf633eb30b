"""Battles between models -> win rates, Elo, Bradley-Terry ratings with intervals, and the judge's biases.

Ratings are in Elo points: base 10, scale 400, so that 400 points are odds of 10 to 1 (Elo 1978, with the constants of
FastChat's rating systems). A tie is half a win for both. Several battles about one picture are not independent: give
`group` and the bootstrap draws whole groups.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from drive_vlm.evaluation.statistics import CONFIDENCE, Result, bootstrap_interval, interval

BASE, SCALE, START, K = 10.0, 400.0, 1000.0, 4.0
L2 = 0.1
# Newton steps of a fit at most, and the gradient that ends it, as a share of the battles.
_STEPS, _TOLERANCE = 200, 1e-8
# Elo points of one unit of log odds.
_POINTS = SCALE / math.log(BASE)


@dataclass(frozen=True)
class Battle:
    """`score` of `first` against `second`: 1 won, 0.5 tie, 0 lost. Battles of one `group` are not independent."""

    first: str
    second: str
    score: float
    group: str | None = None


@dataclass(frozen=True)
class WinRate(Result):
    """(wins + ties / 2) / n of one model against another or against all, with its 95 % interval."""

    n: int
    wins: int
    ties: int
    losses: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Rating(Result):
    """A rating in Elo points with its 95 % interval."""

    rating: float
    low: float
    high: float


@dataclass(frozen=True)
class Share(Result):
    """`share` of `n` cases, with its exact 95 % interval (Clopper and Pearson 1934); 0.5 means no bias. NaN without cases."""

    n: int
    share: float
    low: float
    high: float


def models_of(battles: Iterable[Battle]) -> list[str]:
    """The models in the order of their first battle."""
    return list(dict.fromkeys(name for battle in battles for name in (battle.first, battle.second)))


def win_rate(scores: Sequence[float], groups: Sequence[str | None] | None = None, seed: int = 0) -> WinRate:
    """Win rate of `scores` (1, 0.5, 0), its interval by the bootstrap over `groups`.

    Where all scores are equal the bootstrap has no spread. Then, with G groups and q = 1 - (0.05 / 2)^(1/G), the share of
    other outcomes that G equal ones do not rule out, the interval is [rate (1 - q), rate + (1 - rate) q].
    Raises ValueError without scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    rate = float(values.mean()) if len(values) else math.nan
    units = [i if group is None else group for i, group in enumerate(groups or [None] * len(values))]
    if len(values) and np.ptp(values) == 0:
        other = 1 - ((1 - CONFIDENCE) / 2) ** (1 / len(set(units)))
        low, high = rate * (1 - other), rate + (1 - rate) * other
    else:
        low, high = bootstrap_interval(values, units, seed)
    wins, ties, losses = (int((values == value).sum()) for value in (1.0, 0.5, 0.0))
    return WinRate(len(values), wins, ties, losses, rate, low, high)


def win_rates(battles: Sequence[Battle], seed: int = 0) -> dict[str, dict[str, WinRate]]:
    """rates[model][other]: win rate of every model against each model that it met, both ways."""
    met: dict[tuple[str, str], list[tuple[float, str | None]]] = {}
    for battle in battles:
        met.setdefault((battle.first, battle.second), []).append((battle.score, battle.group))
        met.setdefault((battle.second, battle.first), []).append((1 - battle.score, battle.group))
    names = models_of(battles)
    return {
        name: {
            other: win_rate([score for score, _ in met[name, other]], [group for _, group in met[name, other]], seed)
            for other in names
            if (name, other) in met
        }
        for name in names
    }


def elo(battles: Iterable[Battle]) -> dict[str, float]:
    """Elo ratings after the battles in their order: each moves the winner up by K (score - expected score)."""
    ratings: dict[str, float] = {}
    for battle in battles:
        first, second = (ratings.setdefault(name, START) for name in (battle.first, battle.second))
        expected = expected_score(first, second)
        ratings[battle.first] = first + K * (battle.score - expected)
        ratings[battle.second] = second - K * (battle.score - expected)
    return ratings


def elo_over_orders(battles: Sequence[Battle], orders: int = 100, seed: int = 0) -> dict[str, Rating]:
    """Mean Elo over shuffled orders of the same battles, with the 95 % range that the order alone makes."""
    generator = np.random.default_rng(seed)
    runs = [elo(battles[i] for i in generator.permutation(len(battles))) for _ in range(orders)]
    values = {name: np.array([run[name] for run in runs]) for name in models_of(battles)}
    return {name: Rating(float(found.mean()), *interval(found)) for name, found in values.items()}


def bradley_terry(battles: Sequence[Battle], l2: float = L2, resamples: int = 1000, seed: int = 0) -> dict[str, Rating]:
    """Bradley-Terry ratings by penalised maximum likelihood, mean START, with 95 % intervals.

    P(i beats j) = 1 / (1 + exp(t_j - t_i)); minimised is -log likelihood + l2 / 2 * sum(t^2), which keeps an unbeaten
    model finite. The order of the battles does not matter. The interval holds two: that of the bootstrap, multinomial over
    the distinct outcomes, or over groups where battles have one, and rating +- 1.96 standard deviations by the Fisher
    information of the penalised fit. The bootstrap alone has no spread for a model that won, or lost, every battle.
    Raises ValueError without battles, for l2 <= 0, and for models that no chain of battles connects.
    """
    names = models_of(battles)
    if not battles or l2 <= 0:
        raise ValueError(f"Bradley-Terry needs battles and l2 > 0, got {len(battles)} battles and l2 {l2:g}")
    _check_connected(battles, names)
    units, weights = _units(battles, names)
    point = _fit((weights @ units).reshape(1, len(names), len(names)), l2)[0]
    total = int(weights.sum())
    drawn = np.random.default_rng(seed).multinomial(total, weights / total, size=resamples)
    runs = _fit((drawn @ units).reshape(resamples, len(names), len(names)), l2)
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(runs, [tail, 1 - tail], axis=0) if resamples else np.full((2, len(names)), math.nan)
    spread = NormalDist().inv_cdf(1 - tail) * _deviations(point, _evidence(battles, names), l2)
    ends = np.minimum(ends[0], point - spread), np.maximum(ends[1], point + spread)
    rows = START + _POINTS * np.stack([point, *ends], axis=1)
    return {name: Rating(*map(float, row)) for name, row in zip(names, rows, strict=True)}


def expected_score(rating: float, other: float) -> float:
    """Expected score of a model with `rating` against one with `other`, in Elo points."""
    return 1 / (1 + BASE ** ((other - rating) / SCALE))


def _check_connected(battles: Sequence[Battle], names: Sequence[str]) -> None:
    met = {(battle.first, battle.second) for battle in battles}
    reached, new = set[str](), {names[0]}
    while new:
        reached |= new
        new = {name for pair in met if not reached.isdisjoint(pair) for name in pair} - reached
    if left := [name for name in names if name not in reached]:
        raise ValueError(
            f"{', '.join(left)} never met {', '.join(sorted(reached))}, not even through others: their ratings cannot "
            "be compared; judge more pairs"
        )


def _units(battles: Sequence[Battle], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What the bootstrap draws: wins float[U, M * M] of each unit (row i, column j: of i over j) and its count float[U]."""
    place = {name: i for i, name in enumerate(names)}
    units: dict[Any, np.ndarray] = {}
    counts: Counter[Any] = Counter()
    for battle in battles:
        grouped, i, j = battle.group is not None, place[battle.first], place[battle.second]
        key = battle.group if grouped else (battle.first, battle.second, battle.score)
        wins = units[key] = units.get(key, np.zeros((len(names), len(names))))
        if grouped or not counts[key]:
            wins[i, j] += battle.score
            wins[j, i] += 1 - battle.score
        counts[key] = 1 if grouped else counts[key] + 1
    return np.stack([wins.ravel() for wins in units.values()]), np.array(list(counts.values()), dtype=float)


def _fit(wins: np.ndarray, l2: float) -> np.ndarray:
    """Log strengths float[R, M] (mean 0) of R tables of wins float[R, M, M], by damped Newton steps.

    A step p is shortened to log(1 + d) / d of its length, d = sqrt(2) |p|: this descends from anywhere, since the
    logistic loss is generalised self-concordant (Sun and Tran-Dinh 2019, section 4), and is a full step near the end.
    """
    played = wins + wins.transpose(0, 2, 1)
    theta = np.zeros(wins.shape[:2])
    eye = np.eye(wins.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(theta[:, None, :] - theta[:, :, None]))
        gradient = (wins - played * chance).sum(axis=2) - l2 * theta
        if np.abs(gradient).max(initial=0.0) <= _TOLERANCE * max(1.0, float(played.max(initial=0.0))):
            return theta
        curvature = played * chance * (1 - chance)
        hessian = curvature.sum(axis=2)[:, :, None] * eye - curvature + l2 * eye
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        distance = math.sqrt(2) * np.linalg.norm(step, axis=1, keepdims=True)
        theta = theta + step * np.where(distance > 0, np.log1p(distance) / np.maximum(distance, 1e-300), 1.0)
    raise AssertionError(f"Bradley-Terry did not converge in {_STEPS} steps")


def _evidence(battles: Sequence[Battle], names: Sequence[str]) -> np.ndarray:
    """How many independent battles each two models fought, float[M, M]: of a pair whose outcomes are all equal the groups,
    as in win_rate, else the battles, since groups are the bootstrap's to weigh."""
    place = {name: i for i, name in enumerate(names)}
    met: dict[tuple[int, int], list[tuple[float, Any]]] = {}
    for number, battle in enumerate(battles):
        i, j = place[battle.first], place[battle.second]
        score = battle.score if i < j else 1 - battle.score
        group = number if battle.group is None else battle.group
        met.setdefault((min(i, j), max(i, j)), []).append((score, group))
    counts = np.zeros((len(names), len(names)))
    for (i, j), outcomes in met.items():
        equal = len({score for score, _ in outcomes}) == 1
        counts[i, j] = counts[j, i] = len({group for _, group in outcomes}) if equal else len(outcomes)
    return counts


def _deviations(theta: np.ndarray, played: np.ndarray, l2: float) -> np.ndarray:
    """Standard deviations float[M] of log strengths float[M] with mean 0, from the curvature of the penalised likelihood."""
    # n p (1 - p) of each pair of models.
    weights = played / (2 * np.cosh((theta[None, :] - theta[:, None]) / 2)) ** 2
    centred = np.eye(len(theta)) - 1 / len(theta)
    information = np.diag(weights.sum(axis=1)) - weights + l2 * centred
    return np.sqrt(np.diag(np.linalg.pinv(information, rcond=1e-12, hermitian=True)))


def exact_share(successes: int, n: int) -> Share:
    """successes / n with its Clopper-Pearson interval."""
    if n == 0:
        return Share(0, math.nan, math.nan, math.nan)
    from scipy.stats import beta

    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return Share(n, successes / n, low, high)


def position_bias(verdicts: Iterable[tuple[str, str]]) -> Mapping[str, Share]:
    """Of pairs judged in both orders (each verdict "first", "second" or "tie" by place, not by model):

    `agree`: both orders name the same winner, or both a tie; `first`: among the pairs where the judge named the same
    place twice, how often it was the first (0.5: no preference for a place).
    """
    verdicts = list(verdicts)
    agree = sum(pair in (("first", "second"), ("second", "first"), ("tie", "tie")) for pair in verdicts)
    first, second = (verdicts.count((place, place)) for place in ("first", "second"))
    return {"agree": exact_share(agree, len(verdicts)), "first": exact_share(first, first + second)}


def length_bias(decided: Iterable[tuple[int, int]]) -> Share:
    """Of decided battles (length of the winner, length of the loser) with different lengths: how often the longer won."""
    different = [(winner, loser) for winner, loser in decided if winner != loser]
    return exact_share(sum(winner > loser for winner, loser in different), len(different))
