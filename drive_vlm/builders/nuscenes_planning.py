"""nuScenes open-loop planning as rows of text: past positions, speed and command in, six future positions out.

    {"id": TOKEN, "group": SCENE, "image": ["samples/CAM_FRONT/..."], "conversations": [...], "past": [[x, y], [x, y]],
     "future": [[x, y] six times], "speed": 8.3, "command": "straight", "driven": 2, "axes": "x right, y forward", "unit": "m",
     "step_s": 0.5, "protocol": "nuscenes-open-loop-planning/1"}

The columns `past` (1.0 and 0.5 s ago) and `future` hold what is scored, in full; the answer's text rounds it. `axes` is of the columns and of the text.
Boxes for the collision rate are a file of their own, SPLIT.boxes.jsonl, since predictions keep the columns of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.builders.nuscenes_infos import SKIP, PlanningFrame, read_frames
from drive_vlm.builders.row_writer import Row, RowWriter, meta_entry
from drive_vlm.config import field
from drive_vlm.data.predictions import rows_by_id
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.answers import FORMS, points_text
from drive_vlm.evaluation.collision_grid import AgentBox
from drive_vlm.evaluation.planning import AXES, RIGHT_FORWARD, STEP_S, STEPS, VERSION, from_right_forward
from drive_vlm.store.cache import write_json

SPLITS = ("train", "val", "test")
INPUTS = ("history", "speed", "command")
# Digits of the columns: scores may differ from those of the file's own numbers by less than 1e-6 m.
_DIGITS = 6
_TOLD = {"right": "turn right", "left": "turn left", "straight": "go straight"}
_AXES_TOLD = {"right_forward": "x to the right and y forward", "forward_left": "x forward and y to the left"}


@dataclass(frozen=True)
class PlanningBuild:
    """The arguments of tools/build_nuscenes_planning.py."""

    out: Path = field(help="folder for SPLIT.jsonl, SPLIT.boxes.jsonl, SPLIT.meta.json and audit.json")
    train: Path | None = field(
        None, help="nuscenes_infos_temporal_train.pkl of VAD or UniAD, or the same as .json or .jsonl"
    )
    val: Path | None = field(None, help="the same of the validation split")
    test: Path | None = field(None, help="the same of another split")
    image_root: Path | None = field(
        None, help="folder that holds samples/CAM_FRONT/... of nuScenes; needed unless --cameras none"
    )
    cameras: list[str] = field(
        ["CAM_FRONT"], help="cameras of a row in this order, by their names in the file; none: no pictures"
    )
    inputs: list[str] = field(
        list(INPUTS), help=f"what the question says besides the pictures, of {', '.join(INPUTS)}; none: nothing"
    )
    axes: str = field(
        "right_forward",
        help="right_forward: x right, y forward, as the info files; forward_left: x forward, y left",
        choices=tuple(AXES),
    )
    form: str = field(
        "list", help="how positions are written: [(x, y), ...], PT = [...], <wp>, JSON ...", choices=FORMS
    )
    decimals: int = field(2, help="digits behind the point in texts", least=1, most=4)
    undriven: str = field(
        "keep",
        help="frames at a scene's start, whose history VAD made up from the next frame: keep them, as the published numbers do, or skip "
        "them, counted",
        choices=("keep", "skip"),
    )
    on_bad_row: str = field(
        "error",
        help="a frame with broken numbers: stop, or leave it out and count it. Incomplete futures are always counted out",
        choices=("error", "skip"),
    )
    on_missing: str = field(
        "error",
        help="a frame whose pictures are not there: error stops, skip leaves it out, counted",
        choices=("error", "skip"),
    )
    json: str | None = field(None, help="write the counts here")

    def __post_init__(self) -> None:
        if not any(self.files.values()):
            raise ValueError("give at least one info file: --train, --val or --test FILE")
        unknown = [word for word in self.inputs if word not in (*INPUTS, "none")]
        if unknown:
            raise ValueError(f"--inputs {unknown[0]}: not known; of {', '.join(INPUTS)}, or none")
        if self.views and self.image_root is None:
            raise ValueError(
                "--image_root is missing: the folder of nuScenes that holds samples/; or --cameras none for rows without pictures"
            )

    @property
    def files(self) -> dict[str, Path | None]:
        return {name: getattr(self, name) for name in SPLITS}

    @property
    def views(self) -> list[str]:
        return [] if self.cameras == ["none"] else self.cameras

    @property
    def known(self) -> list[str]:
        return [] if self.inputs == ["none"] else self.inputs


def question(frame: PlanningFrame, args: PlanningBuild) -> str:
    """The user's words, with unit, axes and step."""
    words = [f"You drive a car. Positions are in metres from where the car is now, {_AXES_TOLD[args.axes]}."]
    if "history" in args.known:
        past = points_text(
            [*from_right_forward(frame.history, AXES[args.axes]).tolist(), [0.0, 0.0]], "list", args.decimals
        )
        words.append(f"The last positions, one every {STEP_S} s up to now: {past}.")
    if "speed" in args.known:
        words.append(f"The speed is {frame.speed:.{args.decimals}f} m/s.")
    if "command" in args.known:
        words.append(f"The command is: {_TOLD[frame.command]}.")
    example = points_text([[0.0, 0.0]], args.form if args.form != "fenced" else "json", 1)
    words.append(
        f"Where should the car be in the next {STEPS * STEP_S:g} s? Give {STEPS} positions, one every {STEP_S} s, from {STEP_S} s on, as {example}."
    )
    return " ".join(words)


