"""Names of objects against the truth: precision and recall of named boxes, and of what rows claim to be there.

A named box is right where a true box of its name shares at least half of their union with it; each true box is found once. A row
claims the name that its question asks about where its answer says that it is there; a false claim is a hallucinated object.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drive_vlm.evaluation.statistics import Estimate, pooled, pooled_change

Box = Sequence[float]
Named = tuple[str, Box]
OVERLAP = 0.5
_YES, _NO = re.compile(r"\W*yes\b", re.IGNORECASE), re.compile(r"\W*no(ne)?\b|\W*there (is|are) no\b", re.IGNORECASE)


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2.

    >>> overlap([0, 0, 2, 2], [1, 0, 3, 2])
    0.3333333333333333
    """
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    both = max(0.0, wide) * max(0.0, high)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return both / (sum(areas) - both) if sum(areas) > both else 0.0


def right_boxes(found: Sequence[Named], truth: Sequence[Named]) -> int:
    """How many of `found` are right; the best pairs of a name first."""
    pairs = sorted(
        (
            (-overlap(box, true), i, j)
            for i, (name, box) in enumerate(found)
            for j, (other, true) in enumerate(truth)
            if name == other and overlap(box, true) >= OVERLAP
        ),
    )
    used: tuple[set[int], set[int]] = (set(), set())
    for _, i, j in pairs:
        if i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
    return len(used[0])


def box_counts(found: Mapping[str, Sequence[Named]], truth: Mapping[str, Sequence[Named]]) -> np.ndarray:
    """float[G, 3] of the pictures of `truth`, in its order: right boxes, named boxes, true boxes."""
    rows = [
        (right_boxes(found.get(picture, ()), true), len(found.get(picture, ())), len(true))
        for picture, true in truth.items()
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def precision_recall(sums: np.ndarray) -> dict[str, np.ndarray]:
    """{"precision", "recall"} of sums [..., 3] of right, named, true; NaN where nothing is named or true."""
    right, named, true = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": np.where(named > 0, right / named, np.nan),
            "recall": np.where(true > 0, right / true, np.nan),
        }


def name_scores(counts: np.ndarray, seed: int = 0) -> dict[str, Estimate]:
    """precision and recall of counts float[G, 3], with intervals that draw pictures."""
    return pooled(counts, precision_recall, seed)


def name_change(first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict[str, Estimate]:
    """`second - first` of precision and recall, both drawn together."""
    return pooled_change(first, second, precision_recall, seed)


@dataclass(frozen=True)
class Claim:
    """A question about one object with its answer: the picture, the name, whether the answer says that it is there."""

    picture: str
    name: str
    there: bool


def claim_of(picture: str, question: str, answer: str, names: Sequence[str]) -> Claim | None:
    """What a row of a short question says; None where the question asks about no name, or the answer of an existence question says
    neither yes nor no. The longest name that stands in the question wins."""
    text = " ".join(re.findall(r"\w+", question.casefold()))
    found = [name for name in names if re.search(rf"\b{re.escape(name)}(s|es)?\b", text)]
    if not found:
        return None
    name = max(found, key=len)
    if _NO.match(answer):
        return Claim(picture, name, False)
    if text.startswith(("is there", "are there")) and not _YES.match(answer):
        return None
    return Claim(picture, name, True)


def claim_counts(claims: Sequence[Claim], truth: Mapping[str, Sequence[Named]], names: Sequence[str]) -> np.ndarray:
    """float[G, 5] of the pictures of `truth`: false claims, claims; right names, claimed names, true names of `names`, each once."""
    by_picture: dict[str, list[Claim]] = {}
    for claim in claims:
        by_picture.setdefault(claim.picture, []).append(claim)
    rows = []
    for picture, true in truth.items():
        there = {name for name, _ in true} & set(names)
        said = [claim.name for claim in by_picture.get(picture, ()) if claim.there]
        rows.append(
            (sum(name not in there for name in said), len(said), len(set(said) & there), len(set(said)), len(there))
        )
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def hallucination(sums: np.ndarray) -> dict[str, np.ndarray]:
    """{"hallucinated"} of sums [..., 5]: false claims of all claims; NaN without a claim."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"hallucinated": np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)}


def claim_scores(counts: np.ndarray, seed: int = 0) -> dict[str, Estimate]:
    """hallucinated, and precision and recall of the names that rows claim, of counts float[G, 5]."""
    return pooled(counts, hallucination, seed) | pooled(counts[:, 2:], precision_recall, seed)


def claim_change(first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict[str, Estimate]:
    """`second - first` of hallucinated, of the same pictures."""
    return pooled_change(first, second, hallucination, seed)
