"""Step 4: names of crops by their neighbours in the data base. A crop that no name fits is unknown: never the nearest name."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.builders.synthesis.database import Database
from drive_vlm.builders.synthesis.embed import open_vectors
from drive_vlm.builders.synthesis.pictures import Picture
from drive_vlm.builders.synthesis.records import Crop, Hit, NamedObject, UnknownObject, field_of, plain_record
from drive_vlm.builders.synthesis.step import Made, Make
from drive_vlm.data.samples import BadRow

# Neighbours in which another name is looked for, for the margin.
_SEEN = 50


@dataclasses.dataclass(frozen=True)
class Rule:
    """When a name is accepted: `agree` of the `k` nearest have it, its nearest scores `threshold` or more, and `margin` more than that of any
    other name. `boxes`: what becomes of a detector's box that the rule gives another name: "keep" its label, or take it as unknown
    ("check")."""

    k: int
    agree: int
    threshold: float
    margin: float
    boxes: str = "keep"


@dataclasses.dataclass(frozen=True)
class Vote:
    """What the neighbours of a crop say. `margin` is None where the nearest 50 have one name."""

    name: str
    score: float
    margin: float | None
    agree: int
    hits: list[Hit]

    def passes(self, rule: Rule) -> bool:
        near = self.score >= rule.threshold and self.agree >= rule.agree
        return near and (self.margin is None or self.margin >= rule.margin)


def vote(database: Database, vectors: np.ndarray, k: int) -> list[Vote]:
    """The commonest name among the k nearest of each vector float[N, D]; of two as common, the one with the nearer first hit."""
    scores, rows = database.index.search(vectors, max(k, _SEEN))
    votes = []
    for line, places in zip(scores.tolist(), rows.tolist(), strict=True):
        names = [database.names[row] for row in places]
        # Hits stand from near to far: the first of a name is its nearest, and max() takes the first of several.
        name = max(names[:k], key=names[:k].count)
        others = [score for score, other in zip(line, names, strict=True) if other != name]
        nearest = line[names.index(name)]
        margin = round(nearest - others[0], 6) if others else None
        hits = [Hit(other, round(score, 6), row) for other, score, row in zip(names[:k], line, places, strict=False)]
        votes.append(Vote(name, round(nearest, 6), margin, names[:k].count(name), hits))
    return votes


def retrieving(database: Database, rule: Rule) -> Make:
    """The make of the step, for the lines of synth_embed.py."""
    known = set(database.names)

    def make(pictures: Sequence[Picture]) -> Iterator[Made | BadRow]:
        for picture in pictures:
            line = picture.line
            items: list[Crop] = field_of(line, "items", picture.where)
            votes = vote(database, vectors_of(picture, items), rule.k) if items else []
            yield _named(line, picture.where, items, votes, rule, known)

    return make


def vectors_of(picture: Picture, items: Sequence[Crop]) -> np.ndarray:
    """float16[N, D] of the items of a line of synth_embed.py. Raises ValueError for a number that is not in its vectors."""
    assert picture.source is not None, "items stand in the line of a file"
    vectors, rows = open_vectors(Path(picture.source.path)), [item.vector for item in items]
    if max(rows) >= len(vectors):
        raise ValueError(
            f"{picture.where}: vector {max(rows)} of {len(vectors)}. Make the file again with tools/synth_embed.py."
        )
    return np.asarray(vectors[rows])


def _named(
    line: dict[str, Any], where: str, items: Sequence[Crop], votes: Sequence[Vote], rule: Rule, known: set[str]
) -> Made:
    objects: list[NamedObject] = []
    unknown: list[UnknownObject] = []
    dropped = {"another_name_than_the_detectors": 0}
    said = {item.place: answer for item, answer in zip(items, votes, strict=True) if item.source == "box"}
    for place, box in enumerate(field_of(line, "boxes", where) if "boxes" in line else []):
        answer = said.get(place)
        if answer is None:
            objects.append(NamedObject(box.box, box.label, box.score, "detector", rle=box.rle))
        elif rule.boxes == "check" and box.label in known and answer.passes(rule) and answer.name != box.label:
            dropped["another_name_than_the_detectors"] += 1
            unknown.append(UnknownObject(box.box, answer.score, box.rle))
        else:
            evidence = answer.margin, [answer.agree, rule.k], answer.hits
            objects.append(NamedObject(box.box, box.label, box.score, "detector", *evidence, box.rle))
    for item, answer in zip(items, votes, strict=True):
        if item.source != "region":
            continue
        if answer.passes(rule):
            found = answer.name, min(max(answer.score, 0.0), 1.0), "retrieval", answer.margin, [answer.agree, rule.k]
            objects.append(NamedObject(item.box, *found, answer.hits, item.rle))
        else:
            unknown.append(UnknownObject(item.box, answer.score, item.rle))
    fields = {"objects": [_record(item) for item in objects], "unknown": [plain_record(item) for item in unknown]}
    return Made(fields, {reason: count for reason, count in dropped.items() if count})


def _record(item: NamedObject) -> dict[str, Any]:
    """As the contract of the field has it: margin, agree and hits stand there, null where nothing was looked up."""
    return {"margin": None, "agree": None, "hits": None} | plain_record(item)


# ---- the threshold


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The threshold of a data base for a wanted precision, on crops whose names are known.

    `crops`: how many were looked up; `nameable`: how many of them have a name of the data base; `accepted`: how many pass at the
    threshold, `right` of them under their own name.
    """

    threshold: float
    wanted_precision: float
    crops: int
    nameable: int
    accepted: int
    right: int
    k: int
    agree: int
    margin: float

    @property
    def precision(self) -> float:
        return self.right / self.accepted

    @property
    def recall(self) -> float:
        return self.right / self.nameable if self.nameable else 0.0


def calibrate(
    votes: Sequence[Vote], truth: Sequence[str], names: set[str], rule: Rule, precision: float
) -> Calibration:
    """The lowest threshold whose accepted names are right in the share `precision` or more. `rule.threshold` is not used.

    Raises ValueError where no threshold reaches it.
    """
    open_rule = dataclasses.replace(rule, threshold=-math.inf)
    passed = [
        (answer.score, answer.name == name)
        for answer, name in zip(votes, truth, strict=True)
        if answer.passes(open_rule)
    ]
    best: tuple[float, int, int] | None = None
    right = 0
    passed.sort(key=lambda item: -item[0])
    for count, (score, fits) in enumerate(passed, 1):
        right += fits
        # Crops of one score pass together.
        last_of_score = count == len(passed) or passed[count][0] < score
        if last_of_score and right / count >= precision:
            best = score, count, right
    if best is None:
        raise ValueError(
            f"no threshold gives a precision of {precision:g} on these {len(truth):,} crops, of which {len(passed):,} have {rule.agree} of "
            f"{rule.k} neighbours with one name. Give a lower --precision, or name more crops in the data base."
        )
    nameable = sum(name in names for name in truth)
    return Calibration(best[0], precision, len(truth), nameable, best[1], best[2], rule.k, rule.agree, rule.margin)
