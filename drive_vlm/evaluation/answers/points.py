"""Lists of points and trajectories as text, in the spellings of the field, both ways.

Read: `[(x, y), ...]`, `[[x, y], ...]`, pairs without an outer bracket, one pair a line with "1." or "0.5s:" before it, `PT = [...]`,
`[PT, (x, y, heading), ...]`, `<wp>...</wp>` around one pair or all of them, JSON with a list of pairs or of {"x", "y"}, all of these in
a code fence or after other words. A third number of every point (a heading) is left out.

A list that carries a mark (PT, <wp>, "trajectory:", "waypoints:") goes before lists without one: reasoning often repeats the history. Two
different lists of the same rank are unread, and so are a list that is cut, one with another number of points than wanted, points of
different sizes, numbers that are not finite, and flat lists, of which nobody knows whether they are boxes or pairs.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from drive_vlm.evaluation.answers.said import Said, agreed, answer_parts, json_object, of_fields, plain, unread

Point = tuple[float, float]
FORMS = ("list", "brackets", "pt", "wp", "json", "fenced")

_KEYS = ("trajectory", "waypoints", "points", "path", "plan", "pt", "wp", "futuretrajectory", "plannedtrajectory")
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_COORDINATE = rf"\s*(?:[xy]\s*[=:]\s*)?({_NUMBER})\s*m?\s*"
_PAIR = re.compile(
    rf"\({_COORDINATE},{_COORDINATE}(?:,{_COORDINATE})?\)|\[{_COORDINATE},{_COORDINATE}(?:,{_COORDINATE})?\]"
)
# Between two points of one list: marks, "and", an arrow, the number or the time of the next point.
_BETWEEN = re.compile(
    r"[\s,;]*(?:and|then|->|→|=>)?[\s,;]*(?:[-*•]\s*)?(?:\d+[.)]\s*)?(?:(?:at\s+)?(?:t\s*=\s*)?\d+(?:\.\d+)?\s*s(?:ec(?:ond)?s?)?\s*[:=]\s*)?"
)
_CUT = re.compile(r"[\s,;]*[(\[]\s*[-+.\d]|[\s,;]*[-+.]?\d+(?:\.\d*)?\s*(?:,|$)")
_OPENED = re.compile(r"[\[(]\s*(?:PT\s*,\s*)?$", re.IGNORECASE)
_CLOSED = re.compile(r"\s*,?\s*[\])]")
_MARK = re.compile(
    r"(?:\bPT\b\s*[=:,]?|<(?:wp|trajectory|points|waypoints)>|\b(?:trajectory|waypoints|points|path|plan)\b\s*(?:is|are)?\s*[:=]?)\s*[\[(]*\s*$",
    re.IGNORECASE,
)
_TAGGED = re.compile(r"<wp>(.*?)(?:</wp>|(?=<wp>)|\Z)", re.DOTALL | re.IGNORECASE)
_BARE = re.compile(rf"{_COORDINATE},{_COORDINATE}(?:,{_COORDINATE})?")


def points_text(points: Sequence[Sequence[float]], form: str = "list", decimals: int = 2) -> str:
    """The points [T, 2] in one of FORMS, each of which `read_points` reads back, rounded to `decimals` places. No "-0.00".

    >>> points_text([(1, -2.5)], "pt", 1)
    'PT = [(1.0, -2.5)]'
    """
    rows = [tuple(round(float(value), decimals) + 0.0 for value in point) for point in points]
    if form in ("json", "fenced"):
        text = json.dumps({"trajectory": rows})
        return text if form == "json" else f"```json\n{text}\n```"
    words = [", ".join(f"{value:.{decimals}f}" for value in row) for row in rows]
    if form == "wp":
        return "".join(f"<wp>{word}</wp>" for word in words)
    if form == "brackets":
        return f"[{', '.join(f'[{word}]' for word in words)}]"
    if form not in FORMS:
        raise ValueError(f"form {form!r} of a trajectory; expected one of {', '.join(FORMS)}")
    return ("PT = " if form == "pt" else "") + f"[{', '.join(f'({word})' for word in words)}]"


def read_points(text: str, count: int | None = None) -> Said[tuple[Point, ...]]:
    """The points that an answer lists, `count` of them where it is given, as ((x, y), ...).

    >>> read_points("PT = [(1.0, 2.0), (3.0, 4.5)]").value
    ((1.0, 2.0), (3.0, 4.5))
    """
    if not text.strip():
        return unread("empty")
    return agreed([_of_part(part, count) for part in answer_parts(text)], "lists of points")


def _of_part(part: str, count: int | None) -> Said[tuple[Point, ...]]:
    fields, _ = json_object(part)
    if fields is not None:
        return of_fields(fields, lambda value: _of_value(value, count), _KEYS, "lists of points")
    if part.startswith("{"):
        return unread("broken JSON")
    return _of_text(plain(part), count)


def _of_value(value: Any, count: int | None) -> Said[tuple[Point, ...]]:
    """A JSON field's value: a text, or a list of [x, y] or {"x", "y"}."""
    if isinstance(value, str):
        return _of_text(plain(value), count)
    if not isinstance(value, list):
        return unread("the JSON field is no list")
    rows = [[item["x"], item["y"]] if isinstance(item, dict) and {"x", "y"} <= item.keys() else item for item in value]
    for row in rows:
        if not isinstance(row, list) or not all(type(number) in (int, float) for number in row):
            return unread("the JSON field is no list of points")
    return _checked(rows, count)


