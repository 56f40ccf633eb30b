"""Meta-actions, a speed and a path ("KEEP, STRAIGHT"): read from an answer, and scored by class.

Two sets of numbers stand next to each other:

- official: what the script of Senna counts (eval_tools/senna_plan_cmd_eval_multi_img.py; AlphaDrive's is the same with lane changes
  among the classes that have an F1). It looks for the capital words anywhere in the answer. An answer is right where it holds the
  true speed and the true path; a class that it holds is a true positive where the TRUE class of that kind is in it too, so naming
  every class earns an accuracy of 1. Senna's script has no F1 for lane changes.
- read: the answer as `read_meta_action` understands it. What cannot be read is counted, is no class, and is not right. F1 of a class
  is 2 TP / (2 TP + FP + FN), 0 where nothing of it is true or said, as scikit-learn has it with zero_division 0.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drive_vlm.evaluation.answers.said import answer_parts, json_object, plain
from drive_vlm.evaluation.statistics import Estimate, group_sums, pooled, pooled_change

VERSION = "meta-actions/1"
SPEEDS = ("KEEP", "ACCELERATE", "DECELERATE", "STOP")
SENNA_PATHS = ("STRAIGHT", "LEFT_TURN", "RIGHT_TURN", "LEFT_CHANGE", "RIGHT_CHANGE")
ALPHADRIVE_PATHS = SENNA_PATHS[:3]
# Paths by the set's name.
CLASSES = {"senna": SENNA_PATHS, "alphadrive": ALPHADRIVE_PATHS}
KINDS = ("speed", "path")
UNREAD = "(unread)"
# Classes that have an F1 in Senna's own script.
SENNA_F1 = (*SPEEDS, "RIGHT_TURN", "LEFT_TURN", "STRAIGHT")

Estimates = dict[str, Estimate]


@dataclass(frozen=True)
class MetaAction:
    """What an answer says; None: not read. `strict`: it is "SPEED, PATH" and nothing else, but for an <answer> tag around it."""

    speed: str | None
    path: str | None
    strict: bool = False

    @property
    def text(self) -> str:
        """As rows spell it."""
        assert self.speed and self.path
        return f"{self.speed}, {self.path}"


_NOTHING = MetaAction(None, None)
# What stands for a class, as whole words; an underscore or a dash is a blank here.
_SPELLINGS = {
    "KEEP": ("keep", "keep speed", "keep the speed", "keep the current speed", "keep current speed", "maintain speed",
             "maintain the speed", "maintain the current speed", "maintain current speed", "constant speed"),
    "ACCELERATE": ("accelerate", "speed up", "acceleration"),
    "DECELERATE": ("decelerate", "slow down", "deceleration"),
    "STOP": ("stop", "stop the car", "come to a stop"),
    "STRAIGHT": ("straight", "go straight", "drive straight", "keep straight", "go straight ahead", "straight ahead"),
    "LEFT_TURN": ("left turn", "turn left"),
    "RIGHT_TURN": ("right turn", "turn right"),
    "LEFT_CHANGE": ("left change", "left lane change", "change lane left", "change lanes left", "change to the left lane"),
    "RIGHT_CHANGE": ("right change", "right lane change", "change lane right", "change lanes right", "change to the right lane"),
}  # fmt: skip
_CLASS_OF = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}
_PHRASE = "|".join(sorted(map(re.escape, _CLASS_OF), key=len, reverse=True))
_LABEL = r"(?:(?:my |the )?(?:speed|path)(?: plan| decision)?\s*(?::|=|is)\s*)?"
# The whole answer is one or two phrases with their labels: a word more and it is not read, so that "do not stop" is no stop.
_WHOLE = re.compile(
    rf"(?:(?:the |my )?(?:final )?(?:answer|plan)\s*(?:is\s*:?|:)\s*)?"
    rf"{_LABEL}({_PHRASE})(?:\s*(?:,|;|/|\||\+|\n| and )\s*(?:and )?{_LABEL}({_PHRASE}))?\s*\.?",
    re.IGNORECASE,
)


def read_meta_action(text: str) -> MetaAction:
    """The speed and the path that an answer says. Two of one kind, and words beyond the known spellings, are not read."""
    parts = [_of_part(part) for part in answer_parts(text)]
    return parts[0] if all(part == parts[0] for part in parts) else _NOTHING


def _of_part(part: str) -> MetaAction:
    speed, comma, path = part.partition(", ")
    if comma and speed in SPEEDS and path in SENNA_PATHS:
        return MetaAction(speed, path, strict=True)
    fields, whole = json_object(part)
    found = _of_json(fields if whole else None) if part.startswith("{") else _of_words(plain(part))
    speeds = [name for name in found if name in SPEEDS]
    paths = [name for name in found if name in SENNA_PATHS]
    if len(speeds) > 1 or len(paths) > 1:
        return _NOTHING
    return MetaAction(speeds[0] if speeds else None, paths[0] if paths else None)


def _of_words(text: str) -> list[str]:
    blank = re.sub(r"[_\-]+", " ", text.strip(" \t\r\n*'\"`()[]"))
    found = _WHOLE.fullmatch(re.sub(r"[ \t]+", " ", blank))
    return [_CLASS_OF[phrase.casefold()] for phrase in found.groups() if phrase] if found else []


def _of_json(fields: dict[str, Any] | None) -> list[str]:
    """Of an object with the keys speed and path, and no others."""
    found = []
    for key, value in (fields or {}).items():
        name = _CLASS_OF.get(re.sub(r"[_\-\s]+", " ", value).strip().casefold()) if isinstance(value, str) else None
        if name is None or name not in {"speed": SPEEDS, "path": SENNA_PATHS}.get(key.casefold().split("_")[0], ()):
            return []
        found.append(name)
    return found


def fold(action: MetaAction, classes: str) -> MetaAction:
    """In the set of classes: AlphaDrive's has no lane changes, and the road's direction stays, so they count as straight."""
    if action.path is None or action.path in CLASSES[classes]:
        return action
    return MetaAction(action.speed, "STRAIGHT", action.strict)


# --- scores


@dataclass(frozen=True)
class Labels:
    """Places of N rows' classes, int[N] each: in SPEEDS, and in CLASSES[classes]; -1: unread."""

    classes: str
    speed: np.ndarray
    path: np.ndarray

    def names(self, kind: str) -> tuple[str, ...]:
        return SPEEDS if kind == "speed" else CLASSES[self.classes]

    def of(self, kind: str) -> np.ndarray:
        return self.speed if kind == "speed" else self.path

    @property
    def read(self) -> np.ndarray:
        """bool[N]: both were read."""
        return (self.speed >= 0) & (self.path >= 0)

    def right(self, true: "Labels") -> np.ndarray:
        """bool[N]: both are the true ones."""
        return (self.speed == true.speed) & (self.path == true.path)


