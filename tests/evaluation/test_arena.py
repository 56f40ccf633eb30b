"""Ratings against hand-computed values and against strengths that made the battles."""

import itertools
import math
import random

import numpy as np
import pytest

from drive_vlm.evaluation.arena import (
    Battle,
    bradley_terry,
    elo,
    elo_over_orders,
    exact_share,
    expected_score,
    length_bias,
    position_bias,
    win_rate,
    win_rates,
)

STRENGTHS = {"sft": 1000.0, "round1": 1060.0, "round2": 1110.0, "round3": 1095.0, "direct": 735.0}


def simulated(n: int, seed: int, ties: float = 0.2) -> list[Battle]:
    """Battles whose expected score is that of STRENGTHS: a tie with chance `ties` times what takes from both ends alike."""
    generator = np.random.default_rng(seed)
    pairs = list(itertools.combinations(STRENGTHS, 2))
    battles = []
    for first, second in (pairs[i] for i in generator.integers(0, len(pairs), n)):
        score = expected_score(STRENGTHS[first], STRENGTHS[second])
        tie = ties * min(score, 1 - score)
        draw = generator.random()
        battles.append(Battle(first, second, 1.0 if draw < score - tie / 2 else 0.5 if draw < score + tie / 2 else 0.0))
    return battles


def test_ten_thousand_battles_give_the_strengths_back():
    ratings = bradley_terry(simulated(10_000, seed=0))
    assert np.mean([rating.rating for rating in ratings.values()]) == pytest.approx(1000)
    for name, rating in ratings.items():
        assert rating.low < STRENGTHS[name] < rating.high, (name, rating)
        assert 10 < rating.high - rating.low < 40


def test_intervals_cover_as_often_as_they_say():
    inside = 0
    for seed in range(40):
        ratings = bradley_terry(simulated(2_000, seed=100 + seed), resamples=300)
        inside += sum(rating.low < STRENGTHS[name] < rating.high for name, rating in ratings.items())
    assert 0.90 <= inside / (40 * len(STRENGTHS)) <= 0.99  # 95 % of 200, which are not independent


def test_elo_recovers_the_strengths_of_many_battles():
    over_orders = elo_over_orders(simulated(10_000, seed=1), orders=30)
    for name, strength in STRENGTHS.items():
        assert over_orders[name].rating == pytest.approx(strength, abs=25)
        assert over_orders[name].low < over_orders[name].rating < over_orders[name].high


def test_order_of_battles_does_not_matter_for_bradley_terry_and_does_for_elo():
    battles = simulated(500, seed=2)
    shuffled = random.Random(0).sample(battles, len(battles))
    mirrored = [Battle(b.second, b.first, 1 - b.score) for b in shuffled]
    expected = bradley_terry(battles, resamples=0)
    for again in (shuffled, mirrored):
        for name, rating in bradley_terry(again, resamples=0).items():
            assert rating.rating == pytest.approx(expected[name].rating, abs=1e-4)
    assert any(abs(elo(shuffled)[name] - value) > 1 for name, value in elo(battles).items())


def test_elo_by_hand():
    after_one = elo([Battle("a", "b", 1.0)])
    assert after_one == {"a": 1002.0, "b": 998.0}  # expected 0.5, k 4
    expected = 1 / (1 + 10 ** ((998 - 1002) / 400))  # 0.505756
    after_two = elo([Battle("a", "b", 1.0), Battle("b", "a", 1.0)])
    assert after_two["b"] == pytest.approx(998 + 4 * expected) == pytest.approx(1000.023, abs=1e-3)
    after_tie = elo([Battle("a", "b", 1.0), Battle("a", "b", 0.5)])
    assert after_tie["a"] == pytest.approx(1002 + 4 * (0.5 - expected))
    assert sum(after_two.values()) == pytest.approx(2000)


def test_bradley_terry_of_two_models_is_the_logit_of_the_win_rate():
    battles = [Battle("a", "b", 1.0)] * 700 + [Battle("a", "b", 0.0)] * 250 + [Battle("b", "a", 0.5)] * 50
    ratings = bradley_terry(battles, l2=1e-9, resamples=0)
    assert ratings["a"].rating - ratings["b"].rating == pytest.approx(400 * math.log10(0.725 / 0.275), abs=1e-3)


@pytest.mark.slow
def test_agrees_with_logistic_regression():
    sklearn = pytest.importorskip("sklearn.linear_model")
    battles, names = simulated(400, seed=3), list(STRENGTHS)
    rows, labels, weights = [], [], []
    for battle in battles:
        row = np.zeros(len(names))
        row[names.index(battle.first)], row[names.index(battle.second)] = 1, -1
        rows += [row, row]
        labels += [1, 0]
        weights += [battle.score, 1 - battle.score]
    fit = sklearn.LogisticRegression(fit_intercept=False, C=1 / 0.1, tol=1e-10, max_iter=1000)
    fit.fit(rows, labels, sample_weight=weights)
    ours = bradley_terry(battles, l2=0.1, resamples=0)
    for name, value in zip(names, fit.coef_[0], strict=True):
        assert ours[name].rating == pytest.approx(1000 + 400 / math.log(10) * value, abs=0.01)


