"""Free questions about one fact each: what is asked is chosen from boxes here, and the teacher only finds the words.

    existence  is X there?               X an object, or 1 time of 5 a name of --names that neither objects nor caption have
    count      how many X?               the number of objects called X
    attribute  what does X look like, what does it do?       from the caption alone
    position   where is X?               the third of the picture that holds the middle of its box
    relation   where is X from Y?        by the middles of their boxes, a tenth of the width apart or more
    rule       what rule applies here?

A reply that contradicts its fact (another number, another side, yes for no) is unread: `problem` says so.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from drive_vlm.builders.synthesis.records import NamedObject
from drive_vlm.builders.synthesis.refine import name_of, names_in
from drive_vlm.builders.synthesis.scene import SIDES, side_of

KINDS = ("existence", "count", "attribute", "position", "relation", "rule")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SIDE_WORDS = {
    "left": {"left", "leftmost", "left-hand"},
    "right": {"right", "rightmost", "right-hand"},
    "center": {"center", "centre", "middle", "central", "ahead"},
}
# A text -> the classes of things that it names: "taxi" and "car" are one class.
ClassesIn = Callable[[str], Collection[str]]
# A relation is asked where middles lie so far apart, as a share of the picture's width.
_APART = 0.1


@dataclass(frozen=True)
class Fact:
    """What a question is to ask for. `order`: the sentence of the prompt; `absent`: of an existence question, None for other kinds;
    `wanted`: words of which the answer must hold one; `banned`: words that it must not hold; `begins`: how it must begin."""

    kind: str
    order: str
    wanted: frozenset[str] = frozenset()
    banned: frozenset[str] = frozenset()
    begins: str = ""
    absent: bool | None = None

    def problem(self, answer: str) -> str:
        """ "" or why the answer contradicts the fact: wrong_polarity, wrong_number, wrong_side."""
        words = re.findall(r"[a-z]+(?:-[a-z]+)*|\d+", answer.lower())
        said = set(words)
        if self.begins and words[:1] != [self.begins]:
            return "wrong_polarity"
        if (self.wanted and not self.wanted & said) or self.banned & said:
            return "wrong_number" if self.kind == "count" else "wrong_side"
        return ""


def choose_fact(
    objects: Sequence[NamedObject],
    caption: str,
    names: Sequence[str],
    width: float,
    absent_share: float,
    luck: random.Random,
    classes_in: ClassesIn,
) -> Fact | None:
    """A fact of a kind that the picture allows, each kind equally often; None where it allows none.

    Numbers and places are asked of labels that stand apart: with a taxi beside two cars, "how many cars" has no sure answer.
    """
    labels = Counter(found.label for found in objects)
    missing = absent_names(names, labels, caption, classes_in)
    apart = labels_apart(labels, classes_in)
    single = [found for found in objects if labels[found.label] == 1 and found.label in apart]
    pairs = relations(single, width)
    possible = {
        "existence": bool(labels or missing),
        "count": bool(apart),
        "attribute": bool(caption),
        "position": bool(single),
        "relation": bool(pairs),
        "rule": bool(labels or caption),
    }
    kinds = [kind for kind in KINDS if possible[kind]]
    if not kinds:
        return None
    kind = luck.choice(kinds)
    if kind == "existence":
        return existence(sorted(labels), missing, absent_share, luck)
    if kind == "count":
        return count(luck.choice(sorted(apart)), labels)
    if kind == "position":
        return position(luck.choice(single), width)
    if kind == "relation":
        return relation(*luck.choice(pairs))
    if kind == "attribute":
        about = luck.choice(sorted(labels)) if labels else "something that the description names"
        order = f"Ask what {about} looks like or does. Use only what the description says of it."
        return Fact(kind, order)
    return Fact(
        kind,
        "Ask which traffic rule or rule of safe driving applies to what is there, and name the rule in the answer.",
    )


def absent_names(names: Sequence[str], labels: Counter[str], caption: str, classes_in: ClassesIn) -> list[str]:
    """Those of `names` that no object is called by and that the caption does not name, in this or in another word of its class."""
    text = f"{caption}\n" + "\n".join(labels)
    there, classes = {name_of(label) for label in labels} | set(names_in(text, names)), set(classes_in(text))
    return sorted(name for name in set(names) if name_of(name) not in there and not classes & set(classes_in(name)))


def labels_apart(labels: Counter[str], classes_in: ClassesIn) -> set[str]:
    """Labels of whose classes no other label is."""
    classes = {label: set(classes_in(label)) for label in labels}
    return {
        label
        for label in labels
        if not any(
            other != label and (classes[label] & classes[other] or name_of(label) == name_of(other)) for other in labels
        )
    }


def existence(labels: Sequence[str], missing: Sequence[str], absent_share: float, luck: random.Random) -> Fact:
    absent = bool(missing) and (not labels or luck.random() < absent_share)
    name = luck.choice(list(missing if absent else labels))
    if absent:
        order = f'Ask whether there is "{name}" in the picture. There is none: the answer begins with "No".'
        return Fact("existence", order, begins="no", absent=True)
    order = f'Ask whether there is "{name}" in the picture. There is: the answer begins with "Yes".'
    return Fact("existence", order, begins="yes", absent=False)


def count(label: str, labels: Counter[str]) -> Fact:
    number = labels[label]
    wanted = {str(number), *_NUMBERS[number : number + 1]}
    # "A car" says one as well, but so does "three cars and a truck".
    wanted |= {"single"} if number == 1 else set()
    order = f'Ask how many things called "{label}" can be seen. The answer gives the number {number}.'
    return Fact("count", order, frozenset(wanted))


def position(found: NamedObject, width: float) -> Fact:
    side = side_of(found.box, width)
    others = set().union(*(_SIDE_WORDS[other] for other in SIDES if other != side))
    # "ahead" and "middle" may be said of any side: "ahead on the left".
    banned = others - _SIDE_WORDS["center"] if side != "center" else others
    order = f'Ask where in the picture "{found.label}" is. The answer says: {side}.'
    return Fact("position", order, frozenset(_SIDE_WORDS[side]), frozenset(banned))


def relations(single: Sequence[NamedObject], width: float) -> list[tuple[NamedObject, NamedObject]]:
    """Pairs, the left one first, whose middles lie far enough apart."""
    ordered = sorted(single, key=lambda found: found.box[0] + found.box[2])
    return [
        (left, right)
        for number, left in enumerate(ordered)
        for right in ordered[number + 1 :]
        if (right.box[0] + right.box[2] - left.box[0] - left.box[2]) / 2 >= _APART * width
    ]


def relation(left: NamedObject, right: NamedObject) -> Fact:
    order = f'Ask where "{left.label}" is in relation to "{right.label}". The answer says that it is to the left of it.'
    return Fact("relation", order, frozenset(_SIDE_WORDS["left"]), frozenset(_SIDE_WORDS["right"]))
