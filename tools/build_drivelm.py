"""DriveLM's official JSON -> JSONL rows with six pictures or one stitched 3x2 picture, split by scene.

Reads v1_1_train_nus.json, the challenge's test_eval.json (rows then keep `tag` and score with tools/drivelm_eval.py)
and, with --questions_only, files without answers. Writes one JSONL a split; stitched pictures go to OUT/images and
object coordinates become thousandths of the stitched picture (drive_vlm/builders/stitching.py).
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.builders.splits import assign_split, parse_fractions
from drive_vlm.builders.stitching import LAYOUT, normalise_tags, stitch
from drive_vlm.config import CommandParser, nearest
from drive_vlm.evaluation.drivelm import CATEGORIES

# The order of the six pictures in a row: that of `image_paths` in the official files.
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
EXAMPLES = """
python tools/build_drivelm.py --annotations v1_1_train_nus.json --images data/nuscenes --out data/drivelm
python tools/build_drivelm.py --annotations v1_1_train_nus.json --images data/nuscenes --views stitched --out data/3x2
python tools/build_drivelm.py --annotations test_eval.json --images data/nuscenes --out data/test --split test:1
"""


@dataclass(frozen=True)
class Frame:
    """One key frame: its pictures by camera, relative to the image root, and the raw questions by category."""

    scene: str
    id: str
    views: dict[str, str]
    questions: dict[str, list[dict[str, Any]]]

    @property
    def name(self) -> str:
        return f"{self.scene}_{self.id}"


def make_parser() -> CommandParser:
    parser = CommandParser(description=__doc__, examples=EXAMPLES)
    parser.add_argument("--annotations", required=True, help="DriveLM JSON: v1_1_train_nus.json or test_eval.json")
    parser.add_argument("--images", required=True, help="folder that holds samples/CAM_FRONT/... of nuScenes")
    parser.add_argument("--out", required=True, help="folder for SPLIT.jsonl and stitched pictures")
    parser.add_argument(
        "--views", choices=("six", "stitched"), default="six", help="six pictures a row, or one 3x2 picture"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        default=["train:0.9", "val:0.1"],
        metavar="NAME:SHARE",
        help="shares of the scenes; they sum to 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.add_argument("--max_frames", type=int, help="take the first N key frames only")
    parser.add_argument(
        "--questions_only", action="store_true", help="write rows without answers, for files that have none"
    )
    parser.add_argument("--workers", type=int, default=4, help="threads that stitch pictures")
    parser.add_argument("--json", help="write the counts here")
    return parser


def read_frames(annotations: Path, images: Path) -> Iterator[Frame]:
    """The key frames of an official JSON in its order.

    Raises ValueError, naming file, scene and frame, for an unknown or absent camera and a picture that is not there.
    """
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{annotations}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{annotations}: expected {{scene: {{key_frames: ...}}}}, got a {type(content).__name__}")
    for scene, data in content.items():
        frames = data.get("key_frames") if isinstance(data, dict) else None
        if not isinstance(frames, dict):
            raise ValueError(f'{annotations}: scene {scene}: no "key_frames"')
        for frame, parts in frames.items():
            where = f"{annotations}: scene {scene} frame {frame}"
            views = {camera: _below(path) for camera, path in parts.get("image_paths", {}).items()}
            _check_views(views, images, where)
            unknown = set(parts.get("QA", {})) - set(CATEGORIES)
            if unknown:
                raise ValueError(f"{where}: unknown categories {sorted(unknown)}; expected {', '.join(CATEGORIES)}")
            yield Frame(scene, frame, views, parts.get("QA", {}))


def _below(path: str) -> str:
    """An official path ("../nuscenes/samples/CAM_FRONT/x.jpg") from "samples/" on."""
    _, found, rest = path.rpartition("samples/")
    return f"samples/{rest}" if found else path


def _check_views(views: dict[str, str], images: Path, where: str) -> None:
    for camera in views:
        if camera not in LAYOUT:
            raise ValueError(f"{where}: unknown camera {camera!r}.{nearest(camera, CAMERAS)}")
    for camera in CAMERAS:
        if camera not in views:
            raise ValueError(f"{where}: no picture of {camera} in image_paths")
        if Path(views[camera]).is_absolute() or ".." in Path(views[camera]).parts:
            raise ValueError(
                f"{where}: {camera}: {views[camera]} leaves the image root; expected .../samples/CAMERA/x.jpg"
            )
        if not (images / views[camera]).is_file():
            raise ValueError(
                f"{where}: {camera}: {images / views[camera]} does not exist; is --images the right folder?"
            )


def frame_rows(frame: Frame, stitched: bool, questions_only: bool, source: str) -> Iterator[dict[str, Any]]:
    """The rows of one frame.

    `drivelm_id` is the official number of a question within this annotation file (scene_frame_i), `id` names its
    category. Raises ValueError, naming the id, for an empty question or answer and for a tag with an unknown camera.
    """
    number = 0
    images = [f"images/{frame.name}.jpg"] if stitched else [frame.views[camera] for camera in CAMERAS]
    for category in CATEGORIES:
        for index, qa in enumerate(frame.questions.get(category, [])):
            row_id = f"{frame.name}_{category}_{index}"
            question, answer = (str(qa.get(key) or "").strip() for key in ("Q", "A"))
            if not question or not (answer or questions_only):
                raise ValueError(
                    f"{source}: {row_id}: empty question or answer (--questions_only takes rows without one)"
                )
            if stitched:
                question, answer = (_normalised(text, f"{source}: {row_id}") for text in (question, answer))
            turns = [{"from": "human", "value": "<image>\n" * len(images) + question}]
            if not questions_only:
                turns.append({"from": "gpt", "value": answer})
            row = {
                "id": row_id,
                "drivelm_id": f"{frame.name}_{number}",
                "group": frame.scene,
                "scene": frame.scene,
                "frame": frame.id,
                "category": category,
                "image": images[0] if stitched else images,
                "conversations": turns,
            }
            yield row | ({"tag": qa["tag"]} if "tag" in qa else {})
            number += 1


def _normalised(text: str, where: str) -> str:
    try:
        return normalise_tags(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def stitch_frame(frame: Frame, images: Path, target: Path) -> None:
    """Write the stitched picture of a frame; raises ValueError, naming the file, for one that cannot be decoded."""
    from PIL import Image

    views = {}
    for camera in CAMERAS:
        path = images / frame.views[camera]
        try:
            with Image.open(path) as view:
                views[camera] = view.convert("RGB")
        except OSError as error:
            raise ValueError(f"scene {frame.scene} frame {frame.id}: {path}: cannot be decoded ({error})") from error
    stitch(views).save(target, quality=95)


def stitch_frames(frames: list[Frame], images: Path, out: Path, workers: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from rich.console import Console
    from rich.progress import track

    (out / "images").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        done = pool.map(lambda frame: stitch_frame(frame, images, out / "images" / f"{frame.name}.jpg"), frames)
        for _ in track(done, "stitching", total=len(frames), console=Console(stderr=True)):
            pass


def collect_rows(
    frames: list[Frame], shares: dict[str, float], args: Any
) -> tuple[dict[str, list[str]], dict[str, Counter]]:
    """JSONL lines by split, and for each split its rows by category, frames and scenes."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in shares}
    scenes: dict[str, set[str]] = {split: set() for split in shares}
    lines: dict[str, list[str]] = {split: [] for split in shares}
    for frame in frames:
        split = assign_split(frame.scene, shares, args.seed)
        counts[split]["frames"] += 1
        scenes[split].add(frame.scene)
        for row in frame_rows(frame, args.views == "stitched", args.questions_only, args.annotations):
            lines[split].append(json.dumps(row, ensure_ascii=False) + "\n")
            counts[split][row["category"]] += 1
    for split in shares:
        counts[split]["scenes"] = len(scenes[split])
    return lines, counts


def show(counts: dict[str, Counter[str]], out: Path, image_root: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="DriveLM rows by split")
    table.add_column("")
    for split in counts:
        table.add_column(split, justify="right")
    for name in ("scenes", "frames", *CATEGORIES):
        table.add_row(name, *(str(count[name]) for count in counts.values()))
    table.add_row("rows", *(str(sum(count[category] for category in CATEGORIES)) for count in counts.values()))
    Console().print(table)
    print(f"wrote {', '.join(f'{out}/{split}.jsonl' for split in counts)}; image root: {image_root}")


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    images, out = Path(args.images), Path(args.out)
    try:
        shares = parse_fractions(args.split, "--split")
        frames = list(read_frames(Path(args.annotations), images))[: args.max_frames]
        if not frames:
            raise ValueError(f"{args.annotations}: no key frames")
        lines, counts = collect_rows(frames, shares, args)
        if args.views == "stitched":
            stitch_frames(frames, images, out, args.workers)
        out.mkdir(parents=True, exist_ok=True)
        for split, rows in lines.items():  # last: rows never name pictures that are not there
            (out / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")
    except ValueError as error:
        parser.error(str(error))
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    show(counts, out, out if args.views == "stitched" else images)


if __name__ == "__main__":
    main()
