"""Descriptions of things: "the red truck", "the vehicle on the left"; what they fit, and the shortest that fits one thing only."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
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


def shortest(
    thing: Instance, things: Sequence[Instance], base: Description, attribute: str, but_not: str = ""
) -> Description | None:
    """The shortest description that singles `thing` out among the `things` of its class; None where none does.

    It begins with the kind that `base` names, holds nothing that gives the answer away, takes at most three modifiers, and does not
    read as `but_not`.
    """
    kept = tuple(pair for pair in base.modifiers if pair[0] == "kind")
    usable = [
        (modifier, thing.attributes[modifier])
        for modifier in MODIFIERS[1 if kept else 0 :]
        if modifier not in asks_for(attribute) and modifier in thing.attributes
    ]
    usable = [pair for pair in usable if pair[0] != "lane" or pair[1] in _LANES]
    for count in range(4):
        for chosen in itertools.combinations(usable, count):
            # Side and lane in one name would be said twice.
            if len({"side", "lane"} & {modifier for modifier, _ in chosen}) == 2:
                continue
            found = Description(thing.name, kept + chosen)
            fits = [found.fits(other) for other in things]
            if fits.count(True) == 1 and None not in fits and str(found) != but_not:
                return found
    return None


def name_of(
    thing: Instance, things: Sequence[Instance], base: Description, attribute: str, height: int, but_not: str = ""
) -> str | None:
    """`shortest` in words, else "the nearest truck", at last "the second truck from the left"; None where nothing names it."""
    found = shortest(thing, things, base, attribute, but_not)
    return str(found) if found else place_name(thing, things, base, height)


def place_name(thing: Instance, things: Sequence[Instance], base: Description, height: int) -> str | None:
    """A name by the place among the things that the kind of `base` may fit; None behind the tenth."""
    base = Description(base.name, tuple(pair for pair in base.modifiers if pair[0] == "kind"))
    alike = sorted((other for other in things if base.fits(other) is not False), key=lambda other: other.centre)
    if nearest_of(alike, height) is thing:
        return f"the nearest {base.words()}"
    place = alike.index(thing)
    if place in (0, len(alike) - 1):
        return f"the {'rightmost' if place else 'leftmost'} {base.words()}"
    return f"the {_ORDINALS[place]} {base.words()} from the left" if place < len(_ORDINALS) else None


def alike(shape: Description, values: Mapping[tuple[str, str], Sequence[str]], fixed: bool) -> Iterator[Description]:
    """The descriptions that speak of the same attributes as `shape`, with the `values` of its class; with `fixed` of the same kind."""
    options = []
    for modifier, value in shape.modifiers:
        known = values.get((shape.name, modifier), ())
        known = [item for item in known if modifier != "lane" or item in _LANES]
        options.append([(modifier, item) for item in ([value] if fixed and modifier == "kind" else known)])
    for chosen in itertools.product(*options):
        yield Description(shape.name, chosen)


def listed(names: Sequence[str]) -> str:
    """'a, b or c'."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
