"""Run an object detector over the frames that training sees, once: a cache for the physics reward and for evaluation.

Frames are sampled as in training (--num_frames). Each video, and each picture of a row, becomes one line of JSONL, known by
its path below the image root (a video that no row names: by its path as it was given); nothing found is a valid, empty
answer. Frames are known by a hash of their pixels, so the same frame is looked at once. Finished videos are kept when the
command is run again, unless their file has changed (size, or time and content): those are made again, and so are lines of an
older cache, which do not name their file or were decoded in another way. A cache holds one detector with one setting, and
has one writer at a time.

The detector is ultralytics YOLO, an optional extra under AGPL-3.0 (pip install drive-vlm[yolo]); no other part of the
project imports it. Weights are a pickle: load only files you trust, --sha256 refuses any other.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_detector import Boxes, Detect, open_detector

from drive_vlm.config import CommandParser, DataConfig, add_dataclass, field, image_root_field, links_field, run_tool
from drive_vlm.launch.stop import listening, until_stopped
from drive_vlm.launch.topology import read_topology
from drive_vlm.report.tables import print_table
from drive_vlm.sampling.process_group import gather, join_ranks, leave_ranks, sole_writer_of_ranks, wait_for_ranks
from drive_vlm.store.keyed_lines import check_same
from drive_vlm.store.lock import sole_writer
from drive_vlm.store.shards import parse_shard, shard_of, shard_path

if TYPE_CHECKING:
    from drive_vlm.builders.detection_items import Frames, PendingItem

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
    image_root: str | None = image_root_field()
    links: str = links_field()
    weights: str = field("yolov8x.pt", help="YOLO weights, a local .pt file")
    sha256: str | None = field(None, help="refuse weights with another SHA-256 before they are unpickled")
    imgsz: int = field(640, help="longer side of a frame for the detector, in pixels")
    conf: float = field(0.3, help="confidence below which an object is dropped", least=0, most=1)
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
        help="decode finished videos again, whatever their sizes and times say, and make again what has other frames",
    )
    on_bad_row: str = field(
        "error", help="error: stop at a bad row or video; skip: leave it out and count it", choices=("error", "skip")
    )
    json: str | None = field(None, help="write class counts, videos without objects and bad rows to this file")


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/cache_detections.py", description=__doc__, examples=EXAMPLES)
    add_dataclass(parser, DetectConfig)
    return parser


def note_bad(error: Any, config: DetectConfig, bad: list[dict[str, str]]) -> None:
    if config.on_bad_row == "error":
        raise error
    bad.append(error.facts())


def check_finished(
    cache: Any, detector: Any, items: list["PendingItem"], config: DetectConfig, bad: list
) -> dict[str, str]:
    """{name: why} of finished items that are to be made again. Raises ValueError naming the setting that differs from that of
    finished lines."""
    from drive_vlm.builders.detection_items import outdated
    from drive_vlm.data.samples import BadRow

    if cache.detector is not None:
        made = f"{', '.join(map(str, cache.paths))}: made"
        was, now = dataclasses.asdict(cache.detector), dataclasses.asdict(detector)
        check_same(made, was, now, "Give another --out, or the old setting.")
    found: dict[str, str] = {}
    for item in items:
        if item.name in cache:
            try:
                why = outdated(cache.entry(item.name), item, config.num_frames, config.verify)
            except BadRow as error:
                note_bad(error, config, bad)
            else:
                found |= {item.name: why} if why else {}
    return found


def detections(
    todo: list["PendingItem"], detector: Any, detect: Detect, known: dict[str, Boxes], config: DetectConfig, bad: list
) -> Iterator[Any]:
    """VideoDetections of each item, in order; decoding runs ahead in threads, `known` frames are not looked at again."""
    from rich.progress import track

    from drive_vlm.builders.detection_items import decoded
    from drive_vlm.data.samples import BadRow

    waiting: list[Frames] = []
    steps, quiet = -(-len(todo) // config.workers), not read_topology().is_main
    parts = track(decoded(todo, config.num_frames, config.workers), "detections", steps, disable=quiet)
    for part in until_stopped(parts):
        for frames in part:
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
    from drive_vlm.data.caches.feature_cache import TRANSFORM
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
            TRANSFORM,
        )


def check_flags(config: DetectConfig) -> None:
    """Raises ValueError."""
    if Path(config.out).is_dir():
        raise ValueError(
            f"--out {config.out} is a folder. Give the path of a file, such as {config.out}/detections.jsonl."
        )
    if config.merge:
        return
    if not config.data or min(config.num_frames, config.batch_size, config.workers) < 1:
        raise ValueError("--data is needed, and --num_frames, --batch_size and --workers of at least 1.")
    # 32 is YOLO's stride: it sees nothing in a smaller picture.
    if config.imgsz < 32 or not 0 <= config.conf <= 1:
        raise ValueError(f"--imgsz {config.imgsz} --conf {config.conf}: need at least 32, and a number in 0..1.")


def parts_of(out: Path) -> list[Path]:
    """What the ranks have finished, of this run or of one that was killed."""
    return sorted(path for path in out.parent.iterdir() if re.fullmatch(re.escape(out.name) + r"\.part\d+", path.name))


def run(config: DetectConfig) -> dict[str, Any] | None:
    """Bring the cache up to date, or merge caches; what --json holds, None on other ranks. Raises ValueError."""
    from drive_vlm.builders.detection_items import read_items
    from drive_vlm.rewards.detections import merge_detections

    check_flags(config)
    if config.merge:
        with sole_writer(Path(config.out)):
            return summary(merge_detections(config.merge, config.out), [])
    bad: list[dict[str, str]] = []
    shard = parse_shard(config.shard)
    note = partial(note_bad, config=config, bad=bad)
    items = shard_of(read_items(config.data, config.image_root, note, config.links), shard)
    out = shard_path(Path(config.out), shard) if config.shard else Path(config.out)
    join_ranks()
    with sole_writer_of_ranks(out):
        look_at_all(items, out, config, bad)
        bad = list({tuple(row.values()): row for part in gather(bad) for row in part}.values())
        leave_ranks()
        return summary(join_parts(items, out, bad), bad) if read_topology().is_main else None


def look_at_all(items: list["PendingItem"], out: Path, config: DetectConfig, bad: list[dict[str, str]]) -> None:
    """Write what is not finished of this rank's share to its part."""
    from drive_vlm.rewards.detections import DetectionCache, append_detections, drop_detections
    from drive_vlm.store.keyed_lines import cut_torn_line

    topology, files = read_topology(), [out, *parts_of(out)]
    # Every rank has the same list before there are new parts.
    wait_for_ranks()
    if topology.is_main:
        for path in files:
            cut_torn_line(path)
    wait_for_ranks()
    cache = DetectionCache.load([path for path in files if path.is_file()])
    detector, detect = open_detector(Path(config.weights), config.sha256, config.imgsz, config.conf, config.batch_size)
    outdated = check_finished(cache, detector, items, config, bad)
    todo = [item for item in items if item.name in outdated or item.name not in cache]
    # Every rank has read what is finished before anybody writes.
    wait_for_ranks()
    if topology.is_main:
        for path in cache.paths if outdated else ():
            drop_detections(path, outdated)
        finished = len(items) - len(todo)
        print(f"{len(items):,} videos and pictures, {finished:,} finished before{reasons(outdated, items)}", flush=True)
    wait_for_ranks()
    known = {frame.sha256: frame.objects for entry in cache for frame in entry.frames}
    mine, part = todo[topology.rank :: topology.world_size], out.with_name(f"{out.name}.part{topology.rank}")
    append_detections(part, detections(mine, detector, detect, known, config, bad))


