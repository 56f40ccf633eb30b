"""The files that the evaluators write with --json, read without knowing each of them: scores with intervals, counts, judges.

An evaluator writes {"checkpoints": {name: {...}}, "baselines": {name: {...}}, "comparisons": [...]}, or its scores at the top. One of
a benchmark writes {"benchmark", "version", "rows_scored", "rows_there", "partial": [why], "scale", "scores": {name: score}, "baselines":
{name: score}, "changes": {name: score}} of the last checkpoint, and where it has several "checkpoints" and "references", which are
baselines. A score is an object with "low", "high" and one of "value", "mean", "accuracy", "difference"; a plain number is a count or
a share.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drive_vlm.store.forms import read_object

_VALUES = ("value", "mean", "accuracy", "difference")
# The evaluator's main score, the first that a checkpoint has: pattern of its path, what it is called.
HEADLINES = (
    ("", "answer accuracy"),
    (r"scores\.ADE|ADE", "ADE, lower is better"),
    (r"scores\.accuracy, lenient|accuracy, lenient", "accuracy, answers read leniently"),
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
    lower_is_better: bool = False


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
    about: str = ""
    partial: list[str] = field(default_factory=list)
    scale: float = 1.0

    def paths(self) -> list[str]:
        """Of all scores, in the order of the file."""
        return list(dict.fromkeys(path for system in self.systems.values() for path in system))

    def headline(self) -> Headline | None:
        """None where the file has no score of a known name."""
        if not self.systems:
            return None
        name, scores = list(self.systems.items())[-1]
        known = [(path, title) for pattern, title in HEADLINES for path in scores if re.fullmatch(pattern, path)]
        if not known and self.about:
            # A benchmark names its scores as it likes; the first is its own. A baseline of other rows is none of it.
            path = next((path for path in scores if path.endswith("lenient")), next(iter(scores), None))
            known = [(path, path)] if path is not None else []
        if not known:
            return None
        path, title = known[0]
        score = scores[path]
        found = {
            f"the start ({other})" if i == 0 else other: entry[path]
            for i, (other, entry) in enumerate(list(self.systems.items())[:-1])
            if path in entry
        }
        for other, entry in self.baselines.items():
            own = entry.get(path) or (entry.get("") if self.about else None)
            if own is not None and (not self.about or own.n in (None, score.n)):
                found[other] = own
        others = {other: own.value for other, own in found.items()}
        return Headline(title, name, score, others, "lower is better" in title)


def read_score_file(path: str) -> ScoreFile:
    """Raises ValueError for a file that is no JSON object."""
    content = read_object(Path(path), "Give a file that an evaluator wrote with --json.")
    is_benchmark = isinstance(content.get("benchmark"), str) and isinstance(content.get("scores"), dict)
    checkpoints = _objects(content.get("checkpoints"))
    baselines = content.get("references" if is_benchmark and checkpoints else "baselines")
    systems = {name: dict(_scores(entry)) for name, entry in checkpoints.items()}
    if not systems:
        own = content["scores"] if is_benchmark else content
        systems = {str(content["benchmark"]) if is_benchmark else Path(path).stem: dict(_scores(own))}
    others = {name: dict(_scores(entry)) for name, entry in _objects(baselines).items()}
    # A baseline that is a plain share, such as chance.
    if isinstance(baselines, dict):
        others |= {
            str(name): {"": Score(value)}
            for name, value in baselines.items()
            if _is_number(value) and isinstance(value, float) and 0 <= value <= 1
        }
    comparisons = []
    entries = content.get("comparisons")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            comparisons.append((f"{entry.get('second')} - {entry.get('first')}", dict(_scores(entry))))
    if is_benchmark and isinstance(content.get("changes"), dict):
        comparisons.append(("change", dict(_scores(content["changes"]))))
    shown = tuple(
        f"{name}."
        for name in ("checkpoints", "baselines", "references", "changes", *(["scores"] if is_benchmark else []))
    )
    facts = {name: text for name, text in facts_of(content) if not name.startswith(shown)}
    judges = [(name, text) for name, text in facts_of(content) if _JUDGES.search(name)]
    partial = [str(why) for why in content["partial"]] if isinstance(content.get("partial"), list) else []
    about = _about(content) if is_benchmark else ""
    scale = float(content["scale"]) if _is_number(content.get("scale")) and content["scale"] > 0 else 1.0
    return ScoreFile(Path(path).name, path, systems, others, comparisons, facts, judges, about, partial, scale)


def _about(content: dict[str, Any]) -> str:
    """Which benchmark, of which version, and how much of it was scored and read."""
    words = f"{content['benchmark']}, {content.get('version')}: {content.get('rows_scored')} of {content.get('rows_there')} rows scored"
    unread, differ = content.get("unread"), content.get("strict_and_lenient_differ")
    words += f", {unread} answers unread" if unread is not None else ""
    return words + (f", strict and lenient reading differ in {differ} rows" if differ is not None else "")


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
