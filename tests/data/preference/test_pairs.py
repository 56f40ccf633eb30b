import pytest

from drive_vlm.data.preference.pairs import (
    check_pair,
    length_statistics,
    near_duplicates,
    pair_row,
    repeated,
    similarity,
    unusable,
)
from drive_vlm.data.samples import BadRow, parse_row

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a car"}]


def test_pair_row_keeps_the_row_and_replaces_the_last_answer():
    row = {"id": "x", "image": "a.jpg", "group": "g", "conversations": TURNS}
    pair = pair_row(row, "a van", "a dog", "x-r1", round=1, row_id="x")
    assert pair["conversations"] == [TURNS[0], {"from": "gpt", "value": "a van"}]
    assert (pair["chosen"], pair["rejected"], pair["id"], pair["group"], pair["round"]) == (
        "a van",
        "a dog",
        "x-r1",
        "g",
        1,
    )
    assert row["conversations"] == TURNS  # unchanged
    sample = parse_row(pair, "f:1", "")
    assert sample.reference == "a van" and sample.columns["rejected"] == "a dog"
    prompt_only = pair_row(row | {"conversations": TURNS[:1]}, "a van", "a dog", "y")
    assert prompt_only["conversations"] == pair["conversations"]


def test_pair_row_of_messages():
    row = {
        "id": "x",
        "images": ["a.jpg"],
        "messages": [
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": [{"type": "text", "text": "a car"}]},
        ],
    }
    pair = pair_row(row, "a van", "a dog", "x")
    assert pair["messages"][1:] == [{"role": "assistant", "content": "a van"}] and len(pair["messages"]) == 2
    assert parse_row(pair, "f:1", "").reference == "a van"


def test_what_is_no_pair():
    assert unusable(" ", "b") == "empty_chosen" and unusable("a", "\n") == "empty_rejected"
    assert unusable("a  b", " a b\n") == "identical" and unusable("a b", "a B") is None
    with pytest.raises(BadRow, match="f:3: the pair is identical"):
        check_pair({"chosen": "a", "rejected": "a"}, "f:3")
    with pytest.raises(BadRow, match='needs the texts "chosen" and "rejected"'):
        check_pair({"chosen": "a"}, "f:3")


def test_similarity_by_hand():
    assert similarity("a b c d", "a b c e") == pytest.approx(1 / 3)  # trigrams abc, bcd / abc, bce
    assert similarity("stop", "Stop!") == 1.0 and similarity("stop", "go") == 0.0
    assert similarity("yes it is", "yes") == pytest.approx(1 / 3)  # words, since one text is short
    assert similarity("...", "!") == 1.0
    pairs = [{"id": "1", "chosen": "a b c d e", "rejected": "A b c d e."}, {"id": "2", "chosen": "a", "rejected": "b"}]
    assert near_duplicates(pairs) == [{"id": "1", "similarity": 1.0}]


def test_length_statistics_by_hand():
    pairs = [
        {"chosen": "a b c", "rejected": "a"},
        {"chosen": "a", "rejected": "a b"},
        {"chosen": "a b", "rejected": "c d"},
        {"chosen": "a b c d", "rejected": "a"},
    ]
    found = length_statistics(pairs)
    assert found["chosen"]["mean"] == 2.5 and found["rejected"]["mean"] == 1.5 and found["mean_difference"] == 1.0
    assert found["chosen_longer"] == pytest.approx(2 / 3) and found["equal_length"] == 1
    assert found["chosen"]["median"] == 2.5 and length_statistics([]) == {}


def test_repeated_pairs():
    pair = {"id": "1", "row_id": "x", "chosen": "a", "rejected": "b"}
    assert repeated(
        [pair, pair | {"id": "2"}, pair | {"rejected": "c"}, pair | {"row_id": "y"}, pair | {"id": "3"}]
    ) == {1, 4}
