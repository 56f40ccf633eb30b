"""Prediction files scored row by row, next to what needs no picture: the same model with blank pictures, and the majority answer."""

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drive_vlm.data.predictions import Prediction, checkpoint_names, common_samples, read_blind, read_predictions

if TYPE_CHECKING:
    from drive_vlm.evaluation.agreement import McNemar
    from drive_vlm.evaluation.statistics import PairedDifference, Summary

BLIND, MAJORITY = "blind pictures", "majority answer"
# Columns by which scores are split where the rows have them, and the most values that make a table.
BY = ("dataset", "task", "category", "template", "question_type", "camera", "weather", "time_of_day", "time", "scenario",
      "level", "type", "corruption")  # fmt: skip
MOST_VALUES = 40
# Why an answer is not whole (data/predictions.py).
_ENDS = {"length": "were cut at the limit of new tokens", "refused": "were refused by the server"}
_CAMERA = re.compile(r"CAM_[A-Z]+(?:_[A-Z]+)*")


def _accuracy(said: Sequence[str], targets: Sequence[str]) -> np.ndarray:
    from drive_vlm.evaluation.answer_accuracy import correct_answers

    return correct_answers(said, targets)


def _rouge_l(said: Sequence[str], targets: Sequence[str]) -> np.ndarray:
    from drive_vlm.evaluation.text_overlap import rouge_l, tokenize

    return np.array(rouge_l([tokenize(text) for text in said], [[tokenize(text)] for text in targets]))


# name -> (float64[N] of answers and targets; how the page calls it)
METRICS: dict[str, tuple[Callable[[Sequence[str], Sequence[str]], np.ndarray], str]] = {
    "accuracy": (_accuracy, "answer accuracy (exact match after normalisation, as tools/qa_eval.py)"),
    "rouge_l": (_rouge_l, "ROUGE-L F of the answer and the row's own (coco-caption's, beta 1.2)"),
}


@dataclass(frozen=True)
class System:
    """A checkpoint or a baseline on the rows: what it said ("" where nothing is kept of it), and its score of each row float[N]."""

    name: str
    said: Sequence[str]
    values: np.ndarray
    items: Sequence[Prediction] | None = None
    left_out: int = 0


@dataclass(frozen=True)
class Scored:
    """All systems on the rows that every prediction file has. The last of `systems` is what the page is about."""

    metric: str
    title: str
    rows: Sequence[Prediction]
    groups: Sequence[str]
    systems: Sequence[System]
    baselines: Sequence[System]
    seed: int
    notes: Sequence[str] = ()
    lower_is_better: bool = False

    def gains(self, system: System) -> np.ndarray:
        """float[N]: the scores where more is better, minus the scores where less is."""
        return -system.values if self.lower_is_better else system.values

    @property
    def last(self) -> System:
        return self.systems[-1]

    @property
    def first(self) -> System | None:
        """The other run that rows are compared with; None with one file."""
        return self.systems[0] if len(self.systems) > 1 else None

    @cached_property
    def binary(self) -> bool:
        """Whether every row is right or wrong."""
        marks = (((system.values == 0) | (system.values == 1)).all() for system in self.systems)
        return not self.lower_is_better and all(map(bool, marks))

    def summary(self, system: System, rows: Sequence[int] | None = None) -> "Summary":
        """Mean and interval by group, of some rows or all."""
        from drive_vlm.evaluation.statistics import summarize

        chosen = range(len(self.rows)) if rows is None else rows
        return summarize(system.values[list(chosen)], [self.groups[i] for i in chosen], self.seed)

    def difference(self, other: System) -> "PairedDifference":
        """By how much `last` is better than `other`, with wins and losses; of `gains`, so that more is better."""
        from drive_vlm.evaluation.statistics import paired_difference

        return paired_difference(self.gains(other), self.gains(self.last), self.groups, self.seed)

    def mcnemar(self, other: System) -> "McNemar | None":
        """Exact test of `other` against `last`; None for scores that are more than right and wrong."""
        from drive_vlm.evaluation.agreement import mcnemar

        if not self.binary or not bool(((other.values == 0) | (other.values == 1)).all()):
            return None
        return mcnemar(other.values.astype(bool).tolist(), self.last.values.astype(bool).tolist())

    def columns(self, more: Sequence[str] = ()) -> dict[str, list[str]]:
        """Column -> value of each row, of the columns BY that split the rows and of `more`. Raises ValueError for one of `more` that
        no row has or that has too many values."""
        found = {}
        for name in dict.fromkeys([*BY, *more]):
            values = [column_of(item, name) for item in self.rows]
            different = set(values)
            if name in more and different == {NONE}:
                raise ValueError(f"--by {name}: no row of {self.last.name} has this column")
            if name in more and len(different) > MOST_VALUES:
                raise ValueError(f"--by {name}: {len(different)} different values; a table takes {MOST_VALUES}")
            if name in more or 1 < len(different) <= MOST_VALUES:
                found[name] = values
        return found


NONE = "(none)"


def column_of(item: Prediction, name: str) -> str:
    """The row's column; the camera also from the tags of its question, or the name of its one picture."""
    value = item.dataset if name == "dataset" else item.row.get(name)
    if value in (None, "") and name == "camera":
        named = set(_CAMERA.findall(str(item.row.get("question") or "")))
        if not named and len(item.images) == 1:
            named = set(_CAMERA.findall(item.images[0]))
        value = named.pop() if len(named) == 1 else "several" if named else None
    return NONE if value in (None, "") or isinstance(value, (dict, list)) else str(value)


