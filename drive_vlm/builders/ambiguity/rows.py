"""Questions as rows: their words, the clarification, four choices of which two are questions, a dialogue with a simulated reply."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from drive_vlm.builders.ambiguity.descriptions import (
    ANYTHING,
    PEOPLE,
    Description,
    alike,
    asks_for,
    listed,
    name_of,
    shortest,
)
from drive_vlm.builders.ambiguity.instances import Instance, Picture, nearest_of
from drive_vlm.builders.ambiguity.questions import AMBIGUOUS, MISSING, Question, may_be_there
from drive_vlm.builders.row_writer import Row
from drive_vlm.builders.splits import split_position

WORDINGS = {
    "color": ("What color is {d}?", "Which color does {d} have?", "What is the color of {d}?"),
    "clothes": ("What color is {d} wearing?", "Which color does {d} wear?", "What is the color of what {d} is wearing?"),
    "state": ("What is {d} doing?", "What is {d} doing right now?", "In what state of motion is {d}?"),
    "side": ("Where in the picture is {d}?", "In which part of the picture is {d}?", "Whereabouts in the picture is {d}?"),
}  # fmt: skip
_PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
# What an answer may be where the data shows one value only.
_VALUES = {
    "color": ("red", "white", "black", "blue", "green"),
    "state": ("moving", "stationary"),
    "side": ("left", "middle", "right"),
}
# Candidates that a clarification names one by one, at most.
MOST_NAMED = 3
# Things that a question of another choice can be about where the picture lacks none of the class.
_ABSENT = (
    Description("vehicle", (("kind", "bus"),)), Description("vehicle", (("kind", "truck"),)), Description("cone"),
    Description("cyclist"), Description("vehicle", (("kind", "motorcycle"),)), Description("traffic sign"),
    Description("vehicle", (("kind", "tram"),)), Description("horse"), Description("wheelchair"),
    Description("deer"), Description("dog sled"), Description("ladder"),
)  # fmt: skip
Values = Mapping[tuple[str, str], Sequence[str]]


class NoNames(ValueError):
    """The candidates cannot be named apart, or the nearest of many is not clear: the question makes no row."""


def wording(question: Question, number: int) -> str:
    """The question's text; `number` chooses among the wordings of what it asks."""
    worn = question.attribute == "color" and question.asked.name in PEOPLE
    forms = WORDINGS["clothes" if worn else question.attribute]
    return forms[number % len(forms)].format(d=question.asked)


def answer_of(attribute: str, value: str) -> str:
    """'It is red.', 'It is on the left.'"""
    return f"It is {_PLACES.get(value, value) if attribute == 'side' else value}."


def names_of(picture: Picture, question: Question) -> list[str]:
    """A name for each candidate, in order. Raises NoNames where two would have one name, or one has none."""
    names = []
    for thing in question.candidates:
        things = _things_of(picture, thing.name)
        asked = question.asked if question.asked.name != ANYTHING else Description(thing.name)
        names.append(name_of(thing, things, asked, question.attribute, picture.size[0]))
    found = [name for name in names if name is not None]
    if len(set(found)) < len(names):
        raise NoNames(f"{question.asked}: {names}")
    return found


def clarify(picture: Picture, question: Question, names: Sequence[str]) -> str:
    """The question back: up to three candidates by name, of more the nearest or another. Raises NoNames."""
    if len(names) > MOST_NAMED and nearest_of(question.candidates, picture.size[0]) is None:
        raise NoNames(f"{question.asked}: the nearest of {len(names)} is not clear")
    return question_back(names, len(names), question.asked)


def question_back(names: Sequence[str], count: int, of: Description) -> str:
    """'Do you mean the car or the red truck?'; of more than three 'There are 4 cars: do you mean the nearest car or another?'"""
    if count <= MOST_NAMED:
        return f"Do you mean {listed(names)}?"
    noun, many = ("thing", "things") if of.name == ANYTHING else (of.words(), of.words(plural=True))
    return f"There are {count} {many}: do you mean the nearest {noun} or another?"