def planning_row(frame: PlanningFrame, args: PlanningBuild) -> Row:
    images = [_below(frame.cameras[name]) for name in args.views]
    axes = AXES[args.axes]
    future = from_right_forward(frame.future, axes)
    turns = [
        {"from": "human", "value": "<image>\n" * len(images) + question(frame, args)},
        {"from": "gpt", "value": points_text(future.tolist(), args.form, args.decimals)},
    ]
    return {
        "id": frame.token,
        "group": frame.scene,
        **({"image": images} if images else {}),
        "conversations": turns,
        "past": _rounded(from_right_forward(frame.history, axes)),
        "future": _rounded(future),
        "speed": round(frame.speed, _DIGITS),
        "command": frame.command,
        "driven": frame.driven,
        "axes": axes,
        "unit": "m",
        "step_s": STEP_S,
        "protocol": VERSION,
    }


def _rounded(points: np.ndarray) -> list[list[float]]:
    return (np.round(points, _DIGITS) + 0.0).tolist()


def _below(path: str) -> str:
    """ "./data/nuscenes/samples/CAM_FRONT/x.jpg" from "samples/" on."""
    _, found, rest = path.rpartition("samples/")
    return f"samples/{rest}" if found else path


def boxes_row(frame: PlanningFrame) -> Row:
    """The agents of a frame, always x right and y forward, whatever the axes of the rows."""
    return {
        "id": frame.token,
        "axes": RIGHT_FORWARD,
        "boxes": [_box(box) for box in frame.boxes or ()],
    }


def _box(box: AgentBox) -> dict[str, Any]:
    def short(place: tuple[float, float, float] | None) -> list[float] | None:
        return None if place is None else [round(value, _DIGITS) for value in place]

    size = [round(box.length, _DIGITS), round(box.width, _DIGITS)]
    return {"name": box.name, "size": size, "now": short(box.now), "future": [short(place) for place in box.future]}


def read_boxes(path: Path) -> dict[str, list[AgentBox]]:
    """The agents of each frame by its token, from SPLIT.boxes.jsonl. Raises ValueError, naming file and line."""
    found: dict[str, list[AgentBox]] = {}
    for name, (where, row) in rows_by_id(path).items():
        if row.get("axes") != RIGHT_FORWARD or not isinstance(row.get("boxes"), list):
            raise ValueError(
                f"{where}: not a line of boxes; expected what tools/build_nuscenes_planning.py writes as SPLIT.boxes.jsonl"
            )
        try:
            found[name] = [_agent(box) for box in row["boxes"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: a box lacks name, size, now or future ({error})") from error
    return found


def _agent(box: dict[str, Any]) -> AgentBox:
    def place(values: list[float]) -> tuple[float, float, float]:
        x, y, yaw = values
        return float(x), float(y), float(yaw)

    length, width = box["size"]
    future = tuple(None if values is None else place(values) for values in box["future"])
    return AgentBox(str(box["name"]), float(length), float(width), place(box["now"]), future)


def build(args: PlanningBuild) -> dict[str, Any]:
    """Write the rows and boxes of all splits; the audit, which is written as well."""
    counts: dict[str, dict[str, int]] = {}
    with RowWriter(args.out, args.on_bad_row) as writer:
        for split, path in args.files.items():
            if path is not None:
                counts[split] = dict.fromkeys(("frames", "rows", "undriven", "with_boxes"), 0)
                writer.add(f"{split}.jsonl", _rows(split, path, args, writer, counts[split]), split)
    root = str(args.image_root.resolve()) if args.image_root else ""
    for split in counts:
        entry = {f"nuscenes_planning_{split}": meta_entry(root, f"{split}.jsonl", writer.counts[f"{split}.jsonl"])}
        write_json(args.out / f"{split}.meta.json", entry)
    audit = {"protocol": VERSION, "axes": AXES[args.axes], "splits": counts, **writer.audit()}
    write_json(args.out / "audit.json", audit)
    return audit


def _rows(split: str, path: Path, args: PlanningBuild, writer: RowWriter, counts: dict[str, int]) -> Iterator[Row]:
    for frame in read_frames(path):
        counts["frames"] += 1
        if isinstance(frame, BadRow):
            writer.reject(frame, skip=frame.reason == "future_incomplete")
            continue
        problem = _problem(frame, args, f"{path}: {frame.token}")
        if problem is not None:
            writer.reject(
                problem,
                problem.reason == "undriven" or (problem.reason == "image_missing" and args.on_missing == "skip"),
            )
            continue
        counts["rows"] += 1
        counts["undriven"] += frame.driven < len(frame.history)
        if frame.boxes is not None:
            counts["with_boxes"] += 1
            writer.add(f"{split}.boxes.jsonl", [boxes_row(frame)])
        yield planning_row(frame, args)


def _problem(frame: PlanningFrame, args: PlanningBuild, where: str) -> BadRow | None:
    if frame.driven < len(frame.history) and args.undriven == "skip":
        return BadRow(
            "undriven", where, f"{frame.driven} of {len(frame.history)} steps of the history were driven", SKIP
        )
    for name in args.views:
        if name not in frame.cameras:
            known = ", ".join(frame.cameras) or "none"
            return BadRow(
                "camera_missing", where, f"no camera {name}; the file has {known}", f"Give other --cameras. {SKIP}"
            )
        below = Path(_below(frame.cameras[name]))
        if below.is_absolute() or ".." in below.parts:
            return BadRow("camera_missing", where, f"{name}: {below} leaves the image root", SKIP)
        assert args.image_root is not None, "views need a root"
        if not (args.image_root / below).is_file():
            problem = f"{name}: {args.image_root / below} does not exist; is --image_root the right folder?"
            return BadRow("image_missing", where, problem, "--on_missing skip leaves such frames out and counts them")
    return None
