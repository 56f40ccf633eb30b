"""Write a detection cache from the exact truth of a synthetic data set, with misses and false hits by seeded chance.

It stands in for a real detector where none can run, and says so in each line: weights "scene truth", `version` names the
shares and the seed, sha256 is that of scenes.jsonl. Chance is drawn for a class of a video, not for a box, since rewards
read the union over frames: with --misses 0.1 one of ten classes that are there is found in no frame of its video, with
--false_hits 0.05 one of twenty that are not there is reported, in one frame. --misses 0 --false_hits 0 is the truth.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.builders.detection_items import PendingItem
from drive_vlm.builders.synthetic.scene import COCO_LABELS, coco_labels
from drive_vlm.config import CommandParser, DataConfig, run_tool
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.vision import load_video, video_frames
from drive_vlm.rewards.detections import (
    DetectedFrame,
    DetectedObject,
    DetectionCache,
    Detector,
    VideoDetections,
    append_detections,
)

EXAMPLES = """
python tools/build_truth_detections.py --data data/videos --out data/videos/detections.jsonl
python tools/build_truth_detections.py --data data/videos --out data/videos/truth.jsonl --misses 0 --false_hits 0
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_truth_detections.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--data", type=Path, required=True, help="folder that tools/build_synthetic.py wrote, with clips")
    add("--out", type=Path, required=True, help="detection cache to write; an earlier file is replaced")
    flag("--misses", 0.1, "share of a video's classes that are not found in it", 0, 1)
    flag("--false_hits", 0.05, "share of the classes absent from a video that are reported in it", 0, 1)
    flag("--num_frames", DataConfig.num_frames, "frames of each video, evenly spread, as in training", least=1)
    flag("--seed", 0, "seed of misses, false hits and scores", least=0)
    add("--json", type=Path, help="write the counts to this file")
    return parser


def read_scenes(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The frames' truths of each video in their order. Raises ValueError for a missing file and one without videos."""
    if not path.is_file():
        raise ValueError(f"{path} is not there: --data must be a folder that tools/build_synthetic.py wrote")
    videos: dict[str, list[dict[str, Any]]] = {}
    for scene in JsonlFile(path):
        if "video" in scene:
            videos.setdefault(scene["video"], []).append(scene)
    if not videos:
        raise ValueError(f"{path} holds no clips: build with --clips or --order_clips")
    return videos


def detect(
    root: Path, video: str, scenes: list[dict[str, Any]], detector: Detector, args: Any, counts: Counter[str]
) -> VideoDetections:
    """What a detector with these faults finds in the sampled frames; what it missed and invented goes into `counts`."""
    digest = hashlib.sha256(video.encode()).digest()
    rng = np.random.default_rng([args.seed, int.from_bytes(digest[:8], "big")])
    path, where = str(root / video), str(root / "scenes.jsonl")
    indices, pictures = video_frames(path, args.num_frames, where), load_video(path, args.num_frames, where)
    found = [
        [
            (label, thing["box"])
            for thing in scenes[index]["objects"]
            for label in coco_labels(thing["name"], thing["state"])
        ]
        for index in indices
    ]
    there = {label for objects in found for label, _ in objects}
    chances = dict(zip(COCO_LABELS, rng.random(len(COCO_LABELS)).tolist(), strict=True))
    missed = {label for label in there if chances[label] < args.misses}
    invented = [label for label in COCO_LABELS if label not in there and chances[label] < args.false_hits]
    counts.update(there=len(there), missed=len(missed), absent=len(COCO_LABELS) - len(there), invented=len(invented))
    for label in invented:
        width, height = pictures[0].size
        x, y = rng.integers(0, width // 2), rng.integers(0, height // 2)
        found[rng.integers(len(found))].append((label, [int(x), int(y), int(x + width // 4), int(y + height // 4)]))
    frames = []
    for index, picture, objects in zip(indices, pictures, found, strict=True):
        seen = tuple(
            DetectedObject(label, round(float(rng.uniform(0.5, 1.0)), 3), (x1, y1, x2, y2))
            for label, (x1, y1, x2, y2) in objects
            if label not in missed
        )
        frames.append(DetectedFrame(index, hashlib.sha256(picture.tobytes()).hexdigest(), seen))
    file = PendingItem(video, path, where, is_video=True).identity(args.num_frames)
    return VideoDetections(video, detector, tuple(frames), file)


def build(args: Any) -> Counter[str]:
    """Write the cache and read it back; return the counts. Raises ValueError for what cannot be built."""
    from rich.progress import track

    truth = args.data / "scenes.jsonl"
    videos = read_scenes(truth)
    size = max(next(iter(videos.values()))[0]["size"])
    version = f"misses {args.misses:g}, false hits {args.false_hits:g}, seed {args.seed}"
    detector = Detector("scene truth", hashlib.sha256(truth.read_bytes()).hexdigest(), size, 0.0, version)
    counts: Counter[str] = Counter()
    part = args.out.with_name(f".{args.out.name}.part")
    part.unlink(missing_ok=True)
    entries = (
        detect(args.data, video, scenes, detector, args, counts) for video, scenes in track(videos.items(), "detecting")
    )
    append_detections(part, entries)
    part.replace(args.out)
    counts["videos"] = len(DetectionCache.load(args.out))
    return counts


def show(counts: Counter[str], args: Any) -> None:
    print(
        f"{args.out}: {counts['videos']:,} videos; {counts['missed']:,} of {counts['there']:,} classes missed, "
        f"{counts['invented']:,} of {counts['absent']:,} absent classes reported"
    )


if __name__ == "__main__":
    run_tool(make_parser(), build, show)
