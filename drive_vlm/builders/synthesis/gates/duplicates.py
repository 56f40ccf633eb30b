"""Gate 3, duplicates: one picture must not ask the same thing twice, and no question may be asked of too many pictures.

Two questions are one where ROUGE-L is above a limit (Self-Instruct's .7, as F of precision and recall). Within a picture every pair is
compared; across pictures good templates repeat, so that only a cap for each normalised question holds there.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

from drive_vlm.builders.splits import split_position
from drive_vlm.builders.synthesis.gates.candidate import PASSED, Candidate, Outcome, plain_words
from drive_vlm.evaluation.text_overlap import lcs_length

ROUGE_LIMIT = 0.7


def rouge_f(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L of two lists of words, 0-1: F1 of precision and recall, as Self-Instruct's filter takes it. evaluation/text_overlap.py
    has that of caption scores, which weighs recall more and so depends on the order of the two.

    >>> rouge_f("is there a car".split(), "is there a bus".split())
    0.75
    """
    return 2 * lcs_length(first, second) / (len(first) + len(second)) if first or second else 1.0


def about_region(row: Candidate) -> object:
    """What tells questions apart that have the same words: the region that they are about."""
    return None if row.region is None else row.region.box


def check_duplicates(
    rows: Sequence[Candidate], limit: float = ROUGE_LIMIT, about: Callable[[Candidate], object] = about_region
) -> list[Outcome]:
    """Reasons: exact (the same question and answer of a picture came before), two_answers (the same question of a picture has
    different answers: none of them is kept), near (ROUGE-L with a question that was kept is above `limit`). Questions with another
    `about(row)` are not compared. The score `rouge` is the largest with those kept before."""
    pictures: dict[tuple[str, object], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        pictures[row.image, about(row)].append(i)
    found: list[Outcome] = [PASSED] * len(rows)
    for places in pictures.values():
        for place, outcome in _within([rows[i] for i in places], limit):
            found[places[place]] = outcome
    return found


def _within(rows: Sequence[Candidate], limit: float) -> list[tuple[int, Outcome]]:
    """(place, outcome) of the rows of one picture."""
    questions = [plain_words(row.question) for row in rows]
    answers: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for row, question in zip(rows, questions, strict=True):
        answers[tuple(question)].add(tuple(plain_words(row.answer)))
    kept: list[int] = []
    found = []
    for place, question in enumerate(questions):
        if len(said := answers[tuple(question)]) > 1:
            found.append((place, Outcome("two_answers", f"{len(said)} answers: {rows[place].question[:80]}")))
            continue
        nearest, other = max(((rouge_f(question, questions[k]), -k) for k in kept), default=(0.0, 0))
        scores = {"rouge": round(nearest, 4)} if kept else {}
        if kept and nearest > limit:
            reason = "exact" if questions[-other] == question else "near"
            found.append((place, Outcome(reason, f"{rows[-other].id}: {rows[-other].question[:80]}", scores)))
        else:
            kept.append(place)
            found.append((place, Outcome(scores=scores)))
    return found


def check_question_cap(rows: Sequence[Candidate], most: int, seed: int = 0) -> list[Outcome]:
    """Reason question_cap: `most` pictures are asked the same normalised question already. Which ones are kept, a hash of (seed, id)
    decides, not their order. Fixed questions, a benchmark's own, have no cap."""
    asked: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row.asks_freely:
            asked[tuple(plain_words(row.question))].append(i)
    found: list[Outcome] = [PASSED] * len(rows)
    for places in asked.values():
        places.sort(key=lambda i: (split_position(rows[i].id, seed), i))
        for i in places[most:]:
            found[i] = Outcome(
                "question_cap", f"{len(places):,} rows ask this, {most:,} are kept: {rows[i].question[:80]}"
            )
    return found
