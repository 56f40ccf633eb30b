"""Run an object detector over the frames that training sees, once: a cache for the physics reward and for evaluation.

Frames are sampled as in training (--num_frames). Each video, and each picture of a row, becomes one line of JSONL, known by
its path below the image root (a video that no row names: by its path as it was given); nothing found is a valid, empty
answer. Frames are known by a hash of their pixels, so the same frame is looked at once. Finished videos are kept when the
command is run again, unless their file has changed (size, or time and content): those are made anew, and so are lines of an
older cache, which do not tell their file. A cache holds one detector with one setting.

The detector is ultralytics YOLO, an optional extra under AGPL-3.0 (pip install drive-vlm[yolo]); no other part of the
project imports it. Weights are a pickle: load only files you trust, --sha256 refuses any other.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, DataConfig, add_dataclass, field, from_namespace
from drive_vlm.launch.shards import parse_shard, shard_of, shard_path
from drive_vlm.launch.topology import read_topology
from drive_vlm.process_group import gather, join_ranks, leave_ranks, wait_for_ranks

if TYPE_CHECKING:
    from drive_vlm.data.detection_items import Frames, Item

EXAMPLES = """
python tools/cache_detections.py --data train.jsonl --num_frames 16 --out detections.jsonl
torchrun --nproc_per_node 8 tools/cache_detections.py --data train.jsonl --num_frames 16 --out detections.jsonl
python tools/cache_detections.py --data train.jsonl --num_frames 16 --out detections.jsonl --shard 2/8   # one of a job array
python tools/cache_detections.py --data clips/ --num_frames 16 --out detections.jsonl   # videos without rows
python tools/cache_detections.py --merge detections.shard-*-of-08.jsonl --out detections.jsonl
"""


@dataclasses.dataclass
class DetectConfig:
    """What to look at, with which detector, and where the answers go."""

    out: str = field(help="detections JSONL; videos that are in it already are kept")
    data: list[str] = field(
        [], help="rows: .jsonl, LLaVA .json or InternVL meta .json; also videos, folders of frames, and folders of both"
    )
    image_root: str | None = field(
        None, help="folder that picture paths start from (default: the data file's own folder)"
    )
    weights: str = field("yolov8x.pt", help="YOLO weights, a local .pt file")
    sha256: str | None = field(None, help="refuse weights with another SHA-256 before they are unpickled")
    imgsz: int = field(640, help="longer side of a frame for the detector, in pixels")
    conf: float = field(0.3, help="confidence below which an object is dropped")
    num_frames: int = field(
        DataConfig.num_frames, help="frames taken from a video, evenly spread; the same as in training"
    )
    batch_size: int = field(16, help="frames in one pass of the detector")
    workers: int = field(4, help="threads that decode")
    shard: str | None = field(
        None,
        help="I/N: do the I-th of N equal runs of videos (from 0) into a file of its own, e.g. out.shard-02-of-08.jsonl",
    )
    merge: list[str] = field([], help="join these files into --out instead of looking at anything")
    verify: bool = field(
        False,
        help="decode finished videos again, whatever their sizes and times tell, and make anew what has other frames",
    )
    on_bad_row: str = field(
        "error", help="error: stop at a bad row or video; skip: leave it out and count it", choices=("error", "skip")
    )
    json: str | None = field(None, help="write class counts, videos without objects and bad rows to this file")


Boxes = tuple[Any, ...]  # DetectedObject of one frame
Detect = Callable[[list[Any]], list[Boxes]]


def note_bad(error: Any, config: DetectConfig, bad: list[dict[str, str]]) -> None:
    if config.on_bad_row == "error":
        raise error
    bad.append({"where": error.where, "reason": error.reason, "problem": error.problem})


def open_detector(config: DetectConfig) -> tuple[Any, Detect]:
    """(what names the detector, pictures -> objects of each). Raises ValueError without ultralytics or weights."""
    from drive_vlm.launch.cache import cache_dir
    from drive_vlm.rewards.detections import Detector

    path = Path(config.weights)
    if not path.is_file():
        raise ValueError(
            f"--weights {path}: no such file, and nothing is downloaded here. Fetch it once where there is a network, "
            f"python -c \"from ultralytics import YOLO; YOLO('{path.name}')\", and give its path."
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if config.sha256 and digest != config.sha256.lower():
        raise ValueError(f"--weights {path}: its SHA-256 is {digest}, not --sha256 {config.sha256}. It was not loaded.")
    settings = Path(os.environ.get("YOLO_CONFIG_DIR") or cache_dir() / "ultralytics")  # else in the home directory
    settings.mkdir(parents=True, exist_ok=True)
    os.environ |= {"YOLO_CONFIG_DIR": str(settings), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    try:
        import ultralytics
    except ImportError as error:
        raise ValueError(
            f"no ultralytics ({error}). Install the optional extra (AGPL-3.0): pip install drive-vlm[yolo]"
        ) from error
    model = ultralytics.YOLO(str(path), task="detect")
    version = f"ultralytics {ultralytics.__version__}"
    return Detector(path.name, digest, config.imgsz, config.conf, version), yolo_pass(model, config)


def yolo_pass(model: Any, config: DetectConfig) -> Detect:
    """Objects of each of a list of RGB pictures. Pictures of one size go together: among others they would be padded, and
    what is found would depend on the neighbours."""
    import torch

    from drive_vlm.rewards.detections import DetectedObject

    device = f"cuda:{read_topology().local_rank}" if torch.cuda.is_available() else "cpu"

    def found(result: Any) -> Boxes:
        rows = zip(result.boxes.xyxy.tolist(), result.boxes.conf.tolist(), result.boxes.cls.tolist(), strict=True)
        return tuple(
            DetectedObject(result.names[int(kind)], round(score, 4), tuple(round(value, 1) for value in box))
            for box, score, kind in rows
        )

    def detect(pictures: list[Any]) -> list[Boxes]:
        answers: list[Boxes] = [()] * len(pictures)
        for size in {picture.size for picture in pictures}:
            group = [i for i, picture in enumerate(pictures) if picture.size == size]
            for start in range(0, len(group), config.batch_size):
                part = group[start : start + config.batch_size]
                results = model.predict(
                    [pictures[i] for i in part], imgsz=config.imgsz, conf=config.conf, device=device, verbose=False
                )
                for i, result in zip(part, results, strict=True):
                    answers[i] = found(result)
        return answers

    return detect


def check_finished(cache: Any, detector: Any, items: list["Item"], config: DetectConfig, bad: list) -> dict[str, str]:
    """{name: why} of finished items that are to be made anew. Raises ValueError naming the setting that differs from that of
    finished lines."""
    from drive_vlm.data.samples import BadRow

    files = ", ".join(map(str, cache.paths))
    if cache.detector is not None and cache.detector != detector:
        was, now = dataclasses.asdict(cache.detector), dataclasses.asdict(detector)
        moved = ", ".join(f"{name} (file: {was[name]}, now: {now[name]})" for name in was if was[name] != now[name])
        raise ValueError(
            f"{files}: made with another detector or setting: {moved}. Give another --out, or the old setting."
        )
    found: dict[str, str] = {}
    for item in items:
        if item.name in cache:
            try:
                why = outdated(cache.entry(item.name), item, config, files)
            except BadRow as error:
                note_bad(error, config, bad)
            else:
                found |= {item.name: why} if why else {}
    return found


def outdated(entry: Any, item: "Item", config: DetectConfig, files: str) -> str:
    """Why a finished item is to be made anew, '' when it is not. Raises ValueError when --num_frames takes other frames of the
    same file; BadRow."""
    from drive_vlm.data.detection_items import load_frames
    from drive_vlm.data.vision import frame_indices, video_length

    if entry.file and item.changed(entry.file, len(entry.frames)):
        return "changed"
    if item.is_video:
        now = frame_indices(video_length(item.path, item.where), config.num_frames)
        was = [frame.index for frame in entry.frames]
        if was != now:
            raise ValueError(
                f"{files}: frames {was} of {item.name!r} were looked at, --num_frames {config.num_frames} takes {now} of it. Give "
                "the old --num_frames or another --out."
            )
    if not entry.file:
        return "from an older cache that does not tell their files"
    seen = [frame.sha256 for frame in entry.frames]
    return "changed" if config.verify and load_frames(item, config.num_frames).hashes != seen else ""


def detections(
    todo: list["Item"], detector: Any, detect: Detect, known: dict[str, Boxes], config: DetectConfig, bad: list
) -> Iterator[Any]:
    """VideoDetections of each item, in order; decoding runs ahead in threads, `known` frames are not looked at again."""
    from rich.progress import track

    from drive_vlm.data.detection_items import Frames, load_frames
    from drive_vlm.data.samples import BadRow

    def load(item: "Item") -> "Frames | BadRow":
        try:
            return load_frames(item, config.num_frames)
        except BadRow as error:
            return error

    waiting: list[Frames] = []
    bar = track(range(0, len(todo), config.workers), "detections", disable=not read_topology().is_main)
    with ThreadPoolExecutor(config.workers) as threads:
        for start in bar:
            for frames in threads.map(load, todo[start : start + config.workers]):
                if isinstance(frames, BadRow):
                    note_bad(frames, config, bad)
                else:
                    waiting.append(frames)
            if sum(len(frames.pictures) for frames in waiting) >= config.batch_size:
                yield from look(waiting, detector, detect, known)
                waiting.clear()
    yield from look(waiting, detector, detect, known)


def look(waiting: list["Frames"], detector: Any, detect: Detect, known: dict[str, Boxes]) -> Iterator[Any]:
    """One pass over the frames of several items."""
    from drive_vlm.rewards.detections import DetectedFrame, VideoDetections

    new = {
        digest: picture
        for frames in waiting
        for digest, picture in zip(frames.hashes, frames.pictures, strict=True)
        if digest not in known
    }
    known.update(zip(new, detect(list(new.values())), strict=True))
    for frames in waiting:
        seen = zip(frames.indices, frames.hashes, strict=True)
        yield VideoDetections(
            frames.item.name,
            detector,
            tuple(DetectedFrame(i, digest, known[digest]) for i, digest in seen),
            frames.identity,
        )


def run(config: DetectConfig) -> dict[str, Any]:
    """Bring the cache up to date; what --json holds. Raises ValueError."""
    from drive_vlm.data.detection_items import read_items
    from drive_vlm.rewards.detections import (
        DetectionCache,
        append_detections,
        cut_torn_line,
        drop_detections,
        merge_detections,
    )

    if config.merge:
        return summary(merge_detections(config.merge, config.out), [])
    if not config.data or min(config.num_frames, config.batch_size, config.workers) < 1:
        raise ValueError("--data is needed, and --num_frames, --batch_size and --workers of at least 1.")
    bad: list[dict[str, str]] = []
    topology, shard = read_topology(), parse_shard(config.shard)
    items = shard_of(read_items(config.data, config.image_root, partial(note_bad, config=config, bad=bad)), shard)
    out = shard_path(Path(config.out), shard) if config.shard else Path(config.out)
    parts = sorted(out.parent.glob(f"{out.name}.part*"))
    join_ranks()
    if topology.is_main:
        for path in (out, *parts):
            cut_torn_line(path)
    wait_for_ranks()
    cache = DetectionCache.load([path for path in (out, *parts) if path.is_file()])
    detector, detect = open_detector(config)
    anew = check_finished(cache, detector, items, config, bad)
    todo = [item for item in items if item.name in anew or item.name not in cache]
    wait_for_ranks()  # every rank has read what is finished before anybody writes
    if topology.is_main:
        for path in cache.paths if anew else ():
            drop_detections(path, anew)
        why = "".join(f"; {count:,} made anew: {reason}" for reason, count in Counter(anew.values()).items())
        print(f"{len(items):,} videos and pictures, {len(items) - len(todo):,} finished before{why}", flush=True)
    wait_for_ranks()
    known = {frame.sha256: frame.objects for entry in cache for frame in entry.frames}
    mine, part = todo[topology.rank :: topology.world_size], out.with_name(f"{out.name}.part{topology.rank}")
    append_detections(part, detections(mine, detector, detect, known, config, bad))
    bad = list({tuple(row.values()): row for part in gather(bad) for row in part}.values())
    leave_ranks()
    if not topology.is_main:
        return {}
    parts = sorted(out.parent.glob(f"{out.name}.part*"))
    cache = merge_detections(parts, out)
    for path in parts:
        path.unlink()
    return summary(cache, bad)


def summary(cache: Any, bad: list[dict[str, str]]) -> dict[str, Any]:
    """Counts over the whole cache file."""
    objects = Counter(item.label for entry in cache for frame in entry.frames for item in frame.objects)
    videos = Counter(label for entry in cache for label in entry.classes)
    return {
        "videos": len(cache),
        "frames": sum(len(entry.frames) for entry in cache),
        "detector": dataclasses.asdict(cache.detector) if cache.detector else None,
        "classes": {label: {"objects": count, "videos": videos[label]} for label, count in objects.most_common()},
        "videos_without_objects": sorted(entry.video for entry in cache if not entry.classes),
        "bad": bad,
    }


def show(result: dict[str, Any], config: DetectConfig) -> None:
    from rich.console import Console
    from rich.table import Table

    empty = result["videos_without_objects"]
    table = Table()
    for column in ("class", "objects", "videos"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for label, count in result["classes"].items():
        table.add_row(label, f"{count['objects']:,}", f"{count['videos']:,}")
    Console(width=120).print(table)
    print(
        f"{len(empty):,} without any object"
        + (f", such as {empty[0]}" if empty else "")
        + f"; {len(result['bad'])} bad"
    )
    for row in result["bad"][:10]:
        print(f"  {row['where']}: {row['reason']}: {row['problem']}")


def main() -> None:
    parser = CommandParser(description=__doc__, examples=EXAMPLES)
    add_dataclass(parser, DetectConfig)
    config = from_namespace(DetectConfig, parser.parse_args())
    try:
        result = run(config)
    except ValueError as error:
        parser.error(str(error))
    if not read_topology().is_main:
        return
    show(result, config)
    if config.json:
        Path(config.json).parent.mkdir(parents=True, exist_ok=True)
        Path(config.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
