"""Gate 6, balance: at most so many rows of a class, of a question template, of a picture; histograms before and after.

Which rows go when there are too many, a hash of (seed, id) decides: not the order of the file, in which pictures of one drive follow
each other.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drive_vlm.builders.splits import split_position
from drive_vlm.builders.synthesis.gates.candidate import PASSED, Candidate, Outcome, plain_words

_DIGITS = re.compile(r"\d+")
NO_CLASS = "(none)"


@dataclass(frozen=True)
class Caps:
    """Rows at most of a class, of a template (free questions alone), of a picture, and in all; None: no cap."""

    class_: int | None = None
    template: int | None = None
    picture: int | None = None
    rows: int | None = None


def class_of(row: Candidate) -> str:
    """The class that a row is about: the region's label, else the label that its question names first, else NO_CLASS.

    The longest label that stands at a place wins: "traffic light" and not "light".
    """
    if row.region is not None:
        return row.region.label
    if not row.asks_freely:
        return NO_CLASS
    question = " ".join(plain_words(row.question))
    places = {
        label: found.start()
        for label in {thing.label for thing in row.objects}
        if (found := re.search(rf"\b{re.escape(' '.join(plain_words(label)))}(s|es)?\b", question))
    }
    return min(places, key=lambda label: (places[label], -len(label), label), default=NO_CLASS)


def template_of(row: Candidate) -> str:
    """The question with its class and its numbers taken out: what a template made.

    A fixed question is one template with all others of its task.
    """
    if not row.asks_freely:
        return f"({row.task})"
    question = " ".join(plain_words(row.question))
    for label in sorted({thing.label for thing in row.objects}, key=lambda label: (-len(label), label)):
        question = re.sub(rf"\b{re.escape(' '.join(plain_words(label)))}(s|es)?\b", "*", question)
    return _DIGITS.sub("#", question)


def histograms(rows: Sequence[Candidate]) -> dict[str, dict[str, int]]:
    """{"task", "kind", "class", "template", "rows_a_picture"} -> counts, the largest first."""
    pictures = Counter(row.image for row in rows)
    counted = {
        "task": Counter(row.task for row in rows),
        "kind": Counter(row.kind or "(none)" for row in rows),
        "class": Counter(map(class_of, rows)),
        "template": Counter(map(template_of, rows)),
        "rows_a_picture": Counter(str(count) for count in pictures.values()),
    }
    return {
        name: dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))) for name, counts in counted.items()
    }


def check_balance(rows: Sequence[Candidate], caps: Caps, seed: int = 0) -> list[Outcome]:
    """Reasons: class_cap, template_cap, picture_cap, rows_cap. A row that one cap takes out leaves its place in the others free."""
    limits: list[tuple[str, int | None, Callable[[Candidate], str]]] = [
        ("picture_cap", caps.picture, lambda row: row.image),
        ("class_cap", caps.class_, class_of),
        ("template_cap", caps.template, template_of),
        ("rows_cap", caps.rows, lambda row: "all"),
    ]
    used: dict[str, Counter[str]] = {reason: Counter() for reason, _, _ in limits}
    found: list[Outcome] = [PASSED] * len(rows)
    for i in sorted(range(len(rows)), key=lambda i: (split_position(rows[i].id, seed), i)):
        names = {reason: name(rows[i]) for reason, most, name in limits if most is not None and _holds(reason, rows[i])}
        full = next(
            (reason for reason, most, _ in limits if reason in names and used[reason][names[reason]] >= (most or 0)),
            None,
        )
        if full:
            found[i] = Outcome(full, names[full])
        else:
            for reason, name in names.items():
                used[reason][name] += 1
    return found


def _holds(reason: str, row: Candidate) -> bool:
    """Whether a cap is about the row: rows without a class and fixed questions have no cap of their kind."""
    if reason == "class_cap":
        return class_of(row) != NO_CLASS
    return reason != "template_cap" or row.asks_freely
