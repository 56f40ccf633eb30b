"""Meta-actions from futures: the speed and the path that a car will have driven, by thresholds.

The rules and thresholds are those of Senna (data_tools/senna_qa_utils.py, get_obj_acc_or_dec and get_obj_turn_or_lane_change), over
the six future positions of VAD's info files, x right and y forward:

- speeds are the five distances between neighbouring positions, a second has two. All below 2 m/s: STOP. Else the last minus the
  first: from 3 m/s ACCELERATE, to -3 m/s DECELERATE, in between KEEP. The way to the first position takes no part.
- with x and a the last position's offset to the right and its angle from ahead, clockwise positive: |x| up to 4 m (exactly 4 m to
  the left is beyond): STRAIGHT. Else a turn to that side from 5 degrees on, and below a lane change.

AlphaDrive (arXiv 2503.07608) reports the same speeds with straight, left and right turn; its published prompt names all five paths, and
no thresholds are published. Its three paths are made by Senna's rules, a lane change being straight (evaluation/meta_actions.fold).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.builders.row_writer import Row, RowWriter
from drive_vlm.config import field
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.meta_actions import CLASSES, SPEEDS, VERSION, MetaAction, fold
from drive_vlm.evaluation.planning import STEP_S, STEPS, to_right_forward

SKIP = "--on_bad_row skip leaves such rows out and counts them"


@dataclass(frozen=True)
class MetaBuild:
    """The arguments of tools/build_meta_actions.py."""

    data: list[Path] = field(
        help="rows of tools/build_nuscenes_planning.py, one file a split, or other rows with `future` and `axes`"
    )
    out: Path = field(help="folder for a file of rows of each split, of the same name, and audit.json")
    classes: str = field(
        "senna", help="senna: five paths; alphadrive: straight and the two turns", choices=tuple(CLASSES)
    )
    stop_below: float = field(2.0, help="m/s: all speeds below are a stop (Senna's 2)")
    speed_change: float = field(
        3.0, help="m/s: from this change of speed on the car accelerates or decelerates (Senna's 3)"
    )
    lateral_metres: float = field(4.0, help="metres to a side beyond which the path is not straight (Senna's 4)")
    turn_degrees: float = field(5.0, help="degrees from which it is a turn and not a lane change (Senna's 5)", most=90)
    think: bool = field(False, help="ask for <think> and <answer> tags, as AlphaDrive does")
    on_bad_row: str = field(
        "error",
        help="a row without a future of six positions: stop, or leave it out and count it",
        choices=("error", "skip"),
    )
    json: str | None = field(None, help="write the counts here")


def meta_action(future: np.ndarray, rule: MetaBuild) -> MetaAction:
    """The class of a future float[6, 2], x right and y forward, metres; in all five paths."""
    return MetaAction(
        speed_class(future, rule.stop_below, rule.speed_change),
        path_class(future, rule.lateral_metres, rule.turn_degrees),
    )


def speed_class(future: np.ndarray, stop_below: float, change: float) -> str:
    speeds = np.linalg.norm(future[1:] - future[:-1], axis=-1) / STEP_S
    gained = speeds[-1] - speeds[0]
    if speeds.max() < stop_below:
        return "STOP"
    return "ACCELERATE" if gained >= change else "DECELERATE" if gained <= -change else "KEEP"


def path_class(future: np.ndarray, lateral: float, turn_degrees: float) -> str:
    x, y = (float(value) for value in future[-1])
    # 0 straight ahead, positive to the left.
    angle = math.degrees(math.atan2(y, x)) - 90
    if x > lateral:
        return "RIGHT_TURN" if angle <= -turn_degrees else "RIGHT_CHANGE" if abs(angle) < turn_degrees else "STRAIGHT"
    if x <= -lateral:
        # Behind the car the angle is below -180: no turn, as published.
        return "LEFT_TURN" if angle >= turn_degrees else "LEFT_CHANGE" if abs(angle) < turn_degrees else "STRAIGHT"
    return "STRAIGHT"


def question(row: Row, rule: MetaBuild) -> str:
    """The user's words: what is known of the car, and which words are the answer's."""
    known = [f"The current speed is {row['speed']:.1f} m/s"] if isinstance(row.get("speed"), int | float) else []
    known += [f"the navigation command is '{row['command']}'"] if row.get("command") else []
    context = f"{' and '.join(known)}. ".capitalize() if known else ""
    form = "Think in <think> </think> first, then answer in <answer> </answer> tags. " if rule.think else ""
    return (
        f"{context}What should the car do in the next three seconds? {form}Answer with a SPEED of {', '.join(SPEEDS)} and a PATH of "
        f"{', '.join(CLASSES[rule.classes])}, for example KEEP, STRAIGHT."
    )


def meta_row(row: Row, rule: MetaBuild, where: str) -> Row:
    """The row with the question and the answer of its future; columns `speed_class` and `path_class`. Raises BadRow."""
    try:
        future = to_right_forward(np.array(row.get("future"), dtype=np.float64), row.get("axes", ""))
    except (ValueError, TypeError) as error:
        raise BadRow(
            "future_missing", where, f'"future" and "axes" are not those of a trajectory ({error})', SKIP
        ) from error
    if future.shape != (STEPS, 2) or not np.isfinite(future).all():
        problem = f'"future" has the shape {future.shape}, expected {STEPS} positions [x, y] of 0.5 s each'
        raise BadRow("future_missing", where, problem, SKIP)
    action = fold(meta_action(future, rule), rule.classes)
    images = row.get("image") or []
    marks = "<image>\n" * (1 if isinstance(images, str) else len(images))
    turns = [{"from": "human", "value": marks + question(row, rule)}]
    if not rule.think:
        turns.append({"from": "gpt", "value": action.text})
    return {
        **row,
        "conversations": turns,
        "speed_class": action.speed,
        "path_class": action.path,
        "classes": rule.classes,
        "protocol": VERSION,
        **({"reference": action.text} if rule.think else {}),
    }


def build(rule: MetaBuild) -> dict[str, Any]:
    """Write the rows of all files; the audit, with counts by class, which is written as well."""
    from drive_vlm.store.cache import write_json

    names = [path.name for path in rule.data]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"--data names two files called {twice[0]}; each becomes OUT/{twice[0]}, so give them other names"
        )
    counts: dict[str, dict[str, int]] = {}
    with RowWriter(rule.out, rule.on_bad_row) as writer:
        for path in rule.data:
            counts[path.name] = {f"{speed}, {way}": 0 for speed in SPEEDS for way in CLASSES[rule.classes]}
            writer.add(path.name, _rows(path, rule, writer, counts[path.name]), path.stem)
    thresholds = {
        name: getattr(rule, name) for name in ("stop_below", "speed_change", "lateral_metres", "turn_degrees")
    }
    audit = {"classes": rule.classes, "thresholds": thresholds, "counts": counts, **writer.audit()}
    write_json(rule.out / "audit.json", audit)
    return audit


def _rows(path: Path, rule: MetaBuild, writer: RowWriter, counts: dict[str, int]) -> Iterator[Row]:
    for where, row in JsonlFile(path).places():
        try:
            made = meta_row(row if isinstance(row, dict) else {}, rule, where)
        except BadRow as error:
            writer.reject(error)
            continue
        counts[f"{made['speed_class']}, {made['path_class']}"] += 1
        yield made
