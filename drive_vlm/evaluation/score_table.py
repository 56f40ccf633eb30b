"""The tail that benchmark evaluators share: predictions met with the rows there are, scores with intervals by scene beside what a blind
or lazy system gets, and what makes a score partial.

A benchmark's number means something only with: its version, how many of its rows were scored, how many answers could not be read, an
interval that draws whole scenes, and the baselines on the same rows. `ScoreTable` holds these, `drive_vlm/report/scores.py` prints them
and --json writes them in one form. A choice that cannot be read is wrong in every score and is counted as unread; a rating that cannot
be read is left out of the mean and counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from drive_vlm.data.predictions import Prediction
from drive_vlm.evaluation.answer_accuracy import normalize_answer
from drive_vlm.evaluation.answers.said import Said
from drive_vlm.evaluation.statistics import Estimate, Result, paired_difference, summarize

T = TypeVar("T")
# Sections of a table, in the order they are printed.
SCORES, BASELINES, CHANGES = "scores", "baselines", "changes"


@dataclass(frozen=True)
class Score(Result):
    """A mean over `n` rows of `of`, with its 95 % interval over `groups` scenes; `value` is None where nothing was scored."""

    n: int
    of: int
    groups: int
    value: float | None
    low: float | None
    high: float | None
    unread: int = 0


@dataclass
class ScoreTable:
    """All numbers of one evaluation, each the mean of a column times `scale` (100: points).

    rows_there: rows the benchmark has (in the given file); rows_scored: those with a prediction; partial: why the score does not
    compare with published ones, empty where it does; differ: rows that strict and lenient reading judge differently.
    """

    benchmark: str
    version: str
    rows_there: int
    rows_scored: int
    scale: float = 100
    seed: int = 0
    unread: int = 0
    differ: int | None = None
    partial: list[str] = field(default_factory=list)
    sections: dict[str, dict[str, Score]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows_scored < self.rows_there:
            self.partial.append(f"{self.rows_scored:,} of {self.rows_there:,} rows have a prediction")

    def add(
        self,
        name: str,
        values: Sequence[float | None] | np.ndarray,
        groups: Sequence[Any],
        of: int | None = None,
        unread: int = 0,
        section: str = SCORES,
    ) -> Score:
        """The mean of `values` [N]; None, a rating that could not be read, is left out and counted as unread. `of` are the rows there
        are of this kind (default: N)."""
        kept = [(float(value), group) for value, group in zip(values, groups, strict=True) if value is not None]
        unread += len(values) - len(kept)
        of = len(values) if of is None else of
        if kept:
            found = summarize([self.scale * value for value, _ in kept], [group for _, group in kept], self.seed)
            plain = found.to_dict()
            score = Score(len(kept), of, found.groups, found.mean, plain["low"], plain["high"], unread)
        else:
            score = Score(0, of, 0, None, None, None, unread)
        self.sections.setdefault(section, {})[name] = score
        return score

    def add_estimate(
        self, name: str, found: Estimate, n: int, groups: int, unread: int = 0, section: str = SCORES
    ) -> Score:
        """A score that is no mean of rows (BLEU, a mean of means), of `n` rows in `groups` scenes."""
        value, low, high = (None if x is None else self.scale * x for x in (found.value, found.low, found.high))
        score = Score(n, n, groups, value, low, high, unread)
        self.sections.setdefault(section, {})[name] = score
        return score

    def add_change(
        self,
        name: str,
        first: Sequence[float] | np.ndarray,
        second: Sequence[float] | np.ndarray,
        groups: Sequence[Any],
    ) -> Score:
        """`second - first`, row against row, with an interval of pairs."""
        old, new = (self.scale * np.asarray(values, dtype=float) for values in (first, second))
        found = paired_difference(old, new, groups, self.seed).to_dict()
        score = Score(found["n"], found["n"], found["groups"], found["difference"], found["low"], found["high"])
        self.sections.setdefault(CHANGES, {})[name] = score
        return score

    def add_choices(
        self,
        name: str,
        strict: Sequence[bool] | np.ndarray,
        lenient: Sequence[Said[Any]],
        truth: Sequence[Any],
        groups: Sequence[Any],
        of: int | None = None,
    ) -> np.ndarray:
        """Accuracy by the official rule (`strict`, bool[N]: which rows it calls right) and by lenient reading, side by side. An answer
        that cannot be read is wrong, and is counted. Gives the rows that are right by lenient reading, float[N]."""
        loose = np.array([said.read and said.value == gold for said, gold in zip(lenient, truth, strict=True)], float)
        self.add(f"{name}, strict", np.asarray(strict, dtype=float), groups, of)
        self.add(f"{name}, lenient", loose, groups, of, sum(not said.read for said in lenient))
        return loose

    def to_dict(self) -> dict[str, Any]:
        """What --json holds."""
        share = self.unread / self.rows_scored if self.rows_scored else None
        return {
            "benchmark": self.benchmark,
            "version": self.version,
            "rows_scored": self.rows_scored,
            "rows_there": self.rows_there,
            "unread": self.unread,
            "unread_share": share,
            "strict_and_lenient_differ": self.differ,
            "partial": self.partial,
            "scale": self.scale,
        } | {
            section: {name: score.to_dict() for name, score in found.items()}
            for section, found in self.sections.items()
        }


def match_predictions(
    rows: Mapping[str, Mapping[str, Any]],
    predictions: Sequence[Prediction],
    source: str,
    on_missing: str = "error",
    question: str = "question",
) -> list[Prediction]:
    """The predictions of `rows` {id: row} in the order of the rows.

    Raises ValueError, in one line with numbers, for predictions whose ids `source` does not have or whose question is another one there
    (a file of another version), and for rows without a prediction unless `on_missing` is "skip".
    """
    known = [item for item in predictions if item.id in rows]
    if len(known) < len(predictions):
        stranger = next(item for item in predictions if item.id not in rows)
        raise ValueError(
            f"{stranger.where}: id {stranger.id!r} and {len(predictions) - len(known) - 1:,} more of {len(predictions):,} predictions are not in "
            f"{source}; is it the version and setting that was answered?"
        )
    for item in known:
        now = rows[item.id].get(question)
        then = item.row.get(question)
        if isinstance(now, str) and isinstance(then, str) and normalize_answer(now) not in normalize_answer(then):
            raise ValueError(
                f"{item.where}: id {item.id!r} asks {then[:60]!r}, {source} asks {now[:60]!r}; it is a file of another version"
            )
    by_id = {item.id: item for item in known}
    missing = [name for name in rows if name not in by_id]
    if missing and on_missing == "error":
        raise ValueError(
            f"{len(missing):,} of {len(rows):,} rows of {source} have no prediction, e.g. {missing[0]}; answer them, or score the others as "
            "partial with --on_missing skip"
        )
    return [by_id[name] for name in rows if name in by_id]


def constant_column(values: Sequence[Any], name: str) -> str | None:
    """Why scores by the column `name` say nothing: it is missing, or one value in all of at least two rows. None: it is fine."""
    kinds = Counter("" if value is None else str(value) for value in values)
    if set(kinds) <= {""}:
        return f'no row has a "{name}", so there are no scores by it'
    if len(kinds) == 1 and len(values) > 1:
        return f'"{name}" is {next(iter(kinds))!r} in all {len(values):,} rows, so scores by it say nothing'
    return None


def majority(known: Sequence[T], templates: Sequence[str], of: Sequence[str]) -> list[T | None]:
    """The commonest of the `known` answers for the template of each of `of`, of equal ones the first in order; the commonest of all
    where a template was never seen, None without any known answer."""
    overall: Counter[T] = Counter(known)
    by_template: dict[str, Counter[T]] = {}
    for answer, template in zip(known, templates, strict=True):
        by_template.setdefault(template, Counter())[answer] += 1

    def commonest(counts: Counter[T]) -> T | None:
        return min(counts, key=lambda answer: (-counts[answer], str(answer))) if counts else None

    return [commonest(by_template.get(template, overall)) for template in of]
