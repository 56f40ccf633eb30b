"""Questions that can be read in two ways, where the picture decides whether that matters: a misspelt word, and "the first".

* SPELLING, "What color is the bruk?": the word is as far from one kind's name as from another's. Where one thing of each kind is
  there and their answers differ, nobody knows which is meant; where one kind is there, it is that one.
* INTENT, "What color is the first car?": it does not say what counts, the place from the left or the distance from us. Where the
  leftmost car is the nearest one too, or has the same answer, that does not matter.

No such question has a twin. `select.matched` takes each text once ambiguous and once clear instead.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drive_vlm.builders.ambiguity.descriptions import Description
from drive_vlm.builders.ambiguity.instances import Instance, Picture, SalienceRules, nearest_of
from drive_vlm.builders.ambiguity.questions import SALIENT, Question, judge, judged

SPELLING, INTENT = "spelling", "intent"
# A word that is no name -> the two kinds of vehicles that are equally few letters away (edit distance), and nearer than any other name.
TYPOS = {"bor": ("bus", "car"), "bruk": ("bus", "truck"), "var": ("car", "van"), "vis": ("bus", "van")}
_VEHICLE = "vehicle"


@dataclass(frozen=True)
class Misspelt(Description):
    """A vehicle whose kind is misspelt: it fits both `kinds`."""

    word: str = ""
    kinds: tuple[str, ...] = ()

    def fits(self, thing: Instance) -> bool | None:
        if thing.name != self.name:
            return False
        return thing.attributes["kind"] in self.kinds if "kind" in thing.attributes else None

    def words(self, plural: bool = False) -> str:
        return self.word


@dataclass(frozen=True)
class First(Description):
    """The first of a class or kind. It fits all of them: which are meant, `_firsts` says."""

    def words(self, plural: bool = False) -> str:
        return f"first {super().words(plural)}"


def two_readings(
    picture: Picture, attributes: Sequence[str], types: Sequence[str], rules: SalienceRules, left_out: Counter[str]
) -> Iterator[Question]:
    """All questions of the `types` among SPELLING and INTENT about a picture.

    `left_out` gets the reasons of `judged`, reading_unclear (a reading fits several things, or one thing stands out) and
    nearest_unclear (two are about as near).
    """
    classes: dict[str, list[Instance]] = defaultdict(list)
    for thing in picture.instances:
        classes[thing.name].append(thing)
    for attribute in attributes:
        if SPELLING in types and _VEHICLE in classes:
            for word, kinds in TYPOS.items():
                asked = Misspelt(_VEHICLE, word=word, kinds=kinds)
                for question in judged(picture, classes[_VEHICLE], attribute, asked, rules, left_out):
                    yield from _if_sure(question, SPELLING, left_out)
        # The leftmost thing is on the left: the name of the reading would be the answer.
        if INTENT in types and attribute != "side":
            for things in classes.values():
                yield from _firsts(picture, things, attribute, rules, left_out)


def _firsts(
    picture: Picture, things: Sequence[Instance], attribute: str, rules: SalienceRules, left_out: Counter[str]
) -> Iterator[Question]:
    """Questions about the first of a class, and of each of its kinds: the candidates are the leftmost and the nearest."""
    kinds = sorted({thing.attributes["kind"] for thing in things if "kind" in thing.attributes})
    for kind in ("", *kinds):
        asked = First(things[0].name, (("kind", kind),) if kind else ())
        fits = [asked.fits(thing) for thing in things]
        those = [thing for thing, fit in zip(things, fits, strict=True) if fit]
        if None in fits:
            left_out["modifier_unknown"] += 1
        elif len(those) < 2:
            continue
        elif any(asked.fits(thing) is not False for thing in picture.doubtful):
            left_out["doubtful"] += 1
        elif (nearest := nearest_of(those, picture.size[0])) is None:
            left_out["nearest_unclear"] += 1
        else:
            leftmost = min(those, key=lambda thing: thing.centre)
            both = (nearest,) if leftmost is nearest else (leftmost, nearest)
            if (question := judge(attribute, asked, both, rules)) is None:
                left_out["attribute_missing"] += 1
            else:
                yield from _if_sure(question, INTENT, left_out)


def _if_sure(question: Question, type_: str, left_out: Counter[str]) -> Iterator[Question]:
    """The question as one of the type, unless more than its two readings is open."""
    kinds = [thing.attributes["kind"] for thing in question.candidates] if type_ == SPELLING else []
    if question.kind == SALIENT or len(set(kinds)) < len(kinds):
        left_out["reading_unclear"] += 1
    else:
        yield dataclasses.replace(question, type=type_)
