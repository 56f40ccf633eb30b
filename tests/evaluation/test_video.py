"""Pooled object scores, CHAIR and length adherence against counts done by hand."""

import math

import numpy as np
import pytest

from drive_vlm.evaluation.video import Estimate, length_adherence, pooled_differences, pooled_scores

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


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        pooled_scores(np.zeros((0, 4)), [])
    with pytest.raises(ValueError, match="2 groups for 3 texts"):
        pooled_scores(COUNTS, ["a", "b"])


def test_adherence_by_hand():
    detailed = {"a": 10, "b": 20, "c": 10, "d": 30, "e": 0}
    concise = {"a": 5, "b": 5, "c": 12, "e": 3, "f": 1}
    found = length_adherence(detailed, concise, {video: video for video in "abcdef"})
    assert (found.videos, found.unpaired, found.silent) == (4, 2, 1)  # d and f stand alone
    assert found.ratio.value == 0.5  # of 0.5, 0.25 and 1.2; e has none
    assert (found.shorter.value, found.half.value) == (0.5, 0.5)
    assert found.shorter.low == 0 and found.shorter.high == 1
    none = length_adherence({"a": 3}, {"b": 2}, {"a": 1, "b": 2})
    assert none.videos == 0 and none.ratio == Estimate(None, None, None)


def test_numbers_are_plain_floats_for_json():
    for entry in pooled_scores(COUNTS, ["a", "b", "c"]).values():
        assert type(entry.value) is float and not math.isnan(entry.value)