def members(values: Sequence[str]) -> dict[str, list[int]]:
    """Value -> its rows, sorted by value."""
    found: dict[str, list[int]] = {}
    for i, value in enumerate(values):
        found.setdefault(value, []).append(i)
    return dict(sorted(found.items()))


def read_scored(
    paths: Sequence[str],
    metric: str,
    row_scores: str | None,
    row_score: str | None,
    lower_is_better: bool,
    blind: str | None,
    majority: Callable[[Sequence[Prediction]], list[str] | None],
    seed: int,
) -> Scored:
    """Read and score the files of --predictions. `majority` gives the commonest training answer to each row, or None without
    training rows. Raises ValueError for files that do not fit together."""
    own = row_scores is None
    names = checkpoint_names(paths)
    files, left_out = common_samples([read_predictions(path, need_reference=own) for path in paths])
    blanked = [read_blind(blind, files[-1], own)] if blind else []
    baselines: list[System] = []
    notes = []
    if row_scores is None or row_score is None:
        score, title = METRICS[metric]
        targets = [item.reference for item in files[-1]]
        values = [score([item.prediction for item in items], targets) for items in [*files, *blanked]]
        if (guesses := majority(files[-1])) is not None:
            baselines.append(System(MAJORITY, guesses, score(guesses, targets)))
    else:
        # An evaluator that was given the blind answers too has scores of them under their own name.
        every = [*names, *checkpoint_names([blind])] if blind else names
        values = read_row_scores(row_scores, row_score, every, [*files, *blanked])
        if blanked and bool(np.isnan(values[-1]).all()):
            notes.append(f"{BLIND}: {row_scores} has no scores of them")
            blanked, values = [], values[:-1]
        several, values, unscored = without_unscored([*files, *blanked], values, f"{row_scores}: {row_score}")
        files, blanked = several[: len(files)], several[len(files) :]
        metric, title = row_score, f"{row_score} of {Path(row_scores).name}"
        title += ", lower is better; differences are improvements" if lower_is_better else ""
        if unscored:
            title += f"; partial: {unscored:,} of {len(files[-1]) + unscored:,} rows have no score and are left out"
    rows = files[-1]
    if blanked:
        baselines.insert(0, System(BLIND, [item.prediction for item in blanked[0]], values[-1], blanked[0]))
    systems = [
        System(name, [item.prediction for item in items], marks, items, out)
        for name, items, marks, out in zip(names, files, values, left_out, strict=False)
    ]
    notes += [line for system in systems for line in _oddities(system)]
    return Scored(metric, title, rows, [item.group for item in rows], systems, baselines, seed, notes, lower_is_better)


def _oddities(system: System) -> Iterator[str]:
    """Ids and answers of a checkpoint that are special, in words."""
    if system.left_out:
        yield f"{system.name}: {system.left_out:,} ids left out, missing in another file"
    if empty := sum(not text.strip() for text in system.said):
        yield f"{system.name}: {empty:,} of {len(system.said):,} answers are empty"
    ends = Counter(str(item.row["finish_reason"]) for item in system.items or [] if "finish_reason" in item.row)
    for why, count in sorted(ends.items()):
        yield f"{system.name}: {count:,} answers {_ENDS.get(why, f'ended by {why!r}')}"


def read_row_scores(
    path: str, column: str, names: Sequence[str], files: Sequence[Sequence[Prediction]]
) -> list[np.ndarray]:
    """float[N] of each file from a CSV that an evaluator wrote (id, dataset, checkpoint, scores ...), NaN for a row without a score.

    Raises ValueError, with file:line, for a column that is missing and for a score that is no number.
    """
    found: dict[tuple[str, str, str], float] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            head = reader.fieldnames or []
            for need in ("id", column):
                if need not in head:
                    raise ValueError(f"{path}: no column {need!r}; there are {', '.join(head) or 'none'}")
            for row in reader:
                key = (row.get("checkpoint") or "", row.get("dataset") or "", row["id"])
                found[key] = _number(row[column], f"{path}:{reader.line_num}: {column}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give the CSV of an evaluator (--out or --csv)") from error
    by_name: Mapping[str, str] = {name: _checkpoint(name, found) for name in names}

    def of(name: str, item: Prediction) -> float:
        keys = ((by_name[name], dataset, item.id) for dataset in (item.dataset, ""))
        return next((found[key] for key in keys if key in found), math.nan)

    return [np.array([of(name, item) for item in items]) for name, items in zip(names, files, strict=True)]


def without_unscored(
    files: list[list[Prediction]], values: list[np.ndarray], what: str
) -> tuple[list[list[Prediction]], list[np.ndarray], int]:
    """The rows that have a score in every file, and how many have not. Raises ValueError where none is left; `what` names the column."""
    whole = np.isfinite(np.stack(values)).all(axis=0)
    if not whole.any():
        raise ValueError(
            f"{what}: no row of --predictions has a score; score the same prediction files, by the same names"
        )
    kept = [[item for item, there in zip(items, whole, strict=True) if there] for items in files]
    return kept, [marks[whole] for marks in values], int((~whole).sum())


def _checkpoint(name: str, found: Mapping[tuple[str, str, str], float]) -> str:
    """How the CSV calls a checkpoint: by its name here, or by nothing where it holds one."""
    known = {key[0] for key in found}
    return name if name in known or known != {""} else ""


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "nan")
    except ValueError as error:
        words = {"true": 1.0, "false": 0.0}
        if (text or "").lower() in words:
            return words[(text or "").lower()]
        raise ValueError(f"{where}: {text!r} is no number") from error
    return value if math.isfinite(value) else math.nan
