"""Intervals on data whose answer is known."""

import json
import math

import numpy as np
import pytest

from drive_vlm.evaluation.statistics import bootstrap_interval, paired_difference, summarize


def test_summary_of_known_values():
    summary = summarize([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (summary.n, summary.groups, summary.mean) == (5, 5, 3.0)
    assert summary.sd == pytest.approx(math.sqrt(2.5))
    quantiles = (summary.q05, summary.q25, summary.q50, summary.q75, summary.q95)
    assert quantiles == pytest.approx((1.2, 2, 3, 4, 4.8))
    assert summary.low < 3.0 < summary.high


def test_interval_agrees_with_normal_theory():
    values = np.random.default_rng(3).normal(10.0, 2.0, size=4000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(4000)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_agrees_with_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(5).exponential(size=60)
    theirs = bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=0).confidence_interval
    low, high = bootstrap_interval(values, resamples=9999)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_interval_is_seeded():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_copies_of_a_group_do_not_narrow_the_interval():
    """Six equal answers about one picture are one observation: the interval must stay that of the pictures."""
    pictures = np.random.default_rng(1).random(40)
    copied, groups = np.repeat(pictures, 6), np.repeat(np.arange(40), 6)
    assert bootstrap_interval(copied, groups) == pytest.approx(bootstrap_interval(pictures))
    naive = bootstrap_interval(copied)
    low, high = bootstrap_interval(copied, groups)
    assert high - low > 2 * (naive[1] - naive[0])


def test_groups_of_different_size_weigh_by_samples():
    summary = summarize([1.0, 1.0, 1.0, 0.0], groups=["a", "a", "a", "b"])
    assert (summary.mean, summary.groups, summary.low, summary.high) == (0.75, 2, 0.0, 1.0)


def test_one_group_has_no_interval_and_json_says_null():
    summary = summarize([0.5, 0.7], groups=["a", "a"])
    assert math.isnan(summary.low)
    assert json.loads(json.dumps(summary.to_dict(), allow_nan=False))["low"] is None


def test_paired_difference_sees_what_two_intervals_do_not():
    easy_and_hard = np.random.default_rng(2).normal(0, 10, size=300)
    change = paired_difference(easy_and_hard, easy_and_hard + 0.5)
    assert (change.difference, change.low, change.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (change.wins, change.ties, change.losses) == (300, 0, 0)
    first, second = summarize(easy_and_hard), summarize(easy_and_hard + 0.5)
    assert first.high > second.low


def test_paired_difference_counts_by_hand():
    change = paired_difference([1, 0, 1, 0], [1, 1, 0, 1])
    assert (change.wins, change.ties, change.losses, change.difference) == (2, 1, 1, 0.25)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0]]])
def test_useless_values_are_refused(values):
    with pytest.raises(ValueError, match="score"):
        summarize(values)


def test_lengths_must_match():
    with pytest.raises(ValueError, match="2 and 3"):
        paired_difference([1, 2], [1, 2, 3])
