"""Words about things held against the candidates of a row: class, kind, color, state, side, lane, and places such as "the nearest".

The word lists serve the builder of the rows as well, so that what it writes is what is read here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Words of free descriptions, of labels and of detectors -> a vehicle's kind.
KINDS = {
    **dict.fromkeys(("car", "sedan", "suv", "hatchback", "coupe", "wagon", "taxi", "jeep", "minivan", "limousine"), "car"),
    **dict.fromkeys(("truck", "pickup", "lorry", "trailer"), "truck"),
    **{"van": "van", "bus": "bus", "coach": "bus", "train": "train", "tram": "train"},
    **dict.fromkeys(("motorcycle", "motorbike", "motor", "scooter"), "motorcycle"),
    **dict.fromkeys(("bicycle", "bike"), "bicycle"),
}  # fmt: skip
# People by the words of labels and detectors -> class.
PEOPLE = {"person": "pedestrian", "pedestrian": "pedestrian", "rider": "cyclist", "cyclist": "cyclist"}
COLORS = {
    **{word: word for word in ("black", "white", "red", "blue", "green", "yellow", "orange", "brown", "silver", "beige", "purple")},
    **{word: word for word in ("pink", "champagne", "maroon")},
    **{"gray": "gray", "grey": "gray", "gold": "gold", "golden": "gold", "amber": "yellow"},
}  # fmt: skip
STATES = {"moving": "moving", "stationary": "stationary", "parked": "parked", "stopped": "stationary"}
SIDES = {"left": "left", "right": "right", "middle": "middle", "center": "middle", "centre": "middle"}
_STATE_WORDS = STATES | {word: word for word in ("braking", "driving", "turning", "walking", "standing", "crossing", "waiting", "sitting")}  # fmt: skip
# Classes by other words of people; those of a class that is a kind of another stand in KINDS.
_CLASSES = PEOPLE | {
    **dict.fromkeys(("man", "woman", "child", "boy", "girl"), "pedestrian"),
    **{"vehicle": "vehicle", "traffic light": "traffic light", "light": "traffic light", "signal": "traffic light"},
    **{"traffic sign": "traffic sign", "sign": "traffic sign", "cone": "cone", "barrier": "barrier"},
}  # fmt: skip
GENERIC = ("vehicle", "thing", "object", "one")
_NEAREST, _FARTHEST, REST = ("nearest", "closest"), ("farthest", "furthest"), ("another", "other", "others")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_LANES = {"left lane": "left", "right lane": "right", "our lane": "ego", "ego lane": "ego", "same lane": "ego"}


@dataclass(frozen=True)
class Candidate:
    """A thing that the question may be about.

    Attributes:
        name: how a question back names it, such as "the white car on the left".
        box: x1, y1, x2, y2 in pixels.
        category: its class.
        attributes: what is known of it (kind, color, state, lane, side).
    """

    name: str
    box: tuple[float, float, float, float]
    category: str
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """One thing that a question back names: its words, and the numbers of the candidates that they fit.

    `known` is False where the words say nothing about a thing ("something else"): then it fits none and names nothing absent.
    """

    words: str
    fits: frozenset[int]
    known: bool


def folded(text: str) -> str:
    """`text` in one case, on one line, with plain apostrophes."""
    return " ".join(text.casefold().replace("’", "'").split())


TABLES = {"color": COLORS, "state": _STATE_WORDS, "side": SIDES}


def vocabulary(attribute: str, candidates: Sequence[Candidate]) -> dict[str, str]:
    """Words -> values of an attribute: the table's, and those that the candidates have."""
    own = (thing.attributes[attribute] for thing in candidates if attribute in thing.attributes)
    return {**TABLES.get(attribute, {}), **{value.casefold(): value for value in own}}


def found_words(text: str, words: Mapping[str, str]) -> list[tuple[str, str]]:
    """(words, value) in the order of `text`; of words that begin at one place the longest."""
    if not words:
        return []
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return [(match[0], words[match[0]]) for match in re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", text)]


def _bare_name(text: str) -> str:
    return re.sub(r"^(?:the|an?|one)\s+", "", folded(text).strip(" .?!"))


def part_of(text: str, candidates: Sequence[Candidate]) -> Part:
    """The candidates that `text`, one thing of a question back, fits."""
    name = _bare_name(text)
    own = frozenset(i for i, thing in enumerate(candidates) if _bare_name(thing.name) == name)
    if own or not name:
        return Part(name, own, bool(name))
    fits, known = set(range(len(candidates))), False
    rest = name
    for phrase, lane in _LANES.items():
        if phrase in rest:
            known, rest = True, rest.replace(phrase, " ")
            fits = {i for i in fits if candidates[i].attributes.get("lane", lane) == lane}
    order = _order(rest)
    if order:
        rest = rest.replace("from the left", " ").replace("from the right", " ")
    for attribute in ("color", "state", *(() if order else ("side",))):
        for _, value in found_words(rest, vocabulary(attribute, candidates)):
            known = True
            fits = {i for i in fits if candidates[i].attributes.get(attribute, value) == value}
    for word, noun in found_words(rest, nouns_of(candidates)):
        known |= word not in ("one", "ones", "thing", "things", "object", "objects")
        fits = {i for i in fits if is_a(candidates[i], noun)}
    if set(rest.split()) & set(REST):
        return Part(name, frozenset(), True)
    if order:
        known, fits = True, order_of(candidates, sorted(fits), order)
    return Part(name, frozenset(fits) if known else frozenset(), known)


def nouns_of(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Words -> classes and kinds, singular and plural."""
    nouns = {thing.category.casefold(): thing.category for thing in candidates}
    nouns |= {word: word for word in GENERIC} | _CLASSES | KINDS | vocabulary("kind", candidates)
    return nouns | {f"{word}{'es' if word.endswith('s') else 's'}": value for word, value in nouns.items()}


def is_a(thing: Candidate, noun: str) -> bool:
    """Whether a thing may be called by `noun`: its class, its kind, or a word for anything."""
    kind = thing.attributes.get("kind")
    if noun in GENERIC:
        return noun != "vehicle" or thing.category == "vehicle" or thing.category in KINDS.values()
    return noun in (thing.category, kind) or (kind is None and thing.category == "vehicle" and noun in KINDS.values())


def _order(text: str) -> str:
    """The word of a place among others in `text`, "second from the right" and the like; "" without one."""
    for word in (*_NEAREST, *_FARTHEST, "leftmost", "rightmost"):
        if re.search(rf"\b{word}\b", text):
            return word
    match = re.search(rf"\b({'|'.join(_ORDINALS)})\b.*\bfrom the (left|right)\b", text)
    return f"{match[1]} {match[2]}" if match else ""


def order_of(candidates: Sequence[Candidate], among: Sequence[int], order: str) -> set[int]:
    """The candidate of `among` at the place `order`: the nearest has the box that ends lowest, left and right go by box middles."""
    if not among:
        return set()
    if order in (*_NEAREST, *_FARTHEST):
        pick = max if order in _NEAREST else min
        return {pick(among, key=lambda i: candidates[i].box[3])}
    ranked = sorted(among, key=lambda i: candidates[i].box[0] + candidates[i].box[2])
    if order in ("leftmost", "rightmost"):
        return {ranked[0 if order == "leftmost" else -1]}
    word, end = order.split()
    place = _ORDINALS.index(word)
    ranked = ranked if end == "left" else ranked[::-1]
    return {ranked[place]} if place < len(ranked) else set()
