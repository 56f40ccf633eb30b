"""Gate 2, grounding: every object that a row claims must be in a source, if a source could have seen it.

A row claims what its answer and its reasoning assert. A question claims what it takes for granted ("What is the horse doing?"), and
a question whether something is there claims it with the answer yes. What is denied is not claimed; what no source can see is neither
right nor wrong.
"""

import re
from dataclasses import dataclass

from drive_vlm.builders.synthesis.gates.candidate import Candidate, Outcome, plain_words
from drive_vlm.builders.synthesis.gates.objects import Mention, ObjectReader

_ASKS = re.compile(
    r"^\s*(is|are|was|were) (there|any)\b|^\s*(do|can|could) you (see|spot|notice|detect|find)\b|^\s*how many\b"
    r"|^\s*do(es)? (the|this) (picture|image|photo|scene|view|frame) (show|contain|have|include)\b",
    re.IGNORECASE,
)
_YES = re.compile(r"\W*(yes|yeah|correct|indeed)\b", re.IGNORECASE)
_NO = re.compile(
    r"\W*(no\b|none\b|zero\b|0\b|not\b|there (is|are) (no|not|none)\b|there (isn|aren)['’]t\b)", re.IGNORECASE
)
_COUNT = re.compile(
    r"\W*(there (is|are) )?(\w+ )?([1-9]\d*|one|two|three|four|five|six|seven|eight|nine|ten|several|many)\b",
    re.IGNORECASE,
)
# With these words and the object alone a question asks about the whole picture.
_WHOLE = frozenset(
    {"is", "are", "was", "were", "there", "any", "a", "an", "the", "in", "on", "of", "at", "this", "do", "does", "can", "could", "you", "see",
     "spot", "notice", "detect", "find", "how", "many", "picture", "image", "photo", "scene", "view", "frame", "visible", "present", "show",
     "shows", "shown", "contain", "contains", "have", "has", "include", "includes", "some"}
)  # fmt: skip


@dataclass(frozen=True)
class Claims:
    """The objects of a row: `named` claims that a source could see, the words of those that are `false`, and of what the answer denies
    though a source has it."""

    named: int
    false: tuple[str, ...]
    denied: tuple[str, ...]


def claims_of(row: Candidate, reader: ObjectReader) -> Claims:
    """What the row claims, read against its objects."""
    labels = labels_of(row)
    claimed = [(text, mention) for text in row.texts for mention in reader.mentions(text, labels)]
    denied: list[str] = []
    if row.asks_freely:
        asked = reader.mentions(row.question, labels)
        if not _asks_whether(row):
            claimed += [(row.question, mention) for mention in asked]
        elif _NO.match(row.answer):
            denied = [_words(row.question, m) for m in asked if m.verdict == "hit" and _is_whole(row.question, m)]
        elif _YES.match(row.answer) or (_is_count(row) and _COUNT.match(row.answer)):
            claimed += [(row.question, mention) for mention in asked]
    # The question and the answer may name one thing: it is one claim.
    found = {
        (tuple(sorted(mention.classes)), mention.verdict): _words(text, mention)
        for text, mention in claimed
        if mention.verdict in ("hit", "false")
    }
    false = tuple(words for (_, verdict), words in found.items() if verdict == "false")
    return Claims(len(found), false, tuple(denied))


def labels_of(row: Candidate) -> set[str]:
    """What the sources of a row have found."""
    return {thing.label for thing in row.objects} | ({row.region.label} if row.region else set())


def check_grounding(row: Candidate, reader: ObjectReader) -> Outcome:
    """Reasons: ungrounded (a claim that no source has), denied_seen (a "no" to what a source has), other_object (a region row that
    names only other things of the picture than its own). The score `grounding` is the share of the claims that a source has."""
    claims = claims_of(row, reader)
    scores = {"grounding": 1 - len(claims.false) / claims.named} if claims.named else {}
    if claims.false:
        return Outcome("ungrounded", ", ".join(claims.false), scores)
    if claims.denied:
        return Outcome("denied_seen", ", ".join(claims.denied), scores)
    if row.region is not None and (other := _other_object(row, row.region.label, reader)):
        return Outcome("other_object", f"{other} in place of {row.region.label}", scores)
    return Outcome(scores=scores)


def _other_object(row: Candidate, label: str, reader: ObjectReader) -> str:
    """What an answer about a region names, where none of it can be the region's `label`; "" where that is named, or nothing is."""
    own = reader.classes_of(label)
    named = reader.mentions(row.answer, labels_of(row))
    seen = [mention for mention in named if mention.verdict == "hit"]
    if not seen or any(own & set(mention.classes) for mention in named):
        return ""
    # Its own name may be one that no source sees: "the barrier".
    if plain_words(label) and set(plain_words(label)) <= set(plain_words(row.answer)):
        return ""
    return _words(row.answer, seen[0])


def _asks_whether(row: Candidate) -> bool:
    return row.kind in ("existence", "count") or bool(_ASKS.match(row.question))


def _is_count(row: Candidate) -> bool:
    return row.kind == "count" or row.question.strip().lower().startswith("how many")


def _is_whole(question: str, mention: Mention) -> bool:
    """Whether the question asks for the object anywhere: "Is there a car?", and not "Is there a car in our lane?"."""
    rest = question[: mention.start] + " " + question[mention.end :]
    return set(plain_words(rest)) <= _WHOLE


def _words(text: str, mention: Mention) -> str:
    return text[mention.start : mention.end].lower()