@pytest.mark.slow
def test_an_unbeaten_model_stays_finite():
    battles = [Battle("best", "a", 1.0)] * 100 + [Battle("a", "b", 1.0)] * 30 + [Battle("b", "a", 1.0)] * 30
    ratings = bradley_terry(battles)
    assert 1300 < ratings["best"].rating < 2500 and math.isfinite(ratings["best"].high)
    assert ratings["best"].low > ratings["a"].high
    half = bradley_terry([Battle("best", "a", 1.0)] * 1_000_000, resamples=10)
    assert math.isfinite(half["best"].rating)


def test_an_unbeaten_model_has_an_interval():
    """Of two models with G wins of G: var(t) = 1 / (2 (2 G p (1 - p) + l2)) at the penalised fit."""
    for n in (5, 20):
        best = bradley_terry([Battle("best", "a", 1.0)] * n)["best"]
        p = expected_score(best.rating, 2000 - best.rating)
        spread = 1.959964 * math.sqrt(0.5 / (2 * n * p * (1 - p) + 0.1)) * 400 / math.log(10)
        assert (best.low, best.high) == (pytest.approx(best.rating - spread), pytest.approx(best.rating + spread))
        assert (best.low < 1000) == (n == 5)  # 5 of 5 is no proof: exact two-sided p 0.0625
    alone = bradley_terry([Battle("best", "a", 1.0, group=str(i)) for i in range(20)])["best"]
    copied = bradley_terry([Battle("best", "a", 1.0, group="one")] * 20)["best"]
    assert alone.low == pytest.approx(best.low) and copied.low < 1000 < alone.low
    rest = [Battle("a", "b", float(i % 3 > 0)) for i in range(30)]
    third = bradley_terry([*[Battle("best", "a", 1.0)] * 5, *rest])
    width = {name: rating.high - rating.low for name, rating in third.items()}
    assert width["best"] > 1.5 * width["b"] and third["best"].low < third["a"].high


def test_groups_widen_the_intervals():
    alone = simulated(1000, seed=4)
    copied = [Battle(b.first, b.second, b.score, group=str(i)) for i, b in enumerate(alone) for _ in range(5)]
    width = {}
    for name, battles in {"alone": alone, "copied": copied}.items():
        rating = bradley_terry(battles)["sft"]
        width[name] = rating.high - rating.low
    assert width["copied"] == pytest.approx(width["alone"], rel=0.15)


def test_models_that_never_met_are_refused():
    with pytest.raises(ValueError, match="c, d never met a, b"):
        bradley_terry([Battle("a", "b", 1.0), Battle("c", "d", 1.0)])
    with pytest.raises(ValueError, match="needs battles"):
        bradley_terry([])


def test_win_rate_counts_a_tie_as_half():
    rate = win_rate([1.0, 1.0, 0.5, 0.0])
    assert (rate.n, rate.wins, rate.ties, rate.losses, rate.rate) == (4, 2, 1, 1, 0.625)
    assert rate.low <= 0.625 <= rate.high


def test_equal_scores_still_have_an_interval():
    rate = win_rate([1.0] * 20)
    assert rate.rate == rate.high == 1 and rate.low == pytest.approx(0.025 ** (1 / 20))  # exact binomial bound, 0.832
    tied = win_rate([0.5] * 20)
    assert tied.low == pytest.approx(0.5 * 0.025 ** (1 / 20)) and tied.high == pytest.approx(1 - tied.low)
    assert win_rate([1.0] * 20, ["one"] * 10 + ["two"] * 10).low == pytest.approx(0.025**0.5)


def test_win_rates_both_ways():
    rates = win_rates([Battle("a", "b", 1.0), Battle("b", "a", 0.5), Battle("a", "c", 0.0)])
    assert rates["a"]["b"].rate == 0.75 and rates["b"]["a"].rate == 0.25
    assert rates["c"]["a"].rate == 1.0 and "c" not in rates["b"]


def test_biases():
    same = [("first", "second")] * 6 + [("tie", "tie")]
    biased = [("first", "first")] * 2 + [("second", "second")] + [("first", "tie")]
    shares = position_bias(same + biased)
    assert shares["agree"].n == 11 and shares["agree"].share == pytest.approx(7 / 11)
    assert shares["first"].n == 3 and shares["first"].share == pytest.approx(2 / 3)
    assert math.isnan(position_bias([])["first"].share) and position_bias([])["first"].to_dict()["share"] is None
    longer = length_bias([(10, 5), (9, 3), (2, 8), (4, 4)])
    assert (longer.n, longer.share) == (3, pytest.approx(2 / 3))


def test_exact_share_against_a_table():
    share = exact_share(8, 10)  # Clopper-Pearson 8 of 10: 0.4439, 0.9748
    assert (share.low, share.high) == (pytest.approx(0.4439, abs=1e-4), pytest.approx(0.9748, abs=1e-4))
