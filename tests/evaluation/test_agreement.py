"""Agreement beyond chance: the reference's golden numbers, sums by hand, single labels, rows of two systems."""

import math

import numpy as np
import pytest

from drive_vlm.evaluation.agreement import agreement, kappa, mcnemar

HUMAN, JUDGE = [4, 4, 3, 1, 2, 4, 1, 3], [4, 3, 3, 1, 1, 4, 2, 3]


def test_golden_numbers() -> None:
    assert kappa(HUMAN, JUDGE) == pytest.approx(0.489362, abs=1e-6)
    assert kappa(HUMAN, JUDGE, quadratic=True) == pytest.approx(0.860465, abs=1e-6)
    found = agreement(HUMAN, JUDGE, list("aabbccdd"), quadratic=True)
    assert found["exact"].value == 0.625 and found["exact"].n == 8
    assert found["kappa"].value == pytest.approx(0.860465, abs=1e-6)
    assert found["kappa"].low < 0.860465 < found["kappa"].high <= 1


def test_by_hand() -> None:
    """1 - (share of disagreement) / (that of two raters who guess by their own frequencies), pair by pair."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        first, second = generator.integers(1, 5, (2, 30)).tolist()
        for quadratic in (False, True):
            cost = (lambda a, b: (a - b) ** 2) if quadratic else (lambda a, b: a != b)
            seen = np.mean([cost(a, b) for a, b in zip(first, second, strict=True)])
            chance = np.mean([cost(a, b) for a in first for b in second])
            assert kappa(first, second, quadratic) == pytest.approx(1 - seen / chance, abs=1e-12)


def test_one_label_alone_says_nothing() -> None:
    assert math.isnan(kappa(["pass", "pass"], ["pass", "pass"]))
    found = agreement(["pass", "pass"], ["pass", "pass"], ["a", "b"])
    assert found["kappa"].value is None and found["exact"].value == 1
    assert agreement([], [], [])["kappa"].n == 0


def test_mcnemar() -> None:
    first = [True] * 9 + [False] * 1 + [True] * 5
    second = [False] * 9 + [True] * 1 + [True] * 5
    found = mcnemar(first, second)
    assert (found.n, found.only_first, found.only_second) == (15, 9, 1)
    # 2 (C(10, 0) + C(10, 1)) / 2^10
    assert found.p == pytest.approx(22 / 1024)
    assert mcnemar([True] * 3, [True] * 3).p == 1
    assert 0 < mcnemar([True] * 1200 + [False] * 1100, [False] * 1200 + [True] * 1100).p < 0.05