def reasons(outdated: dict[str, str], items: list["PendingItem"]) -> str:
    """How many items are made again for each reason, and the first of them: its path shows when it is of another data root."""
    text, paths = "", {item.name: item.path for item in items}
    for reason, count in Counter(outdated.values()).items():
        first = next(name for name in outdated if outdated[name] == reason)
        text += f"; {count:,} made again: {reason} (first {first!r}, {paths[first]})"
    return text


def join_parts(items: list["PendingItem"], out: Path, bad: list[dict[str, str]]) -> Any:
    """The whole cache, from `out` and the parts, which are removed. Raises ValueError for an item that is lost."""
    from drive_vlm.rewards.detections import merge_detections

    parts = parts_of(out)
    cache = merge_detections(parts, out)
    for path in parts:
        path.unlink()
    excused = {row["where"] for row in bad}
    lost = [item for item in items if item.name not in cache and item.where not in excused]
    if lost:
        raise ValueError(
            f"{out}: {len(lost):,} of {len(items):,} videos and pictures are not in it (first {lost[0].name!r}): its parts were "
            "changed from outside while this ran. Run the same command again."
        )
    return cache


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
    empty = result["videos_without_objects"]
    rows = [(label, f"{count['objects']:,}", f"{count['videos']:,}") for label, count in result["classes"].items()]
    print_table(None, ("class", "objects", "videos"), rows)
    example = f", such as {empty[0]}" if empty else ""
    print(f"{len(empty):,} without any object{example}; {len(result['bad'])} bad")
    for row in result["bad"][:10]:
        print(f"  {row['where']}: {row['reason']}: {row['problem']}")


def main() -> None:
    with listening():
        run_tool(make_parser(), run, show, DetectConfig)


if __name__ == "__main__":
    main()
