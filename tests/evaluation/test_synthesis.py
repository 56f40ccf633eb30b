"""Figures of a round, against values by hand and a jackknife and bootstrap written another way."""

import math

import numpy as np
import pytest

from drive_vlm.evaluation.statistics import bootstrap_interval
from drive_vlm.evaluation.synthesis import RowFacts, changed, distinct_n, figures


def facts(key, words, group="g", claims=0, false=0):
    return RowFacts(key, group, tuple(words.split()), claims, false)


def test_distinct_by_hand():
    texts = [["a", "b", "a"], ["a", "b"], ["c"]]
    # Words: a b a a b c; pairs: ab ba ab.
    assert distinct_n(texts, ["g"] * 3, 1).value == 3 / 6
    assert distinct_n(texts, ["g"] * 3, 2).value == 2 / 3
    assert distinct_n([["a"]], ["g"], 2).value is None
    one = distinct_n(texts, ["g"] * 3, 1)
    assert one.low is None and one.high is None


def test_the_jackknife_leaves_out_one_group_at_a_time():
    rng = np.random.default_rng(0)
    texts = [[f"w{value}" for value in rng.integers(0, 12, size=rng.integers(2, 6))] for _ in range(20)]
    groups = [f"g{i // 3}" for i in range(20)]
    names = sorted(set(groups))

    def ratio(kept):
        words = [word for text, group in zip(texts, groups, strict=True) if group in kept for word in text]
        return len(set(words)) / len(words)

    without = np.array([ratio(set(names) - {name}) for name in names])
    error = math.sqrt((len(names) - 1) * np.mean((without - without.mean()) ** 2))
    found = distinct_n(texts, groups, 1)
    assert found.value == pytest.approx(ratio(set(names)))
    assert found.low == pytest.approx(found.value - 1.959964 * error)
    assert found.high == pytest.approx(min(1.0, found.value + 1.959964 * error))


def test_rates_are_pooled_over_claims_and_over_rows():
    rows = [facts(1, "a b c", "x", 4, 1), facts(2, "a", "y", 1, 1), facts(3, "a b", "y", 0, 0)]
    found = figures(rows)
    assert found["hallucinated"].value == 2 / 5
    assert found["rows_hallucinated"].value == pytest.approx(2 / 3)
    assert found["answer_words"].value == 2
    assert (found["answer_words"].low, found["answer_words"].high) == bootstrap_interval([3, 1, 2], ["x", "y", "y"])


def test_without_claims_the_rate_is_undefined_and_not_zero():
    found = figures([facts(1, "a"), facts(2, "b", "h")])
    assert found["hallucinated"].value is None and found["rows_hallucinated"].value == 0
    with pytest.raises(ValueError, match="no rows"):
        figures([])


def test_changed_rows_are_found_by_key():
    before = [facts("p", "a car"), facts("q", "a bus"), facts("r", "a dog"), facts("s", "no")]
    now = [facts("q", "a bus", "h"), facts("p", "two cars"), facts("r", "a cat", "h"), facts("t", "yes")]
    found = changed(before, now)
    assert (found.both, found.new, found.gone, found.changed) == (3, 1, 1, 2)
    assert found.share.value == pytest.approx(2 / 3)
    none = changed([facts("p", "a")], [facts("q", "a")])
    assert (none.both, none.share.value) == (0, None)


def test_a_key_that_comes_twice_is_compared_in_order():
    before = [facts("p", "a"), facts("p", "b")]
    assert changed(before, [facts("p", "a"), facts("p", "b")]).changed == 0
    assert changed(before, [facts("p", "b"), facts("p", "a")]).changed == 2
    assert changed(before, [facts("p", "a")]).gone == 1
