"""Exact search: equal to brute force on shards and ties, and with faiss; names by agreement; thresholds by counting."""

import importlib.util

import numpy as np
import pytest

from drive_vlm.builders.synthesis.embedders import unit
from drive_vlm.builders.synthesis.retrieve import Rule, Vote, calibrate, vote
from drive_vlm.builders.synthesis.search import VectorIndex


def vectors(count: int, seed: int, width: int = 16) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, width))).astype(np.float16)


def slowly(rows: np.ndarray, queries: np.ndarray, k: int) -> list[list[int]]:
    """Rows by falling similarity, one product at a time; equal ones in their order."""
    found = []
    for query in queries.astype(np.float64):
        scores = [round(float(np.dot(row, query)), 12) for row in rows.astype(np.float64)]
        found.append(sorted(range(len(rows)), key=lambda i: (-scores[i], i))[:k])
    return found


@pytest.mark.parametrize(
    "faiss",
    [False, pytest.param(True, marks=pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="no faiss"))],
)
@pytest.mark.parametrize("cuts", [[], [1, 40], [299]])
def test_search_is_brute_force_with_ties_on_shards(
    faiss: bool, cuts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from drive_vlm.builders.synthesis import search

    monkeypatch.setattr(search, "_BLOCK", 64)
    rows = vectors(300, 0)
    # Many rows that are one vector, over several blocks and shards: more than a search asks for.
    rows[5:250:3] = rows[5]
    queries = np.concatenate([vectors(9, 1), rows[5:6], rows[100:101]])
    index = VectorIndex(np.split(rows, cuts), faiss)
    scores, found = index.search(queries, 7)
    assert found.tolist() == slowly(rows, queries, 7)
    assert (np.diff(scores, axis=1) <= 0).all() and scores[-2, 0] == pytest.approx(1, abs=1e-3)
    # A batch of one and a batch of all agree to the last bit.
    alone = [index.search(query[None], 7)[0][0].tolist() for query in queries]
    assert alone == scores.tolist()


def test_vectors_that_are_not_kept_in_single_precision_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from drive_vlm.builders.synthesis import search

    rows, queries = vectors(100, 0), vectors(3, 1)
    kept = VectorIndex([rows]).search(queries, 5)
    monkeypatch.setattr(search, "_KEPT", 0)
    assert all((a == b).all() for a, b in zip(VectorIndex([rows]).search(queries, 5), kept, strict=True))


def test_search_at_its_edges() -> None:
    index = VectorIndex([vectors(3, 0)])
    assert index.search(vectors(2, 1), 9)[1].shape == (2, 3)
    assert index.search(np.zeros((0, 16), dtype=np.float16), 2)[0].shape == (0, 2)
    with pytest.raises(ValueError, match=r"queries of \[1, 8\] numbers, the data base has 16"):
        index.search(vectors(1, 0, 8), 1)
    with pytest.raises(ValueError, match="one width"):
        VectorIndex([vectors(2, 0), vectors(2, 0, 8)])


class _Names:
    """As much of a data base as a vote needs: names on a circle, by their angles in degrees."""

    def __init__(self, **angles: list[float]) -> None:
        self.names = [name for name, values in angles.items() for _ in values]
        self.index = VectorIndex([self.at(*[angle for values in angles.values() for angle in values])])

    @staticmethod
    def at(*angles: float) -> np.ndarray:
        turned = np.radians(angles)
        return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float16)


RULE = Rule(k=5, agree=3, threshold=0.9, margin=0.0)


def test_a_name_needs_agreement_a_score_and_a_margin() -> None:
    base = _Names(cone=[0, 1, 2], barrier=[10, 12], bus=[90])
    near, between, far = vote(base, base.at(0, 8, 200), 5)
    assert (near.name, near.agree) == ("cone", 3) and near.passes(RULE)
    assert near.margin == pytest.approx(1 - np.cos(np.radians(10)), abs=2e-3)
    # Two of five are nearer, three agree: the commonest counts, and its margin is below 0.
    assert between.name == "cone" and between.margin < 0 and not between.passes(RULE)
    assert not far.passes(RULE) and far.score < 0
    assert not near.passes(Rule(5, 4, 0.9, 0.0)) and not near.passes(Rule(5, 3, 0.9, 0.5))
    alone = vote(_Names(cone=[0, 1]), base.at(0), 5)[0]
    assert alone.margin is None and not alone.passes(RULE) and alone.passes(Rule(5, 2, 0.9, 0.3))


def test_a_threshold_is_the_lowest_that_keeps_the_precision() -> None:
    def said(name: str, score: float, agree: int = 5) -> Vote:
        return Vote(name, score, 0.1, agree, [])

    votes = [
        said("a", 0.9),
        said("a", 0.8),
        said("b", 0.7),
        said("a", 0.6),
        said("a", 0.5),
        said("a", 0.5),
        said("a", 0.99, agree=2),
    ]
    truth = ["a", "a", "a", "a", "a", "no name of the base", "a"]
    found = calibrate(votes, truth, {"a", "b"}, RULE, 0.75)
    # 2/2, 2/3, 3/4, then both of .5 at once: 4/6.
    assert (found.threshold, found.accepted, found.right) == (0.6, 4, 3) and found.nameable == 6
    assert found.precision == 0.75 and found.recall == 0.5
    assert calibrate(votes, truth, {"a", "b"}, RULE, 1.0).threshold == 0.8
    with pytest.raises(ValueError, match="no threshold gives a precision of 1"):
        calibrate(votes, ["b"] * 7, {"a", "b"}, RULE, 1.0)
