"""Gate 5, the judge: accuracy, relevance and hallucination from 1 to 5, with the picture, by a model that is not the author.

A reply that cannot be read is asked for again; one that never can be is counted as unread and its row is not kept: it was not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from drive_vlm.builders.synthesis.gates.candidate import Candidate, Outcome
from drive_vlm.evaluation.oia_labels import json_object
from drive_vlm.judges.judge import Judge, Judgement, Request, judge_all
from drive_vlm.judges.verdicts import Turns, fill

ASPECTS = ("accuracy", "relevance", "hallucination")
PLACES = ("question", "answer", "objects")
LOW, HIGH, THRESHOLD = 1, 5, 4
Scores = dict[str, int]


class Spending(Protocol):
    """Says when money runs out."""

    def check(self) -> None:
        """Raises ValueError before a block of requests that may pass the limit."""


def parse_rubric(reply: str) -> Scores | None:
    """The three scores of a reply's JSON object; None where one is missing, no whole number or outside 1..5.

    >>> parse_rubric('The light is red. {"accuracy": 5, "relevance": 4, "hallucination": 5}')
    {'accuracy': 5, 'relevance': 4, 'hallucination': 5}
    """
    fields, _ = json_object(reply.rpartition("</think>")[2])
    scores = {name: (fields or {}).get(name) for name in ASPECTS}
    fits = all(type(score) is int and LOW <= score <= HIGH for score in scores.values())
    return {name: int(score) for name, score in scores.items() if score is not None} if fits else None


def refuse_author(judge: str, authors: Sequence[str]) -> None:
    """Raises ValueError where the judge has the name of a model that wrote captions or rows: it scores itself up."""
    own = sorted({author for author in authors if _plain(author) == _plain(judge)})
    if own:
        raise ValueError(
            f"--judge_model {judge} is also the author of the rows ({', '.join(own)}): models score themselves up. Name another "
            "judge, or say --judge_may_be_author."
        )


def _plain(model: str) -> str:
    """A model's name without its organisation or folder."""
    return model.rstrip("/").rpartition("/")[2].casefold()


def request_of(row: Candidate, prompt: Turns) -> Request:
    """What the judge is asked about a row."""
    objects = "; ".join(f"{thing.label} at {[round(value) for value in thing.box]}" for thing in row.objects) or "none"
    answer = f"{row.reasoning}\n{row.answer}" if row.reasoning else row.answer
    question = row.question
    if row.region is not None:
        question += f"\n(The rectangle is at {[round(value) for value in row.region.box]}.)"
    values = {"question": question, "answer": answer, "objects": objects}
    return Request(fill(prompt, values), (row.path,))


@dataclass(frozen=True)
class RubricGate:
    """Asks the judge about rows, block by block; replies are in its cache, so that nothing is asked twice.

    Attributes:
        threshold: each of the three scores must be at least this.
        spending: looks at the costs before each block.
    """

    judge: Judge
    prompt: Turns
    attempts: int
    threshold: int = THRESHOLD
    spending: Spending | None = None

    def __call__(self, rows: Sequence[Candidate]) -> list[Outcome]:
        """Reasons: judge_ASPECT (below the threshold; the lowest), unread. Scores: judge_ASPECT."""
        found: list[Outcome] = []
        requests = [request_of(row, self.prompt) for row in rows]
        for start in range(0, len(requests), self.judge.block):
            if self.spending is not None:
                self.spending.check()
            for block in judge_all(
                self.judge, requests[start : start + self.judge.block], parse_rubric, self.attempts
            ):
                found += [rubric_outcome(judgement, self.threshold) for judgement in block]
        return found


def rubric_outcome(judgement: Judgement[Scores], threshold: int) -> Outcome:
    """What the scores mean for the row."""
    if judgement.value is None:
        return Outcome("unread", f"{judgement.attempts} replies, the last: {judgement.reply[:120]}")
    scores: dict[str, float] = {f"judge_{name}": score for name, score in judgement.value.items()}
    worst = min(ASPECTS, key=lambda name: judgement.value[name])  # type: ignore[index]
    if judgement.value[worst] < threshold:
        return Outcome(f"judge_{worst}", judgement.reply[:200], scores)
    return Outcome(scores=scores)


def rubric_audit(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """{"judged", "unread", "scores": {aspect: {1..5: rows}}}."""
    read = [outcome for outcome in outcomes if outcome.reason != "unread"]
    histogram = {
        name: {str(score): sum(o.scores.get(f"judge_{name}") == score for o in read) for score in range(LOW, HIGH + 1)}
        for name in ASPECTS
    }
    return {"judged": len(read), "unread": len(outcomes) - len(read), "scores": histogram}
