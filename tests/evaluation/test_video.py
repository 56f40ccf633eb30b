"""Pooled object scores, CHAIR and length adherence against counts done by hand."""

import math
import tracemalloc

import numpy as np
import pytest

from drive_vlm.evaluation import statistics
from drive_vlm.evaluation.statistics import Estimate
from drive_vlm.evaluation.video import length_adherence, pooled_differences, pooled_scores

# claims, verified, found, wanted: one right, one half wrong, one that says nothing
COUNTS = np.array([[2, 2, 2, 3], [2, 1, 1, 1], [0, 0, 0, 2]])


def values(scores):
    return {name: entry.value for name, entry in scores.items()}


def test_pooled_scores_by_hand():
    scores = pooled_scores(COUNTS, ["a", "b", "c"])
    assert values(scores) == pytest.approx(
        {"precision": 3 / 4, "recall": 3 / 6, "f1": 2 * 0.75 * 0.5 / 1.25, "chair_i": 1 / 4, "chair_s": 1 / 3}
    )
    for entry in scores.values():
        assert entry.low <= entry.value <= entry.high
    assert pooled_scores(COUNTS, ["a", "b", "c"]) == scores  # seeded


def test_nothing_claimed_and_nothing_wanted_are_undefined_not_zero():
    silent = values(pooled_scores(np.array([[0, 0, 0, 2]]), ["a"]))
    assert silent == {"precision": None, "recall": 0, "f1": None, "chair_i": None, "chair_s": 0}
    wrong = values(pooled_scores(np.array([[2, 0, 0, 2]]), ["a"]))
    assert wrong == {"precision": 0, "recall": 0, "f1": 0, "chair_i": 1, "chair_s": 1}
    assert pooled_scores(COUNTS[:1], ["a"])["f1"].low is None  # one group has no interval


def test_whole_groups_are_drawn():
    """Two groups with equal sums have no spread between them, however different their texts are."""
    counts = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]])
    tight = pooled_scores(counts, ["a", "a", "b", "b"])["precision"]
    assert (tight.low, tight.value, tight.high) == (0.5, 0.5, 0.5)
    wide = pooled_scores(counts, ["a", "b", "c", "d"])["precision"]
    assert wide.low == 0 and wide.high == 1


def test_differences_are_paired():
    better = COUNTS + np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0]])
    change = pooled_differences(COUNTS, better, ["a", "b", "c"])
    assert change["precision"].value == pytest.approx(1 - 3 / 4) and change["recall"].value == pytest.approx(2 / 6)
    assert change["chair_s"].value == pytest.approx(-1 / 3)
    same = pooled_differences(COUNTS, COUNTS, ["a", "b", "c"])
    assert same["f1"] == Estimate(0.0, 0.0, 0.0)


def test_many_videos_are_drawn_in_blocks_with_the_same_result(monkeypatch):
    counts = np.minimum(np.random.default_rng(0).integers(0, 4, size=(5000, 4)), [4, 0, 2, 4])
    tracemalloc.start()
    scores = pooled_scores(counts, range(5000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6, f"{peak / 1e6:.0f} MB; the draws of all columns at once take 560"
    words = {i: 5 + i % 7 for i in range(51)}
    few = [pooled_scores(counts[:51], range(51)), length_adherence(words, dict.fromkeys(words, 4), words)]
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 51 * 7)
    assert [pooled_scores(counts[:51], range(51)), length_adherence(words, dict.fromkeys(words, 4), words)] == few
    assert scores["recall"].low < scores["recall"].value < scores["recall"].high


def test_the_interval_of_the_median_is_that_of_the_drawn_lists():
    rng = np.random.default_rng(4)
    detailed, concise = ({i: int(n) for i, n in enumerate(rng.integers(0, 30, 41))} for _ in range(2))
    groups = {i: i // 3 for i in range(41)}
    lists = [[i for i in range(41) if groups[i] == group and detailed[i]] for group in range(14)]
    drawn = [
        [concise[i] / detailed[i] for group in row for i in lists[group]] for b in statistics.draws(14, 5) for row in b
    ]
    low, high = np.quantile([np.median(ratios) for ratios in drawn], [0.025, 0.975])
    ratio = length_adherence(detailed, concise, groups, seed=5).ratio
    assert (ratio.low, ratio.high) == pytest.approx((low, high)) and ratio.low < ratio.value < ratio.high


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        pooled_scores(np.zeros((0, 4)), [])
    with pytest.raises(ValueError, match="2 groups for 3 samples"):
        pooled_scores(COUNTS, ["a", "b"])


def test_adherence_by_hand():
    detailed = {"a": 10, "b": 20, "c": 10, "d": 30, "e": 0}
    concise = {"a": 5, "b": 5, "c": 12, "e": 3, "f": 1}
    found = length_adherence(detailed, concise, {video: video for video in "abcdef"})
    assert (found.pairs, found.unpaired, found.silent) == (4, 2, 1)  # d and f stand alone
    assert found.ratio.value == 0.5  # of 0.5, 0.25 and 1.2; e has none
    assert (found.shorter.value, found.half.value) == (0.5, 0.5)
    assert found.shorter.low == 0 and found.shorter.high == 1
    none = length_adherence({"a": 3}, {"b": 2}, {"a": 1, "b": 2})
    assert none.pairs == 0 and none.ratio == Estimate(None, None, None)


def test_numbers_are_plain_floats_for_json():
    for entry in pooled_scores(COUNTS, ["a", "b", "c"]).values():
        assert type(entry.value) is float and not math.isnan(entry.value)
