"""A teacher may put questions into other words, and nothing else: each rewrite passes three checks or the row keeps its words.

1. The reply has the form, the question is one line of 3 to 50 words that ends with "?", and all names are in the question back.
2. No word of the question narrows it: an ambiguous one names nothing that is true of some candidates only, a clear one still names
   all that it named, and nothing that is not true of the thing meant. None gives the answer away.
3. Asked again, with the candidates as text, the teacher finds two or more that an ambiguous question can be about, and exactly the
   one that a clear question is about.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.builders.ambiguity.descriptions import MODIFIERS, asks_for
from drive_vlm.builders.ambiguity.questions import INVARIANT, MISSING
from drive_vlm.builders.ambiguity.replies import Asker
from drive_vlm.builders.ambiguity.rows import Values
from drive_vlm.builders.ambiguity.two_readings import INTENT, SPELLING
from drive_vlm.builders.row_writer import Row
from drive_vlm.judges.chat_client import ChatError, Message, in_threads
from drive_vlm.judges.verdicts import fill, read_prompt

REPHRASE, REFERENTS = "ambiguity_rephrase.txt", "ambiguity_referents.txt"
_REWRITE = {"question": str, "clarification": str}
# Words of a place, which no attribute holds as they stand; "other" names lead away from one thing.
_SIDES = {
    "left": "left",
    "leftmost": "left",
    "right": "right",
    "rightmost": "right",
    "middle": "middle",
    "center": "middle",
}
_PLACES = {
    "nearest",
    "closest",
    "nearer",
    "closer",
    "farthest",
    "first",
    "second",
    "third",
    "last",
    "lane",
    "front",
    "behind",
}
_PLACES |= {"larger", "largest", "smaller", "smallest", "big", "bigger", "other", "ahead", "far", "near"}


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


class Rephraser:
    """Checks rewrites of rows; `values` are those of each (class, attribute) in the data: the list of words that can narrow."""

    def __init__(self, asker: Asker, prompts: Path, values: Values) -> None:
        self.asker = asker
        self.rephrase = read_prompt(prompts / REPHRASE, ["question", "clarification", "names"])
        self.referents = read_prompt(prompts / REFERENTS, ["things", "question"])
        self.means = {
            word: (attribute, value)
            for (_, attribute), found in values.items()
            if attribute not in ("lane", "side")
            for value in found
            for word in value.split()
        }
        self.means |= {word: ("side", side) for word, side in _SIDES.items()}

    def row(self, row: Row) -> Row:
        """The row in other words, or as it was; `template_question` keeps the words it had."""
        if row["type"] in (SPELLING, INTENT):
            # The misspelt word and "the first" are what makes these rows: in other words they are other questions.
            return row
        names = names_to_keep(row)
        values = {
            "question": row["question"],
            "clarification": row["clarification"] or "none",
            "names": "; ".join(names),
        }
        reply = self.asker.ask(
            _messages(fill(self.rephrase, values)), _REWRITE, lambda found: self.problem_of(row, found), "rephrase"
        )
        if reply is None or not self._confirmed(row, reply["question"]):
            return row
        clarification = reply["clarification"].strip() if row["ambiguous"] else ""
        return with_words(row, reply["question"].strip(), clarification)

    def problem_of(self, row: Row, reply: dict[str, Any]) -> str:
        """Checks 1 and 2; the reason of a rejection, or ''."""
        question, back = reply["question"].strip(), reply["clarification"].strip()
        if not question.endswith("?") or not 3 <= len(question.split()) <= 50 or "\n" in question or "<" in question:
            return "form"
        if row["ambiguous"]:
            if not back.endswith("?") or "\n" in back or "<" in back:
                return "form"
            if any(name.lower() not in back.lower() for name in names_to_keep(row)):
                return "names_lost"
        return self.narrows(row, question)

    def narrows(self, row: Row, question: str) -> str:
        """Check 2: 'narrowed', 'changed', 'tells', or ''."""
        said, before = words_of(question), words_of(row["question"])
        if (said - before) & _PLACES:
            return "narrowed"
        named = {word for word in said if word in self.means}
        kept = {word for word in words_of(row["description"]) if word in self.means}
        if kept - named:
            return "changed"
        over = _things_meant(row)
        for word in sorted(named - before):
            attribute, value = self.means[word]
            if attribute in asks_for(row["attribute"]):
                return "tells"
            if not over or any(thing["attributes"].get(attribute) != value for thing in over):
                return "narrowed" if row["ambiguous"] else "changed"
        return ""

    def _confirmed(self, row: Row, question: str) -> bool:
        """Check 3."""
        things = row["candidates"]
        if not things:
            return row["type"] == MISSING
        listed = "\n".join(f"{i}. {_facts(thing)}" for i, thing in enumerate(things, 1))
        asked = _messages(fill(self.referents, {"things": listed, "question": question}))

        def problem(found: dict[str, Any]) -> str:
            named = set(found["referents"])
            if not named <= set(range(1, len(things) + 1)):
                return "no_such_thing"
            if row["ambiguous"]:
                return "" if len(named) >= 2 else "not_ambiguous"
            if row["target"] is None:
                return "" if (row["type"] == INVARIANT) == bool(named) else "other_thing"
            # Of several that fit, the one that stands out is meant: it must be among them.
            right = row["target"] + 1 in named and (len(named) == 1 or row["type"] == "salient")
            return "" if right else "other_thing"

        return self.asker.ask(asked, {"referents": [int]}, problem, "referents") is not None


def names_to_keep(row: Row) -> list[str]:
    """The names that the question back of an ambiguous row must hold: all candidates', or of many the nearest's."""
    if not row["ambiguous"]:
        return []
    names = list(row["answers"])
    return names if row["level"] == 2 else [row["clarification"].partition("mean ")[2].partition(" or another")[0]]


def with_words(row: Row, question: str, clarification: str) -> Row:
    """The row with another question and, where it is ambiguous, another question back."""
    turns = [dict(turn) for turn in row["messages"]]
    turns[0]["content"] = turns[0]["content"].replace(row["question"], question)
    choices = list(row["choices"])
    if row["ambiguous"]:
        turns[1]["content"] = choices[row["gold_choice"]] = clarification
    new = {"messages": turns, "question": question, "clarification": clarification, "choices": choices}
    return row | new | {"template_question": row["question"]}


def _things_meant(row: Row) -> list[dict[str, Any]]:
    if row["target"] is not None:
        return [row["candidates"][row["target"]]]
    return row["candidates"] if row["ambiguous"] else []


def _facts(thing: dict[str, Any]) -> str:
    known = ", ".join(f"{key} {thing['attributes'][key]}" for key in MODIFIERS if key in thing["attributes"])
    return f"{thing['category']}: {known}"


def _messages(turns: Sequence[tuple[str, str]]) -> list[Message]:
    return [{"role": role, "content": text} for role, text in turns]


def rephrase_all(rephraser: Rephraser, rows: Sequence[Row], workers: int) -> list[Row]:
    """All rows, rephrased where the checks allow it. Raises ValueError, with the way on, when the server cannot be asked."""
    asker = rephraser.asker
    try:
        found = in_threads(rephraser.row, dict(enumerate(rows)), workers, "rephrasing")
        replies = {number: future.result() for number, future in found}
    except ChatError as error:
        raise ValueError(f"{error}\nThe replies are in {asker.cache}: the same command goes on from there") from error
    return [replies[number] for number in range(len(rows))]
