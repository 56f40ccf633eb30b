"""The info files of VAD and UniAD as frames: where the car was and will be, its command, its pictures, the boxes around it.

`nuscenes_infos_temporal_{train,val}.pkl` is {"infos": [one dict a key frame], ...} or that list; the same as JSON or JSON lines is read
too. Everything is in the frame of the LiDAR now, x right and y forward, metres, key frames 0.5 s apart.

VAD's file has the ego's way as steps, which are summed here:
    gt_ego_his_trajs float[2, 2], gt_ego_fut_trajs float[6, 2], gt_ego_fut_masks float[6], gt_ego_fut_cmd float[3] one-hot
    right, left, straight, gt_ego_lcf_feat float[9] with the speed at 7
and the agents': gt_boxes float[B, 7] (x, y, z, w, l, h, yaw as SECOND counts it), gt_names, num_lidar_pts (else valid_flag),
    gt_agent_fut_trajs float[B, 12] steps, gt_agent_fut_masks float[B, 6], gt_agent_fut_yaw float[B, 6] changes.
UniAD's has poses (lidar2ego_*, ego2global_*) and tokens (prev, next); the same numbers follow from those of neighbouring frames, by the
rules of VAD's converter (tools/data_converter/vad_nuscenes_converter.py), and agents have no futures there.

VAD writes a history where none was driven: at the first frame of a scene from the way to the NEXT frame. `driven` counts the steps
of a frame's history that the car really drove.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.collision_grid import AGENTS, AgentBox
from drive_vlm.evaluation.planning import COMMANDS, STEP_S, STEPS
from drive_vlm.store.cache import read_json
from drive_vlm.store.plain_pickle import read_plain_pickle

PAST = 2
# Metres to a side at the end of the future from which the command is a turn (VAD, UniAD and ST-P3).
_TURN_METRES = 2.0
_POSES = ("lidar2ego_translation", "lidar2ego_rotation", "ego2global_translation", "ego2global_rotation")
SKIP = "--on_bad_row skip leaves such frames out and counts them"
_BOX_KEYS = ("gt_boxes", "gt_names", "gt_agent_fut_trajs", "gt_agent_fut_masks", "gt_agent_fut_yaw")


@dataclass(frozen=True)
class PlanningFrame:
    """One key frame, x right and y forward, metres.

    history float[2, 2]: positions 1.0 and 0.5 s ago. future float[6, 2]: positions at 0.5 ... 3.0 s. speed in m/s.
    cameras: paths as the file has them, by name. boxes: None where the file has no agents' futures.
    """

    token: str
    scene: str
    history: np.ndarray
    future: np.ndarray
    command: str
    speed: float
    driven: int
    cameras: dict[str, str]
    boxes: tuple[AgentBox, ...] | None


def read_infos(path: Path) -> list[dict[str, Any]]:
    """The key frames of an info file. Raises ValueError, naming the file, for one of another kind."""
    if path.suffix in (".jsonl", ".ndjson"):
        content: Any = [row for _, row in JsonlFile(path).places()]
    else:
        content = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    infos = content.get("infos") if isinstance(content, dict) else content
    if not isinstance(infos, list) or not infos or not all(isinstance(info, dict) for info in infos):
        raise ValueError(f'{path}: not an info file of VAD or UniAD: expected {{"infos": [a dict of each key frame]}}')
    first = infos[0]
    if "token" not in first or ("gt_ego_fut_trajs" not in first and not all(key in first for key in (*_POSES, "next"))):
        raise ValueError(
            f"{path}: key frames have {', '.join(sorted(map(str, first))[:12])} ...; expected a token, and gt_ego_fut_trajs (VAD) or "
            f"the poses {', '.join(_POSES)} with next and prev (UniAD). mmdetection3d's own info files have no order of frames"
        )
    return infos


def read_frames(path: Path) -> Iterator[PlanningFrame | BadRow]:
    """The key frames whose future is whole; a BadRow for each other (future_incomplete) and for one with broken numbers.

    Raises ValueError for a token that comes twice and for a file of another kind.
    """
    infos = read_infos(path)
    by_token: dict[str, dict[str, Any]] = {}
    for number, info in enumerate(infos):
        token = str(info.get("token", ""))
        if not token or token in by_token:
            problem = f"the token {token!r} comes twice" if token else "there is no token"
            raise ValueError(f"{path}: frame {number}: {problem}; predictions are found by it")
        by_token[token] = info
    for number, info in enumerate(infos):
        where = f"{path}: frame {number} ({info['token']})"
        try:
            yield _frame(info, by_token, where)
        except BadRow as error:
            yield error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            problem = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            yield BadRow("broken_frame", where, f"the frame cannot be read: {problem}", SKIP)


def _frame(info: Mapping[str, Any], frames: Mapping[str, Mapping[str, Any]], where: str) -> PlanningFrame:
    if "gt_ego_fut_trajs" in info:
        steps = _array(info, "gt_ego_fut_trajs", (STEPS, 2))
        if not (_array(info, "gt_ego_fut_masks", (STEPS,)) == 1).all() or info.get("fut_valid_flag") is False:
            raise _incomplete(where)
        future = np.cumsum(steps, axis=0)
        past = _array(info, "gt_ego_his_trajs", (PAST, 2))
        # The steps lead to now, which is the origin.
        history = -np.cumsum(past[::-1], axis=0)[::-1]
        command = _command_of(_array(info, "gt_ego_fut_cmd", (len(COMMANDS),)), where)
    else:
        future, history = _ways_of_poses(info, frames, where)
        command = _command(float(future[-1, 0]))
    speed = float(np.linalg.norm(history[-1])) / STEP_S
    if "gt_ego_lcf_feat" in info:
        speed = float(np.asarray(info["gt_ego_lcf_feat"], dtype=np.float64)[7])
    if not (np.isfinite(future).all() and np.isfinite(history).all() and math.isfinite(speed)):
        raise BadRow("broken_frame", where, "positions or speed are not finite", SKIP)
    cameras = {str(name): str(view["data_path"]) for name, view in dict(info.get("cams") or {}).items()}
    boxes = tuple(_boxes(info)) if all(key in info for key in _BOX_KEYS) else None
    return PlanningFrame(
        str(info["token"]), str(info.get("scene_token") or info["token"]), history, future, command, speed,
        _driven(info, frames), cameras, boxes,
    )  # fmt: skip


def _incomplete(where: str) -> BadRow:
    problem = f"the future has fewer than {STEPS} key frames: the scene ends"
    return BadRow("future_incomplete", where, problem, "Such frames are left out by every published protocol")


def _array(info: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(info[key], dtype=np.float64)
    if array.size != math.prod(shape):
        raise ValueError(f"{key} has the shape {array.shape}, expected {shape}")
    return array.reshape(shape)


def _command_of(one_hot: np.ndarray, where: str) -> str:
    if sorted(one_hot.tolist()) != [0, 0, 1]:
        raise BadRow("broken_frame", where, f"gt_ego_fut_cmd {one_hot.tolist()} is no command", SKIP)
    return COMMANDS[int(one_hot.argmax())]


def _command(aside: float) -> str:
    return COMMANDS[0] if aside >= _TURN_METRES else COMMANDS[1] if aside <= -_TURN_METRES else COMMANDS[2]


def _driven(info: Mapping[str, Any], frames: Mapping[str, Mapping[str, Any]]) -> int:
    """Steps of the history for which there is a frame. VAD's file may be a part of the scenes: a frame that is named and not in it was
    there when the file was made, and what was before it is taken to have been as well."""
    if "prev" not in info:
        return PAST
    count, now = 0, info
    while count < PAST and now["prev"]:
        if now["prev"] not in frames:
            return PAST if "gt_ego_his_trajs" in info else count
        count, now = count + 1, frames[now["prev"]]
    return count


# --- poses, as UniAD's files have them


def _ways_of_poses(
    info: Mapping[str, Any], frames: Mapping[str, Mapping[str, Any]], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """(future float[6, 2], history float[2, 2]) from the LiDAR's places in neighbouring frames. Raises BadRow."""
    future, now = [], info
    for _ in range(STEPS):
        if not now["next"]:
            raise _incomplete(where)
        if now["next"] not in frames:
            raise BadRow("future_incomplete", where, f"the frame {now['next']} is not in this file", SKIP)
        now = frames[now["next"]]
        future.append(_lidar_place(now))
    places = [_lidar_place(info)]
    earlier = frames.get(info["prev"])
    for _ in range(PAST):
        if earlier is not None:
            places.insert(0, _lidar_place(earlier))
            earlier = frames.get(earlier["prev"])
        else:
            # As VAD's converter goes on where a scene begins: by the step that comes next.
            after = places[1] if len(places) > 1 else future[0]
            places.insert(0, 2 * places[0] - after)
    return _into_lidar(np.array(future), info), _into_lidar(np.array(places[:PAST]), info)


