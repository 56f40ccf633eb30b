"""The files that the evaluators write with --json, read without knowing each of them: scores with intervals, counts, judges.

An evaluator writes {"checkpoints": {name: {...}}, "baselines": {name: {...}}, "comparisons": [...]}, or its scores at the top. A
score is an object with "low", "high" and one of "value", "mean", "accuracy", "difference"; a plain number is a count or a share.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drive_vlm.store.forms import read_object

_VALUES = ("value", "mean", "accuracy", "difference")
# The evaluator's main score, the first that a checkpoint has.
HEADLINES = (
    ("", "answer accuracy"),
    (r"scores\.action\.F1_all", "F1_all of the actions"),
    (r"scores\.youden_J", "J: questions back where they are due, less those where they are not"),
    (r"modes\.[^.]+\.terms\.reward", "reward of the texts"),
    (r"datasets\.\(all\)\.text_text", "CLIP, answer and the row's own"),
    (r"datasets\..+\.text_text", "CLIP, answer and the row's own"),
    (r"(?:scores\.)?(?:strict\.)?(?:accuracy|final|score)", "score"),
)
_JUDGES = re.compile(r"(?:^|\.)(?:judge|agreement|kappa|raters)", re.IGNORECASE)
# What a page shows of a table, and how deep a file is read.
MOST_ROWS, _DEEPEST = 400, 12


@dataclass(frozen=True)
class Score:
    """A number with its interval; None where it has none."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    groups: int | None = None


@dataclass(frozen=True)
class Headline:
    """The main score of the last checkpoint, and that of the others, baselines last."""

    title: str
    system: str
    score: Score
    others: dict[str, float]


@dataclass(frozen=True)
class ScoreFile:
    """`systems` and `baselines`: name -> path of a score in its object -> Score; `facts`: path -> a plain value at the top.

    `judges` are (path, value) of everything that a judge or a second rater said.
    """

    name: str
    path: str
    systems: dict[str, dict[str, Score]]
    baselines: dict[str, dict[str, Score]]
    comparisons: list[tuple[str, dict[str, Score]]]
    facts: dict[str, str]
    judges: list[tuple[str, str]] = field(default_factory=list)

    def paths(self) -> list[str]:
        """Of all scores, in the order of the file."""
        return list(dict.fromkeys(path for system in self.systems.values() for path in system))

    def headline(self) -> Headline | None:
        if not self.systems:
            return None
        name, scores = list(self.systems.items())[-1]
        for pattern, title in HEADLINES:
            path = next((path for path in scores if re.fullmatch(pattern, path)), None)
            if path is None:
                continue
            others = {
                f"the start ({other})" if i == 0 else other: found[path].value
                for i, (other, found) in enumerate(list(self.systems.items())[:-1])
                if path in found
            }
            others |= {other: found[path].value for other, found in self.baselines.items() if path in found}
            return Headline(title, name, scores[path], others)
        return None


def read_score_file(path: str) -> ScoreFile:
    """Raises ValueError for a file that is no JSON object."""
    content = read_object(Path(path), "Give a file that an evaluator wrote with --json.")
    checkpoints, baselines = (_objects(content.get(key)) for key in ("checkpoints", "baselines"))
    systems = {name: dict(_scores(entry)) for name, entry in checkpoints.items()}
    if not systems:
        systems = {Path(path).stem: dict(_scores(content))}
    others = {name: dict(_scores(entry)) for name, entry in baselines.items()}
    # A baseline that is a plain share, such as chance.
    plain = content.get("baselines")
    if isinstance(plain, dict):
        others |= {
            name: {"": Score(value)}
            for name, value in plain.items()
            if _is_number(value) and 0 <= value <= 1 and isinstance(value, float)
        }
    comparisons = []
    for entry in content.get("comparisons") or []:
        if isinstance(entry, dict):
            comparisons.append((f"{entry.get('second')} - {entry.get('first')}", dict(_scores(entry))))
    facts = {path: text for path, text in facts_of(content) if not path.startswith(("checkpoints.", "baselines."))}
    judges = [(path, text) for path, text in facts_of(content) if _JUDGES.search(path)]
    return ScoreFile(Path(path).name, path, systems, others, comparisons, facts, judges)


def _objects(value: Any) -> dict[str, dict[str, Any]]:
    return (
        {str(name): entry for name, entry in value.items() if isinstance(entry, dict)}
        if isinstance(value, dict)
        else {}
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def score_of(entry: Any) -> Score | None:
    """The object as a score; None where it is none, or undefined."""
    if not isinstance(entry, dict) or "low" not in entry or "high" not in entry:
        return None
    value: Any = next((entry[key] for key in _VALUES if key in entry), None)
    if not _is_number(value):
        return None
    low, high = (entry[key] if _is_number(entry[key]) else None for key in ("low", "high"))
    n, groups = (entry.get(key) if isinstance(entry.get(key), int) else None for key in ("n", "groups"))
    return Score(float(value), low, high, n, groups)


def _scores(entry: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Score]]:
    """(path, score) of every score below an object; a score's own further scores (above_shuffled) as well."""
    if not isinstance(entry, dict) or depth > _DEEPEST:
        return
    if (score := score_of(entry)) is not None:
        yield path, score
    for name, value in entry.items():
        yield from _scores(value, f"{path}.{name}" if path else str(name), depth + 1)


def facts_of(entry: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """(path, text) of every plain value below an object, a score with its interval as one; lists by number, 20 of them."""
    if depth > _DEEPEST:
        return
    if (score := score_of(entry)) is not None:
        yield path, number_with_interval(score)
    elif isinstance(entry, dict):
        for name, value in entry.items():
            yield from facts_of(value, f"{path}.{name}" if path else str(name), depth + 1)
    elif isinstance(entry, list):
        for i, value in enumerate(entry[:20]):
            yield from facts_of(value, f"{path}.{i}", depth + 1)
    elif entry is not None:
        yield path, f"{entry:,.4g}" if isinstance(entry, float) else f"{entry:,}" if type(entry) is int else str(entry)


def number_with_interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
