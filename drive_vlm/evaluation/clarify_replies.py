"""What a reply to a question about a picture is: asked back or answered, about which things, right or wrong. By words and boxes, no judge.

A row is one of tools/build_ambiguity.py. Its candidates are the things that an ambiguous question fits, or of a clear one all things
of the class. A reply is read in this order:

1. Markup, thinking and tags are taken off (`plain_reply`).
2. It *asks* where its last sentence ends with "?", stands on one line and has 3 to 50 words.
3. What the question back names is split at commas and "or". Each part is a candidate's own name, or its words are held against the
   candidates: class, kind, color, state, side, lane, place ("the nearest", "the second from the left", "another").
4. What is said outside of that question are statements: which values of the asked attribute are in them.

The strategy is right where an ambiguous question is asked back or, at level 2, answered for at least two candidates, where a clear
one is not asked back, and where a question about what is not there is denied.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from drive_vlm.evaluation.answer_accuracy import normalize_answer
from drive_vlm.evaluation.answers.said import json_object
from drive_vlm.evaluation.clarify_words import (
    GENERIC,
    REST,
    TABLES,
    Candidate,
    Part,
    folded,
    found_words,
    nouns_of,
    part_of,
    vocabulary,
)

MISSING, DIALOGUE = "missing_referent", "dialogue"
# Judge's scale of the strategy -> reward, and what a wrong fact takes from all but the lowest (ClarifyVLM's own numbers).
PUBLISHED_REWARD = {1: 0.0, 2: 0.6, 3: 0.8, 4: 1.0}
PUBLISHED_DEDUCTION = 0.3
PASS, FAIL, CANNOT_TELL = "pass", "fail", "cannot_tell"
# A part that shares so much with the question only repeats it.
ECHO = 0.8
_LEAST_WORDS, _MOST_WORDS = 3, 50
_THINKING = re.compile(
    r"<think>.*?(?:</think>|\Z)|<\|[^|>]*\|>|</?[A-Za-z_][^<>]{0,40}>|\[\[[^\]]{0,20}\]\]", re.DOTALL
)
_MARKUP = re.compile(r"^\s*(?:#{1,6}\s+|[-*+]\s+|>\s?|\d+[.)]\s+)|[*_`]{1,3}", re.MULTILINE)
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
_STEM = re.compile(
    r"^.*\b(?:mean|meant|meaning|about|refer(?:ring)? to|interested in|looking for|which one)\b[:,]?|^[^:]*:"
)
_PARTS = re.compile(r"\s*(?:[,;/]|\bor\b|\band\b)\s*")
_DENIES = re.compile(
    r"\b(?:there (?:is|are)(?: not|n't)? (?:no|any|an?)\b|(?:is|are) (?:no|not (?:visible|there|present|in))\b|no\b|not see|n't see|cannot see|none\b|isn't\b|aren't\b)"
)
# Words that two questions share whatever they are about.
_STOP_WORDS = frozenset(re.findall(r"\w+", "a an the is are was do does did you your it that this of in on at to what which who where or and i one mean"))  # fmt: skip


@dataclass(frozen=True)
class ClarifyRow:
    """The columns of a row that decide what a reply to it is worth.

    Attributes:
        attribute: what is asked: color, state, side, or "free" where no table knows the answers.
        target: number of the candidate that is meant; None where the question is ambiguous or means none of them alone.
        answers: the answer about each candidate, in their order; empty for a clear row.
    """

    question: str
    ambiguous: bool
    level: int
    type: str
    attribute: str
    candidates: tuple[Candidate, ...]
    target: int | None
    answer: str
    answers: tuple[str, ...]

    @classmethod
    def read(cls, row: Mapping[str, Any], where: str) -> "ClarifyRow":
        """From the columns of a row. Raises ValueError, with `where`, for columns that are missing or of another form."""
        try:
            things = tuple(_candidate(item) for item in row["candidates"])
            # A row that was read and written again has no nulls: its target is absent. Rows of free words have no answers.
            answers, target, level = dict(row.get("answers") or {}), row.get("target"), row["level"]
            texts = (
                row["question"],
                row["answer"],
                row.get("type") or "",
                row.get("attribute") or "free",
                *answers.values(),
            )
            fits = all(isinstance(text, str) for text in texts) and row["ambiguous"] in (0, 1) and level in (0, 1, 2, 3)
            fits &= target is None or (type(target) is int and 0 <= target < len(things))
            fits &= not answers or [thing.name for thing in things] == list(answers)
            if not fits:
                raise TypeError("a column has a value that it cannot have")
        except (KeyError, TypeError, ValueError) as error:
            name = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{where}: {name}; the columns question, ambiguous, level, type, attribute, candidates, target, answer and answers "
                "must be those of tools/build_ambiguity.py"
            ) from error
        question, answer, kind, attribute, *said = texts
        return cls(question, bool(row["ambiguous"]), level, kind, attribute, things, target, answer, tuple(said))

    @cached_property
    def right_values(self) -> tuple[str, ...]:
        """The value that a right answer says: of each candidate of an ambiguous row, else of the row's own answer; "" where no
        table knows it."""
        texts = self.answers if self.ambiguous or self.answers else (self.answer,)
        return tuple(next(iter(self.values_in(text)), "") for text in texts)

    def values_in(self, text: str) -> list[str]:
        """The values of the asked attribute that `text` says, in its order, each once."""
        return list(
            dict.fromkeys(value for _, value in found_words(folded(text), vocabulary(self.attribute, self.candidates)))
        )


def _candidate(item: Mapping[str, Any]) -> Candidate:
    x1, y1, x2, y2 = map(float, item["box"])
    attributes = {str(key): str(value) for key, value in dict(item["attributes"]).items()}
    if not isinstance(item["name"], str) or not isinstance(item["category"], str):
        raise TypeError("a candidate's name and category must be texts")
    return Candidate(item["name"], (x1, y1, x2, y2), item["category"], attributes)


def plain_reply(text: str) -> str:
    """`text` without thinking, tags, verdict marks and Markdown: what a judge sees and rules read.

    >>> plain_reply("<think>two</think>**Do you mean** the `car` or the bus? [[4]]")
    'Do you mean the car or the bus?'
    """
    return re.sub(r"[ \t]+", " ", _MARKUP.sub("", _THINKING.sub(" ", text))).strip()


def is_decorated(text: str) -> bool:
    """Whether `plain_reply` takes more than blanks off: headings, lists, bold words, tags, verdict marks.

    >>> is_decorated("## Answer"), is_decorated(" It is red. ")
    (True, False)
    """
    return plain_reply(text).split() != text.split()


def asked_sentence(text: str) -> str | None:
    """The question that a plain reply ends with, on one line and of 3 to 50 words; None where it asks nothing."""
    last = _SENTENCES.split(text.strip())[-1] if text.strip() else ""
    return last if last.endswith("?") and _LEAST_WORDS <= len(last.split()) <= _MOST_WORDS else None


@dataclass(frozen=True)
class Reading:
    """What a reply says, held against its row."""

    row: ClarifyRow
    text: str

    @cached_property
    def question(self) -> str | None:
        return asked_sentence(self.text)

    @property
    def asked(self) -> bool:
        return self.question is not None

    @cached_property
    def statements(self) -> str:
        """The text without the question at its end."""
        return self.text.strip().removesuffix(self.question or "").strip()

    @cached_property
    def said(self) -> list[str]:
        """Values of the asked attribute that the statements say."""
        return self.row.values_in(self.statements)

    @cached_property
    def nouns(self) -> list[str]:
        """Classes and kinds that the statements name, without words that fit anything."""
        found = found_words(folded(self.statements), nouns_of(self.row.candidates))
        return list(dict.fromkeys(noun for _, noun in found if noun not in GENERIC))

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What the question back names. Empty where it names nothing, as "Which one do you mean?" does."""
        if self.question is None:
            return ()
        words = folded(self.question).rstrip("? ")
        named = [part_of(part, self.row.candidates) for part in _PARTS.split(_STEM.sub("", words).strip())]
        # Without candidates nobody knows the words of the row's things: each part counts.
        found = [part for part in named if part.known or (part.words and not self.row.candidates)]
        rest = frozenset(range(len(self.row.candidates))) - frozenset().union(*(part.fits for part in found))
        return tuple(
            Part(part.words, rest, True) if set(part.words.split()) & set(REST) and not part.fits else part
            for part in found
        )

    @property
    def absent(self) -> list[str]:
        """Named things that are none of the candidates; [] for a row without candidates, of which nobody knows."""
        return [part.words for part in self.parts if not part.fits] if self.row.candidates else []

    @property
    def named(self) -> frozenset[int]:
        """Candidates that the question back leads to, alone or with others."""
        return frozenset().union(*(part.fits for part in self.parts))

    @property
    def discriminates(self) -> bool:
        """Whether the question back splits the candidates: two of its parts fit some, and no candidate fits two parts."""
        sets = [part.fits for part in self.parts if part.fits]
        return len(sets) > 1 and sum(map(len, sets)) == len(self.named)

    @property
    def resolves(self) -> bool:
        """Whether two replies to the question back can lead to different answers: its parts split the candidates by their values."""
        values = self.row.right_values
        if not self.discriminates or len(values) != len(self.row.candidates):
            return False
        return len({frozenset(values[i] for i in part.fits) for part in self.parts if part.fits}) > 1

    @property
    def leading(self) -> bool:
        """Whether the question back offers one thing alone of several: "You mean the woman on the left?\""""
        return len(self.parts) == 1 and len(self.row.candidates) > 1

    @property
    def echo(self) -> bool:
        """Whether the question back only repeats the row's question."""
        return self.question is not None and overlap(self.question, self.row.question) >= ECHO

    @property
    def novelty(self) -> float:
        """What the question back says that the row's question does not, as Clarify-or-Answer (2601.16400) rewards it: -.3 where it
        shares 80 % of the content words and fewer than 20 % of its own are new, -.1 from 60 % and 30 %, else .3; 0 where it asks nothing."""
        if self.question is None:
            return 0.0
        own = content_words(self.question)
        new = len(own - content_words(self.row.question)) / max(len(own), 1)
        same = overlap(self.question, self.row.question)
        return -0.3 if same >= 0.8 and new < 0.2 else -0.1 if same >= 0.6 and new < 0.3 else 0.3

    @property
    def listed(self) -> bool:
        """Whether it answers for several readings: two values of the candidates."""
        if self.asked or not self.row.ambiguous:
            return False
        return len({value for value in self.said if value in self.row.right_values}) > 1

    @property
    def denies(self) -> bool:
        """Whether it says that a thing is not there."""
        return not self.asked and _DENIES.search(folded(self.statements)) is not None

    @property
    def right_strategy(self) -> bool:
        """The gate: see the module."""
        if self.row.type == MISSING:
            return self.denies
        if self.row.ambiguous:
            return self.asked or (self.listed and self.row.level == 2)
        return not self.asked

    @property
    def right_answer(self) -> bool:
        """Whether a clear row is answered right: its value and no other, its denial, or its words where no table knows the value."""
        return not self.asked and self._right_words

    @property
    def _right_words(self) -> bool:
        if self.row.type == MISSING:
            return self.denies
        if self.row.right_values[:1] not in ((), ("",)):
            meant = self.row.target if self.row.target is not None and self.row.answers else 0
            return self.said == [self.row.right_values[meant]]
        wanted, words = normalize_answer(self.row.answer), normalize_answer(self.statements)
        return bool(wanted) and f" {wanted} " in f" {words} "

    @property
    def answers(self) -> bool:
        """Whether the statements hold an answer of any kind, right or wrong."""
        if self.row.type == MISSING and self.denies:
            return True
        return bool(self.said) if self.row.attribute in TABLES else bool(self.statements)

    @property
    def strategy(self) -> int:
        """ClarifyVLM's scale of 1 to 4, by rule.

        Ambiguous: 4 asks so that every candidate is named and they are split, or lists all readings at level 2; 3 names two at least;
        2 asks without that, leads or repeats the question; 1 picks one. Clear: 4 answers with one value; 3 with several; 1 asks, or
        answers nothing.
        """
        if not self.right_strategy:
            return 1
        if not self.row.ambiguous:
            return 1 if not self.answers else 3 if len(self.said) > 1 else 4
        if not self.asked:
            return 4 if set(self.said) >= set(self.row.right_values) else 3
        if not self.row.candidates:
            # Nobody knows what is there: named apart is all that can be seen.
            return 2 if self.echo or len(self.parts) < 2 else 3
        if self.echo or not self.discriminates:
            return 2
        return 4 if len(self.named) == len(self.row.candidates) else 3

    @property
    def factual(self) -> str:
        """PASS, FAIL or CANNOT_TELL, by what the boxes know: an asked thing that is not there, a value that no candidate has, a wrong
        answer."""
        if self.asked and self.row.ambiguous:
            if self.absent:
                return FAIL
            return PASS if self.parts and self.row.candidates else CANNOT_TELL
        if not self.row.ambiguous:
            return PASS if self._right_words else FAIL if self.answers else CANNOT_TELL
        if not self.said:
            return CANNOT_TELL
        return PASS if set(self.said) <= set(self.row.right_values) else FAIL


