"""DriveLM's official JSON as rows: its key frames, the questions of each, stitched pictures, the split by scene."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.builders.row_writer import RowWriter
from drive_vlm.builders.splits import assign_split
from drive_vlm.builders.stitching import LAYOUT, Job, normalise_tags, stitch_files
from drive_vlm.config import nearest
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.drivelm import CATEGORIES

# The order of the six pictures in a row: that of `image_paths` in the official files.
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
SKIP = "--on_bad_row skip leaves it out and counts it"


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


def read_frames(annotations: Path, images: Path, scenes: Sequence[str] | None = None) -> Iterator[Frame | BadRow]:
    """The key frames of an official JSON, or of its `scenes`, in its order; a BadRow for one that lacks a camera or a picture.

    Raises ValueError for a scene that is not in it, and, naming file, scene and frame, for what is not in the official form.
    """
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{annotations}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{annotations}: expected {{scene: {{key_frames: ...}}}}, got a {type(content).__name__}")
    for scene in scenes or ():
        if scene not in content:
            raise ValueError(f"--scene_names {scene}: {annotations} has no such scene.{nearest(scene, list(content))}")
    for scene, data in content.items():
        if scenes and scene not in scenes:
            continue
        frames = data.get("key_frames") if isinstance(data, dict) else None
        if not isinstance(frames, dict):
            raise ValueError(f'{annotations}: scene {scene}: no "key_frames"')
        for frame, parts in frames.items():
            where = f"{annotations}: scene {scene} frame {frame}"
            views = {camera: below_samples(path) for camera, path in parts.get("image_paths", {}).items()}
            problem = _problem_of_views(views, images, where)
            unknown = set(parts.get("QA", {})) - set(CATEGORIES)
            if unknown:
                raise ValueError(f"{where}: unknown categories {sorted(unknown)}; expected {', '.join(CATEGORIES)}")
            yield problem or Frame(scene, frame, views, parts.get("QA", {}))


def below_samples(path: str) -> str:
    """An official path ("../nuscenes/samples/CAM_FRONT/x.jpg") from "samples/" on."""
    _, found, rest = path.rpartition("samples/")
    return f"samples/{rest}" if found else path


def _problem_of_views(views: dict[str, str], images: Path, where: str) -> BadRow | None:
    """Raises ValueError for an unknown camera and for a path that leaves the image root."""
    for camera in views:
        if camera not in LAYOUT:
            raise ValueError(f"{where}: unknown camera {camera!r}.{nearest(camera, CAMERAS)}")
    for camera in CAMERAS:
        if camera not in views:
            return BadRow("camera_missing", where, f"no picture of {camera} in image_paths", SKIP)
        if Path(views[camera]).is_absolute() or ".." in Path(views[camera]).parts:
            raise ValueError(
                f"{where}: {camera}: {views[camera]} leaves the image root; expected .../samples/CAMERA/x.jpg"
            )
        if not (images / views[camera]).is_file():
            problem = f"{camera}: {images / views[camera]} does not exist; is --image_root the right folder?"
            way_out = "For a part of nuScenes, --on_missing skip leaves such frames out and counts them"
            return BadRow("image_missing", where, problem, way_out)
    return None


def frame_rows(frame: Frame, stitched: bool, questions_only: bool, source: str) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of one frame; a BadRow for an empty question or answer.

    `drivelm_id` is the official number of a question within this annotation file (scene_frame_i), `id` names its
    category. Raises ValueError, naming the id, for a tag with an unknown camera.
    """
    images = [f"images/{frame.name}.jpg"] if stitched else [frame.views[camera] for camera in CAMERAS]
    asked = [(name, index, qa) for name in CATEGORIES for index, qa in enumerate(frame.questions.get(name, []))]
    for number, (category, index, qa) in enumerate(asked):
        row_id = f"{frame.name}_{category}_{index}"
        question, answer = (str(qa.get(key) or "").strip() for key in ("Q", "A"))
        if not question or not (answer or questions_only):
            problem = "empty question or answer (--questions_only takes rows without one)"
            yield BadRow("empty_text", f"{source}: {row_id}", problem, SKIP)
            continue
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


def _normalised(text: str, where: str) -> str:
    try:
        return normalise_tags(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def stitch_frames(frames: list[Frame], images: Path, out: Path, workers: int) -> None:
    """Write the stitched picture of every frame; raises ValueError as stitch_files does."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(
            out / "images" / f"{frame.name}.jpg",
            {camera: images / frame.views[camera] for camera in CAMERAS},
            f"scene {frame.scene} frame {frame.id}",
        )
        for frame in frames
    ]
    stitch_files(jobs, workers)


def write_split_rows(
    writer: RowWriter,
    frames: list[Frame],
    shares: dict[str, float],
    seed: int,
    stitched: bool,
    questions_only: bool,
    source: str,
) -> dict[str, Counter[str]]:
    """Every row into the file of its split; for each split its rows by category, frames and scenes."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in shares}
    scenes: dict[str, set[str]] = {split: set() for split in shares}
    for split in shares:
        writer.add(f"{split}.jsonl", ())
    for frame in frames:
        split = assign_split(frame.scene, shares, seed)
        counts[split]["frames"] += 1
        scenes[split].add(frame.scene)
        for row in frame_rows(frame, stitched, questions_only, source):
            if isinstance(row, BadRow):
                writer.reject(row)
            else:
                writer.add(f"{split}.jsonl", [row], split)
                counts[split][row["category"]] += 1
    for split in shares:
        counts[split]["scenes"] = len(scenes[split])
    return counts
