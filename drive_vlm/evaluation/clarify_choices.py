"""Four options, one of them right: by the place of the right one, by the letter that is said, the same in all rotations or not.

A row of four options is asked four times: rotation r shows option (place + r) modulo 4 at each place, so that the right one stands
at every place once. An answer that names no letter is wrong, and is counted.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drive_vlm.evaluation.agreement import Rate
from drive_vlm.evaluation.answer_accuracy import normalize_answer
from drive_vlm.evaluation.clarify import Pairs, ratios
from drive_vlm.evaluation.clarify_replies import plain_reply

LETTERS = "ABCD"
UNREAD = "unread"
# "B", "(B)", "B.", "B: the car"; not the article of "A car".
_BEGINS = re.compile(r"^\(?([A-D])(?:\)|[.:,](?=\s|$)|\s*$|\s*\n)")
_SAYS = re.compile(r"\b(?i:answer|option|choice|letter)\b(?:\s+is)?\s*:?\s*\(?([B-D]\b|A\b(?!\s+(?!or\b|and\b)[a-z]))")


@dataclass(frozen=True)
class Choice:
    """An answer to one rotation of a row. `gold` and `said` are places from 0; `said` is None where no letter can be read."""

    row: str
    group: str
    ambiguous: bool
    rotation: int
    gold: int
    said: int | None


def rotated(options: Sequence[str], rotation: int) -> list[str]:
    """The options as the rotation shows them.

    >>> rotated(["w", "x", "y", "z"], 1)
    ['x', 'y', 'z', 'w']
    """
    return [options[(place + rotation) % len(options)] for place in range(len(options))]


def gold_place(gold: int, rotation: int) -> int:
    """Where the option number `gold` stands in a rotation."""
    return (gold - rotation) % len(LETTERS)


def read_letter(text: str, options: Sequence[str]) -> int | None:
    """The place that an answer names: a letter at its beginning, one after "answer" or "option", or the words of one option.

    >>> read_letter("(b)", ["w", "x", "y", "z"]), read_letter("The answer is C.", ["w", "x", "y", "z"])
    (1, 2)
    """
    text = plain_reply(text)
    if re.fullmatch(r"\(?[a-d]\)?\.?", text):
        text = text.upper()
    if begins := _BEGINS.match(text):
        return LETTERS.index(begins[1])
    said = set(_SAYS.findall(text))
    if len(said) == 1:
        return LETTERS.index(said.pop())
    words = normalize_answer(text)
    equal = [place for place, option in enumerate(options) if normalize_answer(option) == words]
    return equal[0] if len(equal) == 1 else None


def choice_scores(choices: Sequence[Choice], seed: int = 0) -> dict[str, Rate]:
    """accuracy (of all, "ambiguous", "clear", and "gold A" to "gold D"), "said A" to "said D" and "said unread" as shares of all, and
    consistent: rows whose answers to all four rotations name one option, among the rows that have all four."""
    right = np.array([item.said == item.gold for item in choices])
    rows = np.ones(len(choices))
    pairs: Pairs = {"accuracy": (right, rows)}
    for name, truth in (("ambiguous", True), ("clear", False)):
        here = np.array([item.ambiguous == truth for item in choices])
        pairs[f"accuracy {name}"] = (right & here, here)
    for place, letter in enumerate(LETTERS):
        here = np.array([item.gold == place for item in choices])
        pairs[f"accuracy gold {letter}"] = (right & here, here)
    places: dict[str, int | None] = {letter: place for place, letter in enumerate(LETTERS)} | {UNREAD: None}
    for name, said in places.items():
        pairs[f"said {name}"] = (np.array([item.said == said for item in choices]), rows)
    groups = [item.group for item in choices]
    found = ratios(pairs, groups, seed)
    whole = [items for items in _by_row(choices) if _all_rotations(items)]
    if whole:
        same = np.array([_one_option(items) for items in whole])
        found |= ratios({"consistent": (same, np.ones(len(whole)))}, [items[0].group for items in whole], seed)
    return found


def incomplete_rows(choices: Sequence[Choice]) -> int:
    """Rows that lack an answer to one of their rotations."""
    return sum(not _all_rotations(items) for items in _by_row(choices))


def _by_row(choices: Sequence[Choice]) -> list[list[Choice]]:
    rows: dict[str, list[Choice]] = {}
    for item in choices:
        rows.setdefault(item.row, []).append(item)
    return list(rows.values())


def _all_rotations(items: Sequence[Choice]) -> bool:
    return len({item.rotation for item in items}) == len(LETTERS)


def _one_option(items: Sequence[Choice]) -> bool:
    options = Counter(None if item.said is None else (item.said + item.rotation) % len(LETTERS) for item in items)
    return len(options) == 1 and None not in options