def read_reply(row: ClarifyRow, text: str) -> Reading:
    """The reply as rules read it."""
    return Reading(row, plain_reply(text))


def published_reward(strategy: int, factual: str) -> float:
    """ClarifyVLM's reward of a judge's strategy 1 to 4 and factual verdict: {1: 0, 2: .6, 3: .8, 4: 1}, less .3 for a wrong fact.

    >>> published_reward(4, "pass"), published_reward(2, "fail"), published_reward(1, "fail")
    (1.0, 0.3, 0.0)
    """
    base = PUBLISHED_REWARD[strategy]
    return round(base - PUBLISHED_DEDUCTION, 6) if factual == FAIL and strategy > 1 else base


def content_words(text: str) -> set[str]:
    """Its words that two questions do not share whatever they are about."""
    return set(re.findall(r"[a-z0-9]+", folded(text))) - _STOP_WORDS


def overlap(first: str, second: str) -> float:
    """Jaccard index of the content words of two texts; 0 where neither has one."""
    a, b = content_words(first), content_words(second)
    return len(a & b) / len(a | b) if a | b else 0.0


# --- a judge's verdict


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a reply: strategy 1 to 4, PASS, FAIL or CANNOT_TELL, whether it asks, and why."""

    strategy: int
    factual: str
    asked: bool
    why: str


def parse_verdict(reply: str) -> Verdict | None:
    """The verdict of a judge's reply {"strategy": 1-4, "factual": "pass|fail|cannot_tell", "asked": bool, "why": str}, which other words
    may stand around; None for anything else.

    >>> parse_verdict('{"strategy": 4, "factual": "pass", "asked": true, "why": "names both"}').strategy
    4
    """
    fields, _ = json_object(_THINKING.sub(" ", reply))
    if fields is None or fields.keys() != {"strategy", "factual", "asked", "why"}:
        return None
    strategy, factual, asked, why = (fields[name] for name in ("strategy", "factual", "asked", "why"))
    right = type(strategy) is int and strategy in PUBLISHED_REWARD and factual in (PASS, FAIL, CANNOT_TELL)
    return (
        Verdict(strategy, factual, asked, why) if right and isinstance(asked, bool) and isinstance(why, str) else None
    )
