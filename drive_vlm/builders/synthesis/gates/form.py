"""Gate 1, form: is the text whole, of a sensible length, in the right language, no refusal, and silent about its sources?

The lengths are those of Self-Instruct's instances, made fit for questions about pictures (docs/synthesis.md). A fixed question is a
benchmark's own and is not measured.
"""

import re
from dataclasses import dataclass

from drive_vlm.builders.rewrites import fault, words
from drive_vlm.builders.synthesis.gates.candidate import PASSED, Candidate, Outcome, plain_words

# What the writer was shown in place of the picture.
_GIVEN = r"(the|this|your|these|those) (given |provided |supplied |object |detection |image |picture )*"
_LEAK = re.compile(
    rf"\b(according to|based on|as (stated|mentioned|described|listed|noted|given) in) {_GIVEN}"
    r"(captions?|descriptions?|annotations?|lists?|metadata|detections?|detector)\b"
    rf"|\b(in|from) {_GIVEN}(captions?|annotations?|metadata|detections|object list)\b"
    r"|\bbounding[- ]box(es)?\b|\bobject (list|detectors?|detections?)\b|\b(detected|retrieved) by the (detector|model|system)\b"
    r"|\b(provided|given|supplied) (text|captions?|descriptions?|information|context|data|detections|list)\b"
    r"|\bconfidence( score)?s? of 0?\.\d",
    re.IGNORECASE,
)
_BLIND = re.compile(
    r"\b(cannot|can't|can not|could not|couldn't|unable to|not able to) (see|view|access|open) (the|any|this|an?) (image|picture|photo)"
    r"|\bno (image|picture|photo) (is |was |has been )?(provided|attached|given)",
    re.IGNORECASE,
)
# "Bicycles were introduced in the 19th century": what a knowledge text says of a thing, and no picture shows.
_ENCYCLOPAEDIC = re.compile(
    r"\b(in|since|from|by|during|around|until|before|after) (the )?((early|late|mid)[ -])?(1[6-9]|20)\d\ds?\b|\bcentur(y|ies)\b",
    re.IGNORECASE,
)
_PLEASE = re.compile(r"\bplease\b", re.IGNORECASE)
_END = re.compile(r"[.!?…][\"'”’)\]]*$")
_LATIN = re.compile(r"[a-zA-ZÀ-ɏ]")


@dataclass(frozen=True)
class FormLimits:
    """Words of questions and of answers, both ends included; an answer of at most `short` words needs no full stop ("Yes", "two cars");
    at least this share of all letters is Latin."""

    question: tuple[int, int] = (4, 60)
    answer: tuple[int, int] = (1, 300)
    short: int = 3
    latin: float = 0.9


def check_form(row: Candidate, limits: FormLimits = FormLimits()) -> Outcome:
    """Reasons: those of rewrites.fault (empty, cut_off, refusal, special_tokens, too_short, too_long) for the answer and the reasoning,
    question_ and the same for the question; no_end, other_script, source_leak, encyclopaedic, echo."""
    question = row.question.strip()
    least, most = limits.question if row.asks_freely else (1, 10_000)
    # "Please provide ..." is how an assistant asks back, and how people ask.
    if found := fault(_PLEASE.sub("kindly", question), "stop", least, most):
        return Outcome(f"question_{found}", _lengths(question))
    if row.asks_freely and not _END.search(question):
        return Outcome("question_no_end", question[-40:])
    for text in row.texts:
        if problem := _problem(text.strip(), row.finish_reason, limits):
            return problem
    if plain_words(row.answer) == plain_words(question):
        return Outcome("echo", row.answer[:80])
    if row.asks_freely and (leak := _LEAK.search(question)):
        return Outcome("source_leak", leak[0])
    return PASSED


def _problem(text: str, finish_reason: str, limits: FormLimits) -> Outcome | None:
    # Before refusals, which also are what speaks of "the caption".
    for reason, pattern in (("refusal", _BLIND), ("source_leak", _LEAK), ("encyclopaedic", _ENCYCLOPAEDIC)):
        if text and finish_reason != "length" and (said := pattern.search(text.replace("’", "'"))):
            return Outcome(reason, said[0])
    if found := fault(text, finish_reason, *limits.answer):
        return Outcome(found, _lengths(text))
    if words(text) > limits.short and not _END.search(text):
        return Outcome("no_end", text[-40:])
    letters = [letter for letter in text if letter.isalpha()]
    if letters and sum(bool(_LATIN.match(letter)) for letter in letters) < limits.latin * len(letters):
        return Outcome("other_script", text[:40])
    return None


def _lengths(text: str) -> str:
    return f"{words(text)} words: {text[:60]}"