class RowMaker:
    """Makes the rows of one source.

    `values` are the values that each (class, attribute) has in the data: what a wrong answer may say. The order of choices and the
    candidate that a simulated user means follow from hashes of (seed, id).
    """

    def __init__(self, values: Values, source: str, seed: int) -> None:
        self.values, self.source, self.seed = values, source, seed

    def row(self, picture: Picture, question: Question, number: int, kind: str, twin: str | None = None) -> Row:
        """One row; `kind` is its type, `number` its wording, `twin` the id of its other half. Raises NoNames."""
        id = row_id(picture, question)
        text = wording(question, number)
        ambiguous = question.kind == AMBIGUOUS
        things = question.candidates if ambiguous else _class_of(picture, question)
        names = names_of(picture, question) if ambiguous else self._free_names(picture, question, things)
        clarification = clarify(picture, question, names) if ambiguous else ""
        answers = [answer_of(question.attribute, thing.attributes.get(question.attribute, "")) for thing in things]
        answer = "" if ambiguous else self._answer(question)
        choices = self._choices(picture, question, clarification, answer, names)
        gold = int.from_bytes(split_position(id, self.seed), "big") % 4
        choices[0], choices[gold] = choices[gold], choices[0]
        return {
            "id": id,
            "group": picture.group,
            "image": picture.image,
            "messages": [
                {"role": "user", "content": f"<image>\n{text}"},
                {"role": "assistant", "content": clarification if ambiguous else answer},
            ],
            "question": text,
            "ambiguous": int(ambiguous),
            "level": question.level,
            "type": kind,
            "class": question.asked.name,
            "attribute": question.attribute,
            "description": str(question.asked),
            "candidates": [
                {"box": list(thing.box), "category": thing.name, "attributes": thing.attributes, "name": name}
                for thing, name in zip(things, names, strict=True)
            ],
            "target": None if question.target is None else things.index(question.target),
            "answer": answer,
            "answers": dict(zip(names, answers, strict=True)) if ambiguous else {},
            "clarification": clarification,
            "choices": choices,
            "gold_choice": gold,
            "source": self.source,
            **({"twin": twin} if twin else {}),
        }

    def dialogue(self, row: Row) -> Row:
        """The ambiguous row with the simulated user's reply to its clarification, and the answer about what he means."""
        target = meant_by_user(row["id"], len(row["candidates"]), self.seed)
        name = row["candidates"][target]["name"]
        answer = row["answers"][name]
        reply = said_by_user(name)
        turns = [{"role": "user", "content": reply}, {"role": "assistant", "content": answer}]
        more = {"target": target, "answer": answer, "reply": reply, "type": "dialogue"}
        drop = ("choices", "gold_choice")
        kept = {key: value for key, value in row.items() if key not in drop}
        return kept | more | {"id": f"{row['id']}-dialogue", "messages": [*row["messages"], *turns]}

    def _answer(self, question: Question) -> str:
        if question.kind == MISSING:
            return f"There is no {question.asked.words()} in the picture."
        return answer_of(question.attribute, question.answer)

    def _free_names(self, picture: Picture, question: Question, things: Sequence[Instance]) -> list[str]:
        """Names of the things of a clear question. Two may have the same name; where no description fits one alone it says the place."""
        names = []
        for thing in things:
            same = _things_of(picture, thing.name)
            name = name_of(thing, same, Description(thing.name), question.attribute, picture.size[0])
            names.append(name or f"a {thing.name}")
        return names

    def _choices(
        self, picture: Picture, question: Question, clarification: str, answer: str, names: Sequence[str]
    ) -> list[str]:
        """Four options, the right one first; two are questions back and two are statements, whatever the row.

        One question back is about things that are not there, in names of the same form. Of a clear row the other one is needless:
        it names what is there as a question back would, but for the words of the question itself, which would show that they fit
        one thing.
        """
        if question.kind == AMBIGUOUS:
            values = list(dict.fromkeys(thing.attributes[question.attribute] for thing in question.candidates))
            values.sort(key=lambda value: split_position(f"{picture.id} {value}", self.seed))
            wrong = [answer_of(question.attribute, value) for value in values[:2]]
            return [clarification, self._absent(picture, question, question.candidates, len(names)), *wrong]
        things = _needless_things(picture, question)
        of_kind = Description(question.asked.name, _kind_of(question.asked))
        base = of_kind if len(things) > 1 and all(map(of_kind.fits, things)) else Description(question.asked.name)
        back = [
            name_of(
                thing,
                _things_of(picture, thing.name),
                _named(base, thing),
                question.attribute,
                picture.size[0],
                str(question.asked),
            )
            or f"a {thing.name}"
            for thing in things
        ]
        count = max(2, len(things))
        if len(back) < count:
            back += [str(item) for item in self._not_there(picture, question, things, 2 + count)[2:]]
        needless = question_back(back[:count], count, base)
        return [answer, self._wrong(picture, question), needless, self._absent(picture, question, things, count)]

    def _absent(self, picture: Picture, question: Question, things: Sequence[Instance], count: int) -> str:
        """A question back about things that are not there."""
        found = self._not_there(picture, question, things, count)
        return question_back([str(item) for item in found[:count]], count, found[0])

    def _wrong(self, picture: Picture, question: Question) -> str:
        """An answer that is not right: of another thing of the class where there is one."""
        class_ = question.asked.name
        others = [thing.attributes.get(question.attribute, "") for thing in _class_of(picture, question)]
        others.sort(key=lambda value: split_position(f"{picture.id} {value}", self.seed))
        known = [*others, *self.values.get((class_, question.attribute), ()), *_VALUES[question.attribute]]
        value = next(value for value in known if value and value != question.answer)
        return answer_of(question.attribute, value)

    def _not_there(
        self, picture: Picture, question: Question, things: Sequence[Instance], count: int
    ) -> list[Description]:
        """Descriptions of things that are not in the picture, that speak of what the names of `things` speak of."""
        kind = _kind_of(question.asked)
        shapes = [
            shortest(
                thing,
                _things_of(picture, thing.name),
                Description(thing.name, kind),
                question.attribute,
                str(question.asked),
            )
            for thing in things
        ]
        found: list[Description] = []
        for i in range(count):
            shape = shapes[i % len(shapes)] if shapes else None
            made: list[Description] = [] if shape is None else [*alike(shape, self.values, bool(kind))]
            made.sort(key=lambda item: split_position(f"{picture.id} {item}", self.seed))
            usable = (item for item in made if item not in found and not may_be_there(picture, item))
            found += itertools.islice(usable, 1)
        class_ = question.asked.name
        more = [
            Description(class_, ((modifier, value),))
            for modifier in ("color", "state", "kind")
            if modifier not in asks_for(question.attribute)
            for value in self.values.get((class_, modifier), ())
        ]
        found += [item for item in (*more, *_ABSENT) if item not in found and not may_be_there(picture, item)]
        return found