def _of_text(text: str, count: int | None) -> Said[tuple[Point, ...]]:
    if "<wp>" in text.lower():
        return _of_tags(text, count)
    runs = list(_runs(text))
    if not runs:
        return unread("no points")
    best = [run for run in runs if run.marked] or runs
    # Reasoning names single points: only lists of the wanted length are meant, where there are any.
    best = [run for run in best if len(run.rows) == count] or best
    return agreed(
        [unread(run.problem) if run.problem else _checked(run.rows, count) for run in best], "lists of points"
    )


class _Run:
    """Points that stand together: their numbers, whether a mark is before them, and what is wrong with the list ("": nothing)."""

    def __init__(self, matches: Sequence[re.Match[str]], text: str) -> None:
        self.rows = [[float(group) for group in match.groups() if group is not None] for match in matches]
        before, after = text[: matches[0].start()], text[matches[-1].end() :]
        self.marked = _MARK.search(before) is not None
        self.problem = ""
        if _CUT.match(after):
            self.problem = "the list is cut or broken"
        # The last bracket alone may be cut off.
        elif _OPENED.search(before):
            self.problem = "the list is broken" if after.strip() and not _CLOSED.match(after) else ""
        elif _depth(before):
            self.problem = "the list is broken"


def _depth(text: str) -> int:
    """How many brackets of `text` are still open at its end."""
    depth = 0
    for mark in re.findall(r"[\[\](){}]", text):
        depth = depth + 1 if mark in "[({" else max(0, depth - 1)
    return depth


def _runs(text: str) -> Iterator[_Run]:
    run: list[re.Match[str]] = []
    for match in _PAIR.finditer(text):
        if run and not _BETWEEN.fullmatch(text, run[-1].end(), match.start()):
            yield _Run(run, text)
            run = []
        run.append(match)
    if run:
        yield _Run(run, text)


def _of_tags(text: str, count: int | None) -> Said[tuple[Point, ...]]:
    """<wp> around each point, or around the whole list."""
    inside = [part.strip() for part in _TAGGED.findall(text) if part.strip()]
    rows: list[list[float]] = []
    for part in inside:
        if bare := _BARE.fullmatch(part):
            rows.append([float(group) for group in bare.groups() if group is not None])
            continue
        runs = list(_runs(part))
        if len(runs) != 1 or runs[0].problem or (len(inside) > 1 and len(runs[0].rows) > 1):
            return unread("the <wp> tags hold no clear list of points")
        rows += runs[0].rows
    return _checked(rows, count)


def _checked(rows: Sequence[Sequence[float]], count: int | None) -> Said[tuple[Point, ...]]:
    sizes = {len(row) for row in rows}
    if not rows:
        return unread("no points")
    if len(sizes) > 1 or not sizes <= {2, 3}:
        return unread("points need two numbers each")
    if not all(math.isfinite(number) for row in rows for number in row):
        return unread("not finite")
    if count is not None and len(rows) != count:
        return unread(f"{len(rows)} points where {count} are wanted")
    return Said(tuple((float(row[0]), float(row[1])) for row in rows))
