"""Texts of several checkpoints about the same videos, side by side: what was seen, what was said, what it earned.

For each video: sampled frames with the detector's boxes; reference and text of each checkpoint and mode, with the objects
that they name marked (detected, not detected, denied, of no detector); the terms of the physics reward. Written are one
PNG a video and index.html, one file that holds its pictures; printed are the terms. Prediction files (python -m drive_vlm
generate) with the same name in --names are one checkpoint.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, add_dataclass, from_namespace, nearest, run_tool
from drive_vlm.data.videos import MODES
from drive_vlm.rewards.physics import PhysicsConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from drive_vlm.data.predictions import Prediction
    from drive_vlm.rewards.detections import DetectionCache
    from drive_vlm.rewards.physics import PhysicsReward

EXAMPLES = """
python tools/compare_stages.py --predictions stage1.jsonl stage2.jsonl stage3.jsonl --image_root data/bdd --physics_detections detections.jsonl --out compare
python tools/compare_stages.py --predictions s2.jsonl s3.jsonl --names "stage 2" "stage 3" --image_root data/bdd --physics_detections d.jsonl --ids clips/0017.mp4 --out compare
python tools/compare_stages.py --predictions s2.detailed.jsonl s2.concise.jsonl s3.detailed.jsonl s3.concise.jsonl --names s2 s2 s3 s3 --physics_detections d.jsonl --out compare
"""
# (video, mode, question)
Key = tuple[str, str, str]


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/compare_stages.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", nargs="+", required=True, help="JSONL files of python -m drive_vlm generate")
    add("--names", nargs="+", help="what to call each file (default: their own names); files may share one")
    add("--out", required=True, help="folder for index.html and the PNGs")
    flag("--image_root", ".", "folder that the rows' videos are relative to")
    add("--ids", nargs="+", help="videos to show: their path, group or an id of their rows")
    flag("--limit", 8, "show the first N videos; with --ids all of those are shown", least=1)
    flag("--num_frames", 8, "frames shown of each video, of those that the detector looked at", least=1)
    add("--json", help="write texts, objects, detections and terms to this file")
    add_dataclass(parser, PhysicsConfig, "physics reward")
    return parser


def safe_name(text: str) -> str:
    """`text` as a file name."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "video"


def read_checkpoints(files: list[str], names: list[str]) -> dict[str, dict[Key, "Prediction"]]:
    """{checkpoint: {(video, mode, question): row}}, rows in the order of the files.

    Raises ValueError for a row without a video, a second answer to one question, and differing references.
    """
    from drive_vlm.data.predictions import read_predictions

    checkpoints: dict[str, dict[Key, Prediction]] = {name: {} for name in names}
    references: dict[Key, Prediction] = {}
    for name, path in zip(names, files, strict=True):
        for item in read_predictions(path, need_reference=False):
            video, where = item.row.get("video"), f"{item.where}: id {item.id!r}"
            if not isinstance(video, str) or not video:
                raise ValueError(f'{where} has no "video"; generate the file from rows with videos, or add it')
            key = (video, str(item.row.get("mode") or ""), str(item.row.get("question") or ""))
            if before := checkpoints[name].get(key):
                raise ValueError(f"{where}: a second answer of {name} about {video!r}, the first is at {before.where}")
            first = references.setdefault(key, item)
            if first.reference != item.reference:
                raise ValueError(
                    f"{where} has another reference than at {first.where}; compare answers to the same rows"
                )
            checkpoints[name][key] = item
    return checkpoints


def choose_videos(checkpoints: dict[str, dict[Key, "Prediction"]], ids: list[str] | None, limit: int) -> list[str]:
    """The videos that `ids` name (path, group or row id), in that order, or the first `limit` ones."""
    first, rows = next(iter(checkpoints.items()))
    if not ids:
        return list(dict.fromkeys(key[0] for key in rows))[:limit]
    known: dict[str, list[str]] = {}
    for every in checkpoints.values():
        for key, item in every.items():
            for name in {key[0], item.id, str(item.row.get("group") or item.id)}:
                known.setdefault(name, []).append(key[0])
    for name in ids:
        if name not in known:
            raise ValueError(
                f"--ids: no row has {name!r} as id, video or group ({first}: {len(rows)} rows).{nearest(name, known)}"
            )
    return list(dict.fromkeys(video for name in ids for video in known[name]))


def rows_of_video(checkpoints: dict[str, dict[Key, "Prediction"]], video: str) -> list[tuple[Key, list["Prediction"]]]:
    """One row of each checkpoint for every question about the video. Raises ValueError when a checkpoint lacks one."""
    keys = dict.fromkeys(key for rows in checkpoints.values() for key in rows if key[0] == video)
    for key in keys:
        there = {name: rows[key] for name, rows in checkpoints.items() if key in rows}
        for name in checkpoints:
            if name not in there:
                other, item = next(iter(there.items()))
                raise ValueError(
                    f"{name} has no answer to id {item.id!r} ({', '.join(filter(None, key))}), {other} has one at {item.where}; "
                    "generate it from the same rows, or choose videos that all have with --ids"
                )
    return [(key, [rows[key] for rows in checkpoints.values()]) for key in keys]


