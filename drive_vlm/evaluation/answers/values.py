"""Yes or no, and single numbers."""

import math
import re
from collections.abc import Sequence
from typing import Any

from drive_vlm.evaluation.answers.said import Said, agreed, answer_parts, json_object, of_fields, plain, unread

_WORDS = {"yes": True, "no": False, "true": True, "false": False}
_BEGINS = re.compile(
    r"\W*(?:answer\s*[:=]?\s*)?(yes|no|true|false)\b(?!\s+(?:doubt|question|problem|matter|longer))", re.IGNORECASE
)
_SAYS = re.compile(
    r"\banswer(?:\s+(?:is|would be|should be)\b(?:\s+(?:clearly|probably|likely|definitely|a|an))*(?:\s*:)?|\s*[:=])\s*[\"'(]*(yes|no|true|false)\b(?!\s*\?)",
    re.IGNORECASE,
)
# "Yes" is an answer wherever it stands; "no" also begins "no car", so it counts before a mark or the end alone.
_ELSEWHERE = re.compile(r"\b(?:(yes)|(no)(?=\s*(?:[.,;:!?]|$)))", re.IGNORECASE)
_ANY = r"(?:yes|no|true|false)"
_HEDGE = re.compile(rf"\W*({_ANY})\s*(?:/|,|\bor\b|\band\b)\s*(?!\1\b){_ANY}\b|\W*{_ANY}\s*\?", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?![\d.]*\d)"
)
_STRICT_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


def strict_yes_no(text: str) -> Said[bool]:
    """The bare word, "Yes" or "No", with or without a point."""
    word = text.removesuffix(".")
    return Said(word == "Yes") if word in ("Yes", "No") else unread("not exactly Yes or No")


def read_yes_no(text: str) -> Said[bool]:
    """Yes (True) or no (False): the word at the beginning, or after "the answer is". Both in one answer are unread.

    >>> read_yes_no("No, there is no car.").value, read_yes_no("Yes and no.").value
    (False, None)
    """
    if not text.strip():
        return unread("empty")
    return agreed([_yes_no_of_part(part) for part in answer_parts(text)], "answers")


def _yes_no_of_part(part: str) -> Said[bool]:
    fields, _ = json_object(part)
    if fields is not None:
        return of_fields(fields, _yes_no_of_value, (), "answers")
    return unread("broken JSON") if part.startswith("{") else _yes_no_of_text(plain(part))


def _yes_no_of_value(value: Any) -> Said[bool]:
    if isinstance(value, bool):
        return Said(value)
    return _yes_no_of_text(plain(value)) if isinstance(value, str) else unread("the JSON field is no text")


def _yes_no_of_text(text: str) -> Said[bool]:
    if _HEDGE.match(text):
        return unread("both yes and no")
    said = {_WORDS[word.lower()] for word in _SAYS.findall(text)}
    if begins := _BEGINS.match(text):
        said.add(_WORDS[begins[1].lower()])
    # A word elsewhere contradicts, it does not answer: "I would say yes to that, but" is no clear answer.
    other = {bool(yes) for yes, _ in _ELSEWHERE.findall(text)}
    if len(said | (other if said else set())) > 1:
        return unread("both yes and no")
    return Said(said.pop()) if said else unread("neither yes nor no")


def read_number(text: str, units: Sequence[str] = ()) -> Said[float]:
    """The one number of an answer: "12.5", "about 12.5 m/s", "1,200", JSON. Where the answer has several and `units` are given, the
    one that stands before a unit. Two different numbers are unread; "12,5" is unread, since nobody knows which comma it is.

    >>> read_number("The speed is 12.5 m/s.").value, read_number("5 to 7 m").value
    (12.5, None)
    """
    if not text.strip():
        return unread("empty")
    return agreed([_number_of_part(part, units) for part in answer_parts(text)], "numbers")


def _number_of_part(part: str, units: Sequence[str]) -> Said[float]:
    fields, _ = json_object(part)
    if fields is not None:
        return of_fields(fields, lambda value: _number_of_value(value, units), ("value", "number"), "numbers")
    return unread("broken JSON") if part.startswith("{") else _number_of_text(plain(part), units)


def _number_of_value(value: Any, units: Sequence[str]) -> Said[float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(float(value)) if abs(value) < 1e300 else unread("not finite")
    return _number_of_text(plain(value), units) if isinstance(value, str) else unread("the JSON field is no number")


def _number_of_text(text: str, units: Sequence[str]) -> Said[float]:
    if re.search(r"\d,\d(?!\d\d(?!\d))", text):
        return unread("a comma between digits that is no thousands separator")
    found = [(float(match[0].replace(",", "")), text[match.end() :]) for match in _NUMBER.finditer(text)]
    values = {value for value, _ in found}
    if len(values) > 1 and units:
        behind = re.compile(rf"\s*(?:{'|'.join(map(re.escape, units))})(?![\w/])")
        values = {value for value, after in found if behind.match(after)} or values
    if len(values) > 1:
        return unread("two different numbers")
    return _finite(values.pop()) if values else unread("no number")


def _finite(value: float) -> Said[float]:
    return Said(value) if math.isfinite(value) else unread("not finite")
