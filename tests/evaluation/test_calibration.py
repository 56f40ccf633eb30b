"""Calibration of a probability: the reference's golden numbers, sums by hand, bins with equal values, risk and coverage."""

import numpy as np
import pytest

from drive_vlm.evaluation.calibration import (
    area_under_risk,
    calibration,
    equal_mass,
    equal_width,
    reliability,
    risk_coverage,
)

P = [0.9, 0.8, 0.4, 0.7, 0.2, 0.1, 0.6, 0.3, 0.2, 0.1]
Y = [True] * 4 + [False] * 6


def test_golden_numbers() -> None:
    found = calibration(P, Y, list("aabbccddee"), bins=5)
    values = {name: rate.value for name, rate in found.items()}
    assert values["AUROC"] == pytest.approx(0.958333, abs=1e-6)
    assert values["Brier"] == pytest.approx(0.105, abs=1e-12)
    assert values["ECE_width"] == pytest.approx(0.21, abs=1e-12)
    assert all(rate.n == 10 and rate.low <= rate.value <= rate.high for rate in found.values())


def test_pairs_and_squares_by_hand_with_equal_values() -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        p, y = generator.integers(0, 9, 40) / 8, generator.random(40) < 0.5
        found = calibration(p, y, list(map(str, range(40))))
        pairs = [(a > b) + 0.5 * (a == b) for a in p[y] for b in p[~y]]
        assert found["AUROC"].value == pytest.approx(np.mean(pairs), abs=1e-12)
        assert found["Brier"].value == pytest.approx(np.mean((p - y) ** 2), abs=1e-12)
        bins = [p[equal_mass(p) == i] for i in range(10)], [y[equal_mass(p) == i] for i in range(10)]
        gaps = [abs(a.sum() - b.sum()) for a, b in zip(*bins, strict=True)]
        assert found["ECE_mass"].value == pytest.approx(sum(gaps) / 40, abs=1e-12)


def test_bins() -> None:
    assert equal_width(np.array([0, 0.2, 0.2000001, 0.4, 1.0]), 5).tolist() == [0, 0, 1, 1, 4]
    assert equal_mass(np.arange(20) / 20, 10).tolist() == [i // 2 for i in range(20)]
    # Rows of one p stay together.
    p = np.array([0.0] * 15 + [0.5] * 3 + [1.0] * 2)
    assert len(np.unique(equal_mass(p)[:15])) == 1
    assert [(item.n, item.p) for item in reliability(p, [False] * 20)] == [(15, 0.0), (3, 0.5), (2, 1.0)]


def test_a_sure_and_right_system_is_calibrated() -> None:
    found = calibration([1.0, 1.0, 0.0, 0.0], [True, True, False, False], list("abcd"))
    assert [found[name].value for name in ("ECE_mass", "ECE_width", "Brier", "AUROC")] == [0, 0, 0, 1]
    # A single kind of row has no pair to compare.
    assert calibration([0.5, 0.5], [True, True], ["a", "b"])["AUROC"].value is None


def test_risk_grows_with_coverage_where_p_knows() -> None:
    points = risk_coverage([0.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0, 1.0])
    assert [(item.p, item.coverage, item.risk) for item in points] == [(0, 0.5, 0.5), (0.5, 0.75, 2 / 3)]
    assert area_under_risk(points) == pytest.approx((0.5 * 0.5 + 0.25 * 2 / 3) / 0.75)
    assert risk_coverage([1.0], [1.0]) == [] and area_under_risk([]) is None
