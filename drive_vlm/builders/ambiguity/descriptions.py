"""Descriptions of things: "the red truck", "the vehicle on the left"; what they fit, and the shortest that fits one thing only."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drive_vlm.builders.ambiguity.instances import Instance, nearest_of

# In the order in which a name takes them: what is seen at once comes first.
MODIFIERS = ("kind", "color", "state", "side", "lane")
# The class of a question about "that one": every thing in the picture.
ANYTHING = "thing"
PEOPLE = ("pedestrian", "cyclist")
_SIDES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_LANES = {"left": "in the left lane", "ego": "in our lane", "right": "in the right lane"}
_PLURALS = {"bus": "buses", "person": "people"}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
# Modifiers that give the answer away: a name must not hold what the question asks for.
_TELLS = {"color": ("color",), "state": ("state",), "side": ("side", "lane")}


@dataclass(frozen=True)
class Description:
    """A class and what is said of the thing, by attribute, in the order of MODIFIERS."""

    name: str
    modifiers: tuple[tuple[str, str], ...] = ()

    def fits(self, thing: Instance) -> bool | None:
        """Whether it is true of `thing`; None where an attribute that decides it is not known."""
        if self.name not in (thing.name, ANYTHING):
            return False
        unknown = False
        for attribute, value in self.modifiers:
            if attribute not in thing.attributes:
                unknown = True
            elif thing.attributes[attribute] != value:
                return False
        return None if unknown else True

    def words(self, plural: bool = False) -> str:
        """'red truck on the left', without an article."""
        said = dict(self.modifiers)
        noun = said.get("kind", self.name)
        if plural:
            noun = _PLURALS.get(noun, f"{noun}s")
        color = said.get("color", "")
        worn = f"in {color}" if color and self.name in PEOPLE else ""
        place = (_SIDES.get(said.get("side", ""), ""), _LANES.get(said.get("lane", ""), ""))
        return " ".join(filter(None, (said.get("state", ""), "" if worn else color, noun, worn, *place)))

    def __str__(self) -> str:
        return "that one" if self.name == ANYTHING else f"the {self.words()}"


def asks_for(attribute: str) -> tuple[str, ...]:
    """The attributes that a question about `attribute` and its names must not mention."""
    return _TELLS[attribute]


def descriptions(things: Sequence[Instance], attribute: str) -> Iterator[Description]:
    """All descriptions of things of one class that a question about `attribute` can use: a kind, and one more modifier."""
    name = things[0].name
    usable = [modifier for modifier in MODIFIERS if modifier not in asks_for(attribute)]
    pairs = {modifier: [(modifier, value) for value in _values(things, modifier)] for modifier in usable}
    others = [pair for modifier in usable if modifier != "kind" for pair in pairs[modifier]]
    for kind in (None, *pairs["kind"]):
        for other in (None, *others):
            yield Description(name, tuple(filter(None, (kind, other))))


def _values(things: Sequence[Instance], attribute: str) -> list[str]:
    known = {thing.attributes[attribute] for thing in things if attribute in thing.attributes}
    return sorted(known if attribute != "lane" else known & _LANES.keys())


def name_of(thing: Instance, things: Sequence[Instance], asked: Description, attribute: str, height: int) -> str | None:
    """The shortest name, "the truck on the left", that singles `thing` out among the `things` of its class.

    It begins with the kind that `asked` names, holds nothing that gives the answer away, and takes at most three modifiers;
    then "the nearest truck", and at last "the second truck from the left", which does not name a third of the picture.
    Returns None where nothing does.
    """
    base = tuple(pair for pair in asked.modifiers if pair[0] == "kind")
    taken = {"kind"} if base else set()
    usable = [
        (modifier, thing.attributes[modifier])
        for modifier in MODIFIERS
        if modifier not in taken and modifier not in asks_for(attribute) and modifier in thing.attributes
    ]
    usable = [pair for pair in usable if pair[0] != "lane" or pair[1] in _LANES]
    for count in range(4):
        for chosen in itertools.combinations(usable, count):
            # Side and lane in one name would be said twice.
            if len({"side", "lane"} & {modifier for modifier, _ in chosen}) == 2:
                continue
            found = Description(thing.name, tuple(sorted(base + chosen, key=lambda pair: MODIFIERS.index(pair[0]))))
            fits = [found.fits(other) for other in things]
            if fits.count(True) == 1 and None not in fits:
                return str(found)
    return place_name(thing, things, Description(thing.name, base), height)


def place_name(thing: Instance, things: Sequence[Instance], base: Description, height: int) -> str | None:
    """A name by the place among the things that `base` may fit; None behind the tenth."""
    alike = sorted((other for other in things if base.fits(other) is not False), key=lambda other: other.centre)
    if nearest_of(alike, height) is thing:
        return f"the nearest {base.words()}"
    place = alike.index(thing)
    if place in (0, len(alike) - 1):
        return f"the {'rightmost' if place else 'leftmost'} {base.words()}"
    return f"the {_ORDINALS[place]} {base.words()} from the left" if place < len(_ORDINALS) else None


def listed(names: Sequence[str]) -> str:
    """'a, b or c'."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