def labels(actions: Sequence[MetaAction], classes: str) -> Labels:
    folded = [fold(action, classes) for action in actions]

    def places(said: Sequence[str | None], names: Sequence[str]) -> np.ndarray:
        return np.array([-1 if name is None else names.index(name) for name in said], dtype=np.int64)

    return Labels(
        classes,
        places([action.speed for action in folded], SPEEDS),
        places([action.path for action in folded], CLASSES[classes]),
    )


def confusion(true: Labels, said: Labels, kind: str) -> dict[str, dict[str, int]]:
    """{true class: {said class or (unread): rows}}."""
    names = true.names(kind)
    columns = (*names, UNREAD)
    pairs = list(zip(true.of(kind).tolist(), said.of(kind).tolist(), strict=True))
    return {
        name: {column: pairs.count((i, j if column != UNREAD else -1)) for j, column in enumerate(columns)}
        for i, name in enumerate(names)
    }


def scores(true: Labels, said: Labels, groups: Sequence[str], seed: int = 0) -> Estimates:
    """Accuracy of both, of speed and of path, the shares that were read, macro F1 and F1 by class, with intervals over groups."""
    return pooled(group_sums(_columns(true, said), groups), _scores_of(true), seed)


def changes(true: Labels, first: Labels, second: Labels, groups: Sequence[str], seed: int = 0) -> Estimates:
    """`second - first` of the same rows."""
    old, new = (group_sums(_columns(true, said), groups) for said in (first, second))
    return pooled_change(old, new, _scores_of(true), seed)