def _lidar_place(info: Mapping[str, Any]) -> np.ndarray:
    """float[3]: where the LiDAR is in the world."""
    return rotation(info["ego2global_rotation"]) @ np.asarray(
        info["lidar2ego_translation"], dtype=np.float64
    ) + np.asarray(info["ego2global_translation"], dtype=np.float64)


def _into_lidar(places: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
    """World places float[N, 3] in the frame of this LiDAR, from above: float[N, 2]."""
    in_ego = (places - np.asarray(info["ego2global_translation"], dtype=np.float64)) @ rotation(
        info["ego2global_rotation"]
    )
    in_lidar = (in_ego - np.asarray(info["lidar2ego_translation"], dtype=np.float64)) @ rotation(
        info["lidar2ego_rotation"]
    )
    return in_lidar[:, :2]


def rotation(quaternion: Sequence[float]) -> np.ndarray:
    """float[3, 3] of a quaternion (w, x, y, z), which is made a unit one."""
    w, x, y, z = np.asarray(quaternion, dtype=np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


# --- boxes


def _boxes(info: Mapping[str, Any]) -> Iterator[AgentBox]:
    """Vehicles and pedestrians that the LiDAR hit, with their ways.

    VAD's data set keeps those with num_lidar_pts above 0 in its evaluation; valid_flag, which counts radar too, is for training.
    """
    boxes = np.asarray(info["gt_boxes"], dtype=np.float64).reshape(-1, 7)
    kept = (
        np.asarray(info["num_lidar_pts"]) > 0 if "num_lidar_pts" in info else np.asarray(info["valid_flag"], dtype=bool)
    )
    steps = np.asarray(info["gt_agent_fut_trajs"], dtype=np.float64).reshape(-1, STEPS, 2)
    masks = np.asarray(info["gt_agent_fut_masks"], dtype=np.float64).reshape(-1, STEPS)
    turns = np.asarray(info["gt_agent_fut_yaw"], dtype=np.float64).reshape(-1, STEPS)
    if not len(boxes) == len(kept) == len(steps) == len(masks) == len(turns) == len(info["gt_names"]):
        raise ValueError("the columns of the boxes differ in length")
    for box, name, keep, way, mask, turn in zip(boxes, info["gt_names"], kept, steps, masks, turns, strict=True):
        if not keep or str(name) not in AGENTS:
            continue
        # SECOND's yaw goes from y to x, clockwise and a quarter off.
        yaw = -(box[6] + math.pi / 2)
        places = np.column_stack([box[:2] + np.cumsum(way, axis=0), yaw + np.cumsum(turn)])
        future = tuple(tuple(place.tolist()) if there == 1 else None for place, there in zip(places, mask, strict=True))
        # w is box[3] and l is box[4].
        yield AgentBox(str(name), float(box[4]), float(box[3]), (float(box[0]), float(box[1]), yaw), future)
