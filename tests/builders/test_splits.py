"""Splits by group: pure, stable under growth, near their shares; leaks are found and nothing else is."""

import subprocess
import sys
from collections import Counter

import pytest

from drive_vlm.builders.splits import Leak, assign_split, find_leaks

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
GOLDEN = ["val", "train", "train", "train", "train", "train", "train", "train", "train", "train", "train", "val"]


def test_a_group_keeps_its_split_in_another_process_and_as_the_data_grows():
    before = {f"scene-{i}": assign_split(f"scene-{i}", FRACTIONS, seed=3) for i in range(200)}
    assert before == {f"scene-{i}": assign_split(f"scene-{i}", FRACTIONS, seed=3) for i in reversed(range(200))}
    code = (
        "from drive_vlm.builders.splits import assign_split;"
        f"print([assign_split(f'scene-{{i}}', {FRACTIONS}, seed=3) for i in range(200)])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(list(before.values()))


def test_the_assignment_is_pinned():
    assert [assign_split(f"g{i}", FRACTIONS) for i in range(12)] == GOLDEN


def test_shares_are_met_within_four_standard_deviations_and_the_seed_matters():
    total = 100_000
    counts = Counter(assign_split(f"scene-0-{i:06d}", FRACTIONS) for i in range(total))
    for name, share in FRACTIONS.items():
        assert abs(counts[name] - total * share) < 4 * (total * share * (1 - share)) ** 0.5, counts
    moved = sum(assign_split(str(i), FRACTIONS, 0) != assign_split(str(i), FRACTIONS, 1) for i in range(2000))
    assert 400 < moved < 1000  # 1 - (0.8**2 + 2 * 0.1**2) = 34 % change


def test_an_empty_share_gets_nothing():
    assert {assign_split(str(i), {"train": 1.0, "val": 0.0}) for i in range(500)} == {"train"}


@pytest.mark.parametrize("fractions", [{"train": 0.8}, {"train": 1.2, "val": -0.2}, {}])
def test_wrong_fractions_are_refused(fractions):
    with pytest.raises(ValueError, match="split fractions must"):
        assign_split("scene", fractions)


def test_clean_splits_have_no_leak():
    rows = {
        "train": [{"id": "a1", "group": "a", "image": "1.jpg"}, {"id": "a2", "group": "a", "image": "1.jpg"}],
        "val": [{"id": "b1", "group": "b", "images": ["2.jpg", "3.jpg"]}, {"id": 7}],
    }
    assert find_leaks(rows) == []


def test_each_kind_of_planted_leak_is_named():
    train = [{"id": 1, "group": "a", "image": "x.jpg"}, {"id": 2, "group": "c", "images": ["y.jpg", "z.jpg"]}]
    val = [{"id": "1", "group": "b", "image": ["y.jpg"]}]
    test = [{"id": 9, "group": "a", "video": "v.mp4"}, {"id": 10, "group": "b", "image": "y.jpg"}]
    leaks = find_leaks({"train": iter(train), "val": iter(val), "test": iter(test)})
    assert leaks == [
        Leak("id", "1", ("train", "val")),
        Leak("group", "a", ("train", "test")),
        Leak("group", "b", ("val", "test")),
        Leak("image", "y.jpg", ("train", "val", "test")),
    ]
    assert str(leaks[0]) == "id '1' is in train and val"


def test_many_rows_take_seconds():
    def rows(split, count):
        return (
            {"id": f"{split}{i}", "group": f"{split}{i // 8}", "image": f"{split}{i // 4}.jpg"} for i in range(count)
        )

    leaks = find_leaks({"train": rows("t", 200_000), "val": rows("v", 20_000), "test": [{"id": "t199999"}]})
    assert leaks == [Leak("id", "t199999", ("train", "test"))]