def _columns(true: Labels, said: Labels) -> np.ndarray:
    """float[N, K]: 1, right in both, right and read of each kind; then of each class TP and the rows true plus said."""
    right = {kind: true.of(kind) == said.of(kind) for kind in KINDS}
    read = {kind: said.of(kind) >= 0 for kind in KINDS}
    columns = [np.ones(len(true.speed)), said.right(true), said.read]
    for kind in KINDS:
        columns += [right[kind], read[kind]]
        for place in range(len(true.names(kind))):
            is_true, is_said = true.of(kind) == place, said.of(kind) == place
            columns += [is_true & is_said, is_true.astype(int) + is_said]
    return np.column_stack(columns).astype(float)


def _scores_of(true: Labels) -> Any:
    def of(sums: np.ndarray) -> dict[str, np.ndarray]:
        column = iter(np.moveaxis(sums, -1, 0))
        rows = next(column)
        found = {"accuracy": next(column) / rows, "read": next(column) / rows}
        for kind in KINDS:
            found |= {f"accuracy {kind}": next(column) / rows, f"read {kind}": next(column) / rows}
            each = {f"F1 {name}": _f1(next(column), next(column)) for name in true.names(kind)}
            found[f"macro F1 {kind}"] = np.mean(list(each.values()), axis=0)
            found |= each
        return found

    return of


def _f1(both: np.ndarray, either: np.ndarray) -> np.ndarray:
    return np.divide(2 * both, either, out=np.zeros_like(both), where=either > 0)


def official_right(true: Sequence[MetaAction], answers: Sequence[str]) -> np.ndarray:
    """bool[N]: the answer holds the true speed and the true path somewhere."""
    return np.array(
        [action.speed in text and action.path in text for action, text in _pairs(true, answers)], dtype=bool
    )


def official_scores(
    true: Sequence[MetaAction], answers: Sequence[str], paths: Sequence[str] = SENNA_PATHS
) -> dict[str, float]:
    """Senna's script over answers as they stand: "accuracy", and "F1 CLASS" of SPEEDS and those of `paths` that it has an F1 of."""
    found = {"accuracy": float(official_right(true, answers).mean())}
    names = [name for name in (*SPEEDS, *paths) if name in SPEEDS or name in paths]
    for name in names:
        tp = fp = fn = 0
        for action, text in _pairs(true, answers):
            own = action.speed if name in SPEEDS else action.path
            if name in text:
                tp, fp = tp + (own in text), fp + (own not in text)
            else:
                fn += name in own
        # The script divides by TP + TP for a path's precision's condition: 0 where nothing was right, which F1 is then anyway.
        precision, recall = (tp / (tp + wrong) if tp else 0.0 for wrong in (fp, fn))
        found[f"F1 {name}"] = 2 * precision * recall / (precision + recall) if tp else 0.0
    return found


def _pairs(true: Sequence[MetaAction], answers: Sequence[str]) -> Iterator[tuple[Any, str]]:
    return zip(true, answers, strict=True)


def majority(known: Labels, rows: int) -> Labels:
    """N rows that all say the commonest pair of `known`; of equally common ones the first."""
    pairs = list(zip(known.speed.tolist(), known.path.tolist(), strict=True))
    speed, path = max(dict.fromkeys(pairs), key=pairs.count)
    return Labels(known.classes, np.full(rows, speed), np.full(rows, path))
