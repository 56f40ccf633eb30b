"""Gate 5, the judge: accuracy, relevance and hallucination from 1 to 5, with the picture, by a model that is not the author.

A reply that cannot be read is asked for again; one that never can be is counted as unread and its row is not kept: it was not judged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from drive_vlm.builders.synthesis.gates.candidate import Candidate, Outcome
from drive_vlm.evaluation.oia_labels import json_object
from drive_vlm.judges.judge import Judge, Judgement, Request, judge_all
from drive_vlm.judges.verdicts import Turns, fill

ASPECTS = ("accuracy", "relevance", "hallucination")
PLACES = ("question", "answer", "objects")
LOW, HIGH, THRESHOLD = 1, 5, 4
Scores = dict[str, int]


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


def plain_picture(row: Candidate) -> str:
    """The file of the row's picture, as it was taken."""
    return row.path


def request_of(row: Candidate, prompt: Turns, picture: str) -> Request:
    """What the judge is asked about a row and its `picture`."""
    objects = "; ".join(f"{thing.label} at {[round(value) for value in thing.box]}" for thing in row.objects) or "none"
    answer = f"{row.reasoning}\n{row.answer}" if row.reasoning else row.answer
    values = {"question": row.question, "answer": answer, "objects": objects}
    return Request(fill(prompt, values), (picture,))


@dataclass(frozen=True)
class RubricGate:
    """Asks the judge about rows; replies are in its cache, so that nothing is paid twice.

    Attributes:
        threshold: each of the three scores must be at least this.
        picture_of: the file that the judge is shown: of a region row the picture with the rectangle.
    """

    judge: Judge
    prompt: Turns
    attempts: int
    threshold: int = THRESHOLD
    picture_of: Callable[[Candidate], str] = plain_picture

    def __call__(self, rows: Sequence[Candidate]) -> list[Outcome]:
        """Reasons: judge_ASPECT (below the threshold; the lowest), unread. Scores: judge_ASPECT."""
        requests = [request_of(row, self.prompt, self.picture_of(row)) for row in rows]
        blocks = judge_all(self.judge, requests, parse_rubric, self.attempts)
        return [rubric_outcome(judgement, self.threshold) for block in blocks for judgement in block]


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