def _needless_things(picture: Picture, question: Question) -> Sequence[Instance]:
    """What a needless question back names: what the question fits; where that is one thing, what is of its kind, or of its class."""
    if len(question.candidates) > 1:
        return question.candidates
    of_kind = Description(question.asked.name, _kind_of(question.asked))
    things = [thing for thing in _class_of(picture, question) if of_kind.fits(thing)]
    return things if len(things) > 1 else _class_of(picture, question)


def _kind_of(asked: Description) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in asked.modifiers if pair[0] == "kind")


def _named(base: Description, thing: Instance) -> Description:
    """`base` where it fits the thing, else its class."""
    return base if base.fits(thing) and base.name != ANYTHING else Description(thing.name)


def _things_of(picture: Picture, name: str) -> list[Instance]:
    return [thing for thing in picture.instances if thing.name == name]


def _class_of(picture: Picture, question: Question) -> tuple[Instance, ...]:
    if question.asked.name == ANYTHING:
        return picture.instances
    return tuple(_things_of(picture, question.asked.name))


def meant_by_user(id: str, count: int, seed: int) -> int:
    """Number of the candidate of row `id` that the simulated user means, by the seed."""
    return int.from_bytes(split_position(f"{id} reply", seed), "big") % count


def said_by_user(name: str) -> str:
    """His reply to a question back: 'The car on the left.'"""
    return f"{name[0].upper()}{name[1:]}."


def row_id(picture: Picture, question: Question) -> str:
    """Of a picture, no two questions have one id: what is asked, and about what."""
    return f"{picture.id}-{question.attribute}-{question.asked.words().replace(' ', '-')}"


def all_values(pictures: Sequence[Picture]) -> dict[tuple[str, str], list[str]]:
    """The values of each (class, attribute) in the data, sorted."""
    found: dict[tuple[str, str], set[str]] = {}
    for picture in pictures:
        for thing in picture.instances:
            for attribute, value in thing.attributes.items():
                found.setdefault((thing.name, attribute), set()).add(value)
    return {key: sorted(values) for key, values in found.items()}


def facts(row: Row) -> dict[str, Any]:
    """What an audit counts of a row."""
    sides = [row["candidates"][row["target"]]["attributes"].get("side")] if row["target"] is not None else []
    return {
        "ambiguous": "ambiguous" if row["ambiguous"] else "clear",
        "level": str(row["level"]),
        "type": row["type"],
        "class": row.get("class", "unknown"),
        "attribute": row.get("attribute", "free"),
        "candidates": str(len(row["candidates"])),
        "side": next(filter(None, sides), "none"),
    }
