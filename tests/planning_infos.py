"""Info files as VAD and UniAD write them, of invented drives on a plane: the same drives in both forms, each from its definition.

A drive is a list of (x, y, heading) of the car's middle of the rear axle in the world, one every 0.5 s. The LiDAR is 0.94 m ahead
of it and looks to the front with its y axis, as in nuScenes.
"""

import math
from typing import Any

import numpy as np

AHEAD = 0.94
# From the LiDAR's axes (x right, y forward) to the car's (x forward, y left): a quarter turn, clockwise.
LIDAR_TO_EGO = [math.cos(-math.pi / 4), 0.0, 0.0, math.sin(-math.pi / 4)]

Pose = tuple[float, float, float]


def drive(
    frames: int, speed: float, turn: float = 0.0, gain: float = 0.0, start: Pose = (100.0, 50.0, 0.3)
) -> list[Pose]:
    """`frames` poses at `speed` m/s that grows by `gain` each frame, the heading by `turn` rad (positive: left)."""
    x, y, heading = start
    poses = []
    for i in range(frames):
        poses.append((x, y, heading))
        way = 0.5 * (speed + gain * i)
        x, y, heading = x + way * math.cos(heading), y + way * math.sin(heading), heading + turn
    return poses


def seen(place: complex, pose: Pose) -> tuple[float, float]:
    """A place of the world in the LiDAR's frame of a pose: (to the right, forward)."""
    x, y, heading = pose
    away = (place - complex(x, y)) * complex(math.cos(heading), -math.sin(heading)) - AHEAD
    return -away.imag, away.real


def lidar(pose: Pose) -> complex:
    x, y, heading = pose
    return complex(x, y) + AHEAD * complex(math.cos(heading), math.sin(heading))


def future_of(poses: list[Pose], i: int) -> np.ndarray:
    """float[<= 6, 2]: the LiDAR's next places, x right and y forward."""
    return np.array([seen(lidar(pose), poses[i]) for pose in poses[i + 1 : i + 7]]).reshape(-1, 2)


def _tokens(scene: str, poses: list[Pose], i: int) -> dict[str, Any]:
    return {
        "token": f"{scene}-{i:02d}",
        "prev": f"{scene}-{i - 1:02d}" if i else "",
        "next": f"{scene}-{i + 1:02d}" if i + 1 < len(poses) else "",
        "scene_token": scene,
        "frame_idx": i,
        "timestamp": 1_500_000_000_000_000 + 500_000 * i,
        "cams": {
            name: {"data_path": f"./data/nuscenes/samples/{name}/{scene}-{i:02d}.jpg"}
            for name in ("CAM_FRONT", "CAM_BACK")
        },
    }


def vad_info(scene: str, poses: list[Pose], i: int, agents: list[dict[str, Any]] = ()) -> dict[str, Any]:
    """agents: {"name", "size": (width, length), "now": (x, y, yaw), "steps": [(dx, dy, dyaw) or None] * 6}, in the LiDAR's frame."""
    future = future_of(poses, i)
    masks = [1.0] * len(future) + [0.0] * (6 - len(future))
    last = future[-1] if len(future) else np.zeros(2)
    whole = np.concatenate([future, np.tile(last, (6 - len(future), 1))])
    steps = np.diff(np.concatenate([np.zeros((1, 2)), whole]), axis=0)
    past = [lidar(pose) for pose in poses[max(0, i - 2) : i + 1]]
    while len(past) < 3:
        # At a scene's start the converter goes on by the step that comes next.
        after = past[1] if len(past) > 1 else lidar(poses[i + 1])
        past.insert(0, 2 * past[0] - after)
    history = np.diff(np.array([seen(place, poses[i]) for place in past]), axis=0)
    command = [float(last[0] >= 2), float(last[0] <= -2), float(abs(last[0]) < 2)]
    features = np.zeros(9)
    features[7] = np.linalg.norm(history[-1]) / 0.5
    boxes = [[x, y, 0.0, width, length, 1.5, -yaw - math.pi / 2] for (x, y, yaw), (width, length) in
             ((agent["now"], agent["size"]) for agent in agents)]  # fmt: skip
    ways = [[step or (0.0, 0.0, 0.0) for step in agent["steps"]] for agent in agents]
    return {
        **_tokens(scene, poses, i),
        "fut_valid_flag": len(future) == 6,
        "gt_ego_his_trajs": history.astype(np.float32),
        "gt_ego_fut_trajs": steps.astype(np.float32),
        "gt_ego_fut_masks": np.array(masks, dtype=np.float32),
        "gt_ego_fut_cmd": np.array(command, dtype=np.float32),
        "gt_ego_lcf_feat": features.astype(np.float32),
        "gt_boxes": np.array(boxes, dtype=np.float64).reshape(-1, 7),
        "gt_names": np.array([agent["name"] for agent in agents], dtype="<U20"),
        # A radar's hit makes a box valid; the LiDAR's is what VAD's evaluation asks for.
        "valid_flag": np.array([True for _ in agents], dtype=bool),
        "num_lidar_pts": np.array([agent.get("points", 5) for agent in agents]),
        "gt_agent_fut_trajs": np.array([[step[:2] for step in way] for way in ways], dtype=np.float32).reshape(-1, 12),
        "gt_agent_fut_masks": np.array([[step is not None for step in agent["steps"]] for agent in agents], dtype=np.float32).reshape(-1, 6),
        "gt_agent_fut_yaw": np.array([[step[2] for step in way] for way in ways], dtype=np.float32).reshape(-1, 6),
    }  # fmt: skip


def uniad_info(scene: str, poses: list[Pose], i: int) -> dict[str, Any]:
    x, y, heading = poses[i]
    return {
        **_tokens(scene, poses, i),
        "lidar2ego_translation": [AHEAD, 0.0, 1.84],
        "lidar2ego_rotation": LIDAR_TO_EGO,
        "ego2global_translation": [x, y, 0.0],
        "ego2global_rotation": [math.cos(heading / 2), 0.0, 0.0, math.sin(heading / 2)],
    }


def plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
