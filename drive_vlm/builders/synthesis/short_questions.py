"""Short questions by templates about the objects of a picture: is there one, how many, where. No teacher is needed.

`short_questions` is pure: the same objects, picture and seed give the same questions. It says what the objects answer, which is the
answer of a row where they are the truth. The step `ask` (tools/synth_ask.py) has a model answer instead, Model^i, and leaves it to
the gates to compare.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drive_vlm.builders.ambiguity.instances import side_of
from drive_vlm.builders.rewrites import clean
from drive_vlm.builders.synthesis.pictures import Picture
from drive_vlm.builders.synthesis.scene import objects_of, size_of
from drive_vlm.builders.synthesis.step import Made
from drive_vlm.builders.synthesis.writers import Outcome, Said, Unread, Wanted, prompt_sha, reasons_of
from drive_vlm.judges.judge import Request

KINDS = ("existence", "count", "position")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PLACES = {"left": "On the left.", "middle": "In the middle.", "right": "On the right."}
_PLURALS = {"person": "persons", "bus": "buses"}
# Raise it when the same objects give other questions.
_VERSION = 1


@dataclass(frozen=True)
class ShortQuestion:
    """A question, and what the objects answer; `absent`: of an existence question about what they lack."""

    kind: str
    label: str
    question: str
    answer: str
    absent: bool = False


def plural(label: str) -> str:
    return _PLURALS.get(label, f"{label}s")


def short_questions(
    objects: Sequence[tuple[str, Sequence[float]]],
    names: Sequence[str],
    width: float,
    picture: str,
    seed: int,
    counts: Mapping[str, int],
) -> list[ShortQuestion]:
    """At most `counts["present"]` and `counts["absent"]` existence questions, `counts["count"]` and `counts["position"]` others.

    `objects`: (label, x1 y1 x2 y2 in pixels) of a picture that is `width` pixels wide; `names`: what may be asked about. Where one is
    said only of what is there once.
    """
    chance = random.Random(f"{seed} {picture}")
    boxes: dict[str, list[Sequence[float]]] = {}
    for label, box in objects:
        if label in names:
            boxes.setdefault(label, []).append(box)
    there, absent = sorted(boxes), sorted(set(names) - boxes.keys())

    def some(of: Sequence[str], kind: str) -> list[str]:
        return chance.sample(of, min(counts[kind], len(of)))

    found = [
        ShortQuestion("existence", one, f"Is there a {one}?", "Yes, there is one.") for one in some(there, "present")
    ]
    found += [
        ShortQuestion("existence", one, f"Is there a {one}?", "No, there is none.", True)
        for one in some(absent, "absent")
    ]
    for one in some(there, "count"):
        number = len(boxes[one])
        words = _NUMBERS[number] if number < len(_NUMBERS) else str(number)
        answer = f"There {'is' if number == 1 else 'are'} {words}."
        found.append(ShortQuestion("count", one, f"How many {plural(one)} are there?", answer))
    for one in some([label for label in there if len(boxes[label]) == 1], "position"):
        (box,) = boxes[one]
        place = _PLACES[side_of((box[0] + box[2]) / 2, width)]
        found.append(ShortQuestion("position", one, f"Where is the {one}?", place))
    return found


class Ask:
    """The TextStep ask: short questions about the named objects of a picture, each answered by the model from the picture alone."""

    name = "ask"
    role = "answerer"
    fields = ("rows", "unread")
    pixels = True

    def __init__(self, names: Sequence[str], counts: Mapping[str, int], seed: int) -> None:
        self.names, self.counts_of, self.seed = sorted(set(names)), dict(counts), seed
        self.settings: dict[str, Any] = {"names": self.names, "questions": self.counts_of, "version": _VERSION}

    def questions(self, picture: Picture) -> list[ShortQuestion]:
        line = picture.line
        objects = [(thing.label, thing.box) for thing in objects_of(line, picture.where)]
        width, _ = size_of(picture, line)
        return short_questions(objects, self.names, width, picture.image, self.seed, self.counts_of)

    def wanted(self, picture: Picture) -> dict[str, Wanted]:
        asked = enumerate(self.questions(picture))
        return {str(i): Wanted(Request((("user", one.question),), (picture.path,)), self.read) for i, one in asked}

    def read(self, said: Said) -> str:
        """Raises Unread: no_answer, cut_off."""
        text = clean(said.text)
        if said.ending == "refused" or not text:
            raise Unread("no_answer")
        if said.ending == "length":
            raise Unread("cut_off")
        return text

    def made(self, picture: Picture, found: dict[str, Outcome]) -> Made:
        rows, unread = [], 0
        for i, one in enumerate(self.questions(picture)):
            answer = found[str(i)].value
            if answer is None:
                unread += 1
                continue
            row: dict[str, Any] = {"task": "vqa", "kind": one.kind, "question": one.question, "answer": answer}
            row |= {"prompt_sha": prompt_sha(one.question)}
            rows.append(row | ({"absent": one.absent} if one.kind == "existence" else {}))
        return Made({"rows": rows, "unread": {"vqa: unread": unread} if unread else {}}, dict(reasons_of(found)))

    def counts(self, line: dict[str, Any]) -> dict[str, int]:
        return {"rows": len(line["rows"]), "unread": sum(line["unread"].values())}

    def shown(self, line: dict[str, Any]) -> str:
        return " | ".join(f"{row['question']} {row['answer']}" for row in line["rows"])