def load_frames(
    cache: "DetectionCache", video: str, root: str, count: int, where: str
) -> tuple[list["Image"], list[dict[str, Any]]]:
    """`count` of the frames that the detector looked at, and for each {index, changed, objects}.

    `changed`: its pixels are not those of the detections. Raises ValueError for a video without detections, one that
    has no such frame, and one that cannot be read.
    """
    import hashlib

    from drive_vlm.config import plain
    from drive_vlm.data.samples import BadRow
    from drive_vlm.data.vision import frame_indices, load_video, video_frames

    try:
        entry = cache.entry(video)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    path, looked = str(Path(root, video)), [frame.index for frame in entry.frames]
    try:
        now = video_frames(path, len(looked), where)
        pictures = load_video(path, len(looked), where)
    except BadRow as error:
        raise ValueError(
            f"{where}: {error.problem}. Check the folder of videos (--image_root), or choose others (--ids)"
        ) from error
    if looked != now:
        raise ValueError(
            f"{where}: the detections are of the frames {looked} of {video!r}, which are not {len(looked)} frames spread evenly over "
            f"{path} ({now}); frames are missing, or run tools/cache_detections.py again"
        )
    shown = frame_indices(len(looked), count)
    frames = []
    for place in shown:
        frame = entry.frames[place]
        digest = hashlib.sha256(pictures[place].tobytes()).hexdigest()
        frames.append({"index": frame.index, "changed": digest != frame.sha256, "objects": plain(frame.objects)})
    return [pictures[place] for place in shown], frames


def compare_video(
    video: str, rows: list[tuple[Key, list["Prediction"]]], names: list[str], reward: "PhysicsReward"
) -> dict[str, Any]:
    """Detections, texts with their marks and terms of one video, as --json holds them (but for the frames)."""
    from drive_vlm.rewards.text.mentions import find_mentions

    entry, first = reward.cache.entry(video), rows[0][1][0]
    seen = {
        label: sum(any(o.label == label for o in f.objects) for f in entry.frames) for label in sorted(entry.classes)
    }

    def marked(text: str) -> dict[str, Any]:
        return {"text": text, "mentions": [asdict(item) for item in find_mentions(reward.parser, text, entry.classes)]}

    texts = []
    for (_, mode, question), items in rows:
        scores = reward.score(
            [item.prediction for item in items], [item.reference for item in items], [video] * len(items)
        )
        answers = {
            name: {"id": item.id, **marked(item.prediction), "terms": asdict(score)}
            for name, item, score in zip(names, items, scores, strict=True)
        }
        texts.append({"mode": mode, "question": question, "reference": marked(items[0].reference), "answers": answers})
    texts.sort(key=lambda text: [*MODES, text["mode"]].index(text["mode"]))
    group = str(first.row.get("group") or video)
    return {"video": video, "group": group, "looked_at": len(entry.frames), "seen": seen, "texts": texts}


def run(args: Any) -> dict[str, Any]:
    """Read, score, draw; returns what --json holds."""
    from rich.progress import track

    from drive_vlm.data.predictions import checkpoint_names
    from drive_vlm.report.drive_vlm_stages import plot_video, write_page
    from drive_vlm.rewards.physics import PhysicsReward

    if args.names and len(args.names) != len(args.predictions):
        raise ValueError(f"--names has {len(args.names)} names for {len(args.predictions)} files")
    root, out = args.image_root, Path(args.out)
    reward = PhysicsReward(from_namespace(PhysicsConfig, args))
    names, files = args.names or checkpoint_names(args.predictions), args.predictions
    checkpoints = read_checkpoints(files, names)
    chosen = {video: rows_of_video(checkpoints, video) for video in choose_videos(checkpoints, args.ids, args.limit)}
    loaded = {}
    for video, rows in chosen.items():
        item = rows[0][1][0]
        loaded[video] = load_frames(reward.cache, video, root, args.num_frames, f"{item.where}: id {item.id!r}")
    out.mkdir(parents=True, exist_ok=True)
    videos = []
    for number, (video, rows) in enumerate(track(chosen.items(), "drawing", len(chosen)), 1):
        pictures, frames = loaded[video]
        png = f"{number:03d}-{safe_name(video)[-80:]}.png"
        entry = compare_video(video, rows, list(checkpoints), reward) | {"png": png, "frames": frames}
        plot_video(out / png, entry, pictures)
        videos.append(entry)
    result: dict[str, Any] = {
        "checkpoints": list(checkpoints),
        "detector": str(reward.cache.detector),
        "weights": asdict(reward.weights),
        "videos": videos,
    }
    write_page(out / "index.html", result, [loaded[video][0] for video in chosen])
    return result


def show(result: dict[str, Any], args: Any) -> None:
    from drive_vlm.report.drive_vlm_stages import print_comparison

    print_comparison(result)
    print(f"{Path(args.out) / 'index.html'}: {len(result['videos'])} videos, a PNG of each next to it")


def main() -> None:
    run_tool(make_parser(), run, show)


if __name__ == "__main__":
    main()
