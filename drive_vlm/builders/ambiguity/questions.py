"""Every question about a picture, and whether it is clear, ambiguous, or cannot be asked: no words, no rows yet."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from drive_vlm.builders.ambiguity.descriptions import ANYTHING, Description, descriptions
from drive_vlm.builders.ambiguity.instances import Instance, Picture, SalienceRules, salient

ATTRIBUTES = ("color", "state", "side")
# Kinds of questions. All but the first are clear; a clear one about a thing that has others of its class next to it can be the
# twin of an ambiguous one.
AMBIGUOUS, CLEAR, SALIENT, INVARIANT, MISSING = "ambiguous", "clear", "salient", "answer_invariant", "missing_referent"


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Attributes:
        attribute: what is asked: color, state or side.
        asked: the description of the thing that it is about.
        kind: AMBIGUOUS, CLEAR, SALIENT, INVARIANT or MISSING.
        level: 0 one thing, or one answer; 1 several with one that stands out; 2 two or three; 3 four or more.
        candidates: the instances that `asked` fits.
        target: the one that a clear question is about; None for the others.
        answer: the value of a clear question; "" for AMBIGUOUS and MISSING.
        type: what makes it open, of those of two_readings.py; "" where that is how many things there are.
    """

    attribute: str
    asked: Description
    kind: str
    level: int
    candidates: tuple[Instance, ...]
    target: Instance | None = None
    answer: str = ""
    type: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What decides its text: rows of one key read the same."""
        return self.attribute, str(self.asked)


def questions(
    picture: Picture, attributes: Sequence[str], rules: SalienceRules, deictic: bool, left_out: Counter[str]
) -> Iterator[Question]:
    """All questions about the things of each class in the picture; with `deictic` also about "that one".

    What cannot be asked goes into `left_out`, by reason: modifier_unknown (it is not known whether the description fits a thing),
    attribute_missing (the answer is not known), doubtful (a thing that is no instance may be meant).
    """
    classes: dict[str, list[Instance]] = defaultdict(list)
    for thing in picture.instances:
        classes[thing.name].append(thing)
    for attribute in attributes:
        for things in classes.values():
            if not any(attribute in thing.attributes for thing in things):
                left_out["attribute_missing"] += 1
                continue
            for asked in descriptions(things, attribute):
                yield from judged(picture, things, attribute, asked, rules, left_out)
        if deictic and picture.instances:
            yield from judged(picture, picture.instances, attribute, Description(ANYTHING), rules, left_out)


def judged(
    picture: Picture,
    things: Sequence[Instance],
    attribute: str,
    asked: Description,
    rules: SalienceRules,
    left_out: Counter[str],
) -> Iterator[Question]:
    """The question whether, among the `things`, what `asked` fits is one; none, with the reason in `left_out`, where that is not known."""
    fits = [asked.fits(thing) for thing in things]
    if None in fits:
        left_out["modifier_unknown"] += 1
        return
    candidates = tuple(thing for thing, fit in zip(things, fits, strict=True) if fit)
    if not candidates:
        return
    unsure = any(asked.fits(thing) is not False for thing in picture.doubtful)
    found = judge(attribute, asked, candidates, rules)
    if found is None:
        left_out["attribute_missing"] += 1
    elif unsure and found.kind in (CLEAR, INVARIANT):
        left_out["doubtful"] += 1
    else:
        yield found


def judge(
    attribute: str, asked: Description, candidates: tuple[Instance, ...], rules: SalienceRules
) -> Question | None:
    """What the question is whose description fits the `candidates`; None where an answer is not known.

    One candidate: clear. Several: the one that stands out is meant, else the question is ambiguous where the answers differ.
    """
    values = [thing.attributes.get(attribute) for thing in candidates]
    if len(candidates) == 1:
        return None if values[0] is None else Question(attribute, asked, CLEAR, 0, candidates, candidates[0], values[0])
    winner = salient(candidates, rules)
    if winner is not None:
        value = winner.attributes.get(attribute)
        return None if value is None else Question(attribute, asked, SALIENT, 1, candidates, winner, value)
    if None in values:
        return None
    if len(set(values)) == 1:
        return Question(attribute, asked, INVARIANT, 0, candidates, None, values[0] or "")
    return Question(attribute, asked, AMBIGUOUS, 2 if len(candidates) <= 3 else 3, candidates)


def missing(picture: Picture, asked: Iterable[tuple[str, Description]]) -> Iterator[Question]:
    """Questions about things that are not there: those (attribute, description) that can fit nothing in this picture."""
    for attribute, description in asked:
        if not may_be_there(picture, description):
            yield Question(attribute, description, MISSING, 0, ())


def may_be_there(picture: Picture, asked: Description) -> bool:
    """Whether `asked` may fit anything in the picture, a doubtful thing too."""
    return any(asked.fits(thing) is not False for thing in (*picture.instances, *picture.doubtful))


@dataclass(frozen=True)
class Pair:
    """An ambiguous question and its twin, which means one of its candidates; `more` ambiguous ones have the same twin."""

    picture: int
    asked: Question
    twin: Question
    more: tuple[Question, ...] = ()


def pairs(number: int, found: Sequence[Question]) -> Iterator[Pair]:
    """All pairs of the questions about picture `number`."""
    ambiguous = [question for question in found if question.kind == AMBIGUOUS]
    twins = [question for question in found if question.kind == CLEAR and question.asked.modifiers]
    for twin in twins:
        fit = [q for q in ambiguous if q.attribute == twin.attribute and twin.target in q.candidates]
        for question in fit:
            yield Pair(number, question, twin, tuple(other for other in fit if other is not question))
