"""What a judge is asked and how its reply is read: prompt files, verdicts of pairs, ratings of single answers."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from drive_vlm.evaluation.answers.said import json_object

Turns = tuple[tuple[str, str], ...]

FIRST, SECOND, TIE = "first", "second", "tie"
_VERDICTS = {"A": FIRST, "B": SECOND, "C": TIE}
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
# The marks that CODA-LM's evaluation tries in this order (DLUT-LYZ/CODA-LM, evaluation/stage*_eval_batch.py).
_RATING_MARKS = ("Rating: [[", "rating is: [[", "[[")


def read_prompt(path: str | Path, places: Sequence[str]) -> Turns:
    """The turns of a prompt file: a text is one user turn, a `.json` list [{"role", "content"}] may show examples.

    Raises ValueError for a file that cannot be read, an unknown role, or where one of `places` ("reference" stands for
    {reference}) is nowhere in it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the prompt cannot be read ({error})") from error
    turns = _json_turns(text, path) if path.suffix == ".json" else (("user", text.strip()),)
    missing = [f"{{{place}}}" for place in places if not any(f"{{{place}}}" in content for _, content in turns)]
    if missing:
        raise ValueError(f"{path}: the prompt must hold {', '.join(missing)}")
    return turns


def _json_turns(text: str, path: Path) -> Turns:
    try:
        turns = tuple((turn["role"], turn["content"]) for turn in json.loads(text))
        if not all(isinstance(word, str) for turn in turns for word in turn):
            raise TypeError("a role or a content is not a text")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f'{path}: expected a JSON list of {{"role", "content"}} ({error})') from error
    roles = [role for role, _ in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise ValueError(
            f"{path}: the roles are {', '.join(roles) or 'none'}; after an optional system turn, user and assistant "
            "must alternate and the last turn must be the user's"
        )
    return turns


def fill(turns: Turns, values: Mapping[str, str]) -> Turns:
    """The turns with every {name} of `values` put in at once: braces inside an answer stay as they are."""
    place = re.compile("|".join(re.escape(f"{{{name}}}") for name in values))
    return tuple((role, place.sub(lambda match: values[match[0][1:-1]], content)) for role, content in turns)


def parse_verdict(reply: str) -> str | None:
    """FIRST for [[A]], SECOND for [[B]], TIE for [[C]]; None without a verdict or with several different ones.

    >>> parse_verdict("Answer B misses the cyclist. [[A]]")
    'first'
    """
    found = set(_VERDICT.findall(_THINKING.sub("", reply)))
    return _VERDICTS[found.pop()] if len(found) == 1 else None


def combine(shown: str | None, swapped: str | None) -> str | None:
    """The winner of a pair judged in both orders; `swapped` is the verdict with the answers exchanged.

    Agreement decides, everything else is a tie; None when an order has no verdict.

    >>> combine("first", "second"), combine("first", "first")
    ('first', 'tie')
    """
    if shown is None or swapped is None:
        return None
    return shown if shown == {FIRST: SECOND, SECOND: FIRST, TIE: TIE}[swapped] else TIE


def parse_rating(reply: str, low: int = 1, high: int = 10) -> int | None:
    """The rating as CODA-LM's evaluation reads it: the whole number behind `Rating: [[`, then `rating is: [[`, then `[[`.

    None where no mark is followed by a whole number and `]]`. Unlike there, a number outside [low, high] does not count.
    """
    for mark in _RATING_MARKS:
        _, found, rest = reply.partition(mark)
        number = rest.partition("]]")[0].strip() if found else ""
        if re.fullmatch(r"\d+", number):
            return int(number) if low <= int(number) <= high else None
    return None


def parse_score(reply: str, most: int) -> int | None:
    """The whole number 0..`most` of a reply in JSON, {"score": N}, which other words may stand around; None for anything else.

    >>> parse_score('Since the light is red: {"score": 4}', 4)
    4
    """
    fields, _ = json_object(_THINKING.sub("", reply))
    score = None if fields is None else fields.get("score")
    return score if type(score) is int and 0 <= score <= most else None
