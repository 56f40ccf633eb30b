"""DriveBench's and RoboSense track 1's questions as rows, one file for each of the 17 settings (clean, 15 corruptions, no picture).

Both are lists of questions, [{"scene_token", "frame_token", "question", "answer", ...}]. DriveBench (worldbench/DriveBench, commit
0911602624768263c3e477c3d69312d0fe60575c) says "question_type" and "image_path", RoboSense's converted files (robosense2025/track1,
convert_format.py) say "category" and "img_paths". A corrupted picture lies at the clean one's path with `nuscenes/samples` replaced by
`corruption/NAME`; the setting noimage shows a black picture of 224x224 for every camera, as the benchmark's own inference does.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.builders.row_writer import Row, RowWriter
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.answers import options_of
from drive_vlm.evaluation.drivebench import CLEAN, CORRUPTIONS, MCQ, NO_IMAGE, SETTINGS, TASKS, kind_of, scope_of
from drive_vlm.store.cache import read_json, write_json

# The order in which the benchmark's prompt names the cameras.
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
BLACK, BLACK_SIZE = "drivebench_black.png", (224, 224)
SKIP = "--on_bad_row skip leaves such questions out and counts them"
_CORRUPTED = re.compile(rf"(?:^|/)({'|'.join(CORRUPTIONS.values())})/(CAM_[A-Z_]+/[^/]+)$")


def read_questions(path: Path) -> list[dict[str, Any]]:
    """The questions of an official file, a JSON list, with one spelling of the columns: task, views {camera: path}.

    Raises ValueError, naming the question, for what is not in the official form.
    """
    content = read_json(path)
    if isinstance(content, dict):
        raise ValueError(
            f"{path}: this is the challenge's release {{scene: {{key_frames: ...}}}}, which names no pictures; convert it with the "
            "challenge's convert_format.py first, which needs the nuScenes tables"
        )
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: expected a JSON list of questions, as drivebench-test.json is")
    return [_question(item, f"{path}[{index}]") for index, item in enumerate(content)]


def _question(item: Any, where: str) -> dict[str, Any]:
    try:
        views = item.get("image_path") or item["img_paths"]
        found = {
            "scene": str(item["scene_token"]),
            "frame": str(item["frame_token"]),
            "task": str(item.get("question_type") or item["category"]),
            "question": str(item["question"]).strip(),
            "answer": str(item.get("answer") or "").strip(),
            "tag": item.get("tag"),
            "views": {camera: str(views[camera]) for camera in CAMERAS if camera in views},
            "where": where,
        }
        unknown = set(views) - set(CAMERAS)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where}: not a question of DriveBench or RoboSense track 1 ({type(error).__name__}: {error}); expected scene_token, "
            "frame_token, question, answer, question_type (or category) and image_path (or img_paths)"
        ) from error
    if unknown or not found["views"]:
        raise ValueError(f"{where}: cameras {sorted(unknown) or 'none'}; expected some of {', '.join(CAMERAS)}")
    if found["task"] not in TASKS:
        raise ValueError(f"{where}: question_type {found['task']!r}; expected one of {', '.join(TASKS)}")
    return found


def setting_rows(
    questions: Sequence[dict[str, Any]], setting: str, root: Path, prompt: str = "", benchmark: str = "DriveBench"
) -> Iterator[Row | BadRow]:
    """The rows of one setting; a BadRow for a question without text, or with a picture that is not there.

    `id` names setting, scene, frame, task and place; `question_id` is the same without the setting, so that settings can be compared
    question by question. A question without an answer (the challenge's test files) becomes a row without one.
    """
    numbers: Counter[tuple[str, str, str]] = Counter()
    for item in questions:
        key = (item["scene"], item["frame"], item["task"])
        name = f"{'_'.join(key)}_{numbers[key]}"
        numbers[key] += 1
        if not item["question"]:
            yield BadRow("empty_question", item["where"], "the question is empty", SKIP)
            continue
        images = [BLACK] * len(item["views"])
        if setting != NO_IMAGE:
            images = [picture(path, setting) for path in item["views"].values()]
            if missing := next((path for path in images if not (root / path).is_file()), None):
                problem = (
                    f"{root / missing} does not exist; is --image_root the folder that holds nuscenes/ and corruption/?"
                )
                yield BadRow("image_missing", item["where"], problem, SKIP)
                continue
        asked = f"{prompt.strip()}\n{item['question']}" if prompt.strip() else item["question"]
        turns = [{"from": "human", "value": "<image>\n" * len(images) + asked}]
        if item["answer"]:
            turns.append({"from": "gpt", "value": item["answer"]})
        kind = kind_of(item["question"], item["answer"], item["tag"])
        row: Row = {
            "id": f"{setting}_{name}",
            "question_id": name,
            "group": item["scene"],
            "frame": item["frame"],
            "benchmark": benchmark,
            "setting": setting,
            "question_type": item["task"],
            "kind": kind,
            "scope": scope_of(item["question"]),
            "asked": item["question"],
            "image": images,
            "conversations": turns,
        }
        yield row | ({"options": options_of(item["question"])} if kind == MCQ else {})


def picture(path: str, setting: str) -> str:
    """The path of a view in a setting, below the folder that holds nuscenes/ and corruption/.

    >>> picture("data/nuscenes/samples/CAM_FRONT/x.jpg", "fog"), picture("./BitError/CAM_BACK/x.jpg", "biterror")
    ('corruption/Fog/CAM_FRONT/x.jpg', 'corruption/BitError/CAM_BACK/x.jpg')
    """
    if corrupted := _CORRUPTED.search(path):
        return f"corruption/{corrupted[1]}/{corrupted[2]}"
    _, found, rest = path.rpartition("samples/")
    if not found:
        # A path of another layout: RoboSense's second phase has folders of its own.
        return path
    return f"nuscenes/samples/{rest}" if setting not in CORRUPTIONS else f"corruption/{CORRUPTIONS[setting]}/{rest}"


def build(
    questions: Sequence[dict[str, Any]],
    settings: Sequence[str],
    root: Path,
    out: Path,
    prompt: str,
    benchmark: str,
    on_bad_row: str,
    on_missing: str,
) -> dict[str, Any]:
    """Write SETTING.jsonl of each setting; the image root of noimage.jsonl is `out`, with the black picture, that of the others `root`.

    Gives {"rows": by file, "bad_rows", "by_kind": {setting: {"task kind": rows}}, "without_answer"}.
    """
    from PIL import Image

    counts: dict[str, Counter[str]] = {setting: Counter() for setting in settings}
    unanswered = 0
    with RowWriter(out, on_bad_row) as writer:
        for setting in settings:
            rows: list[Row] = []
            for row in setting_rows(questions, setting, root, prompt, benchmark):
                if isinstance(row, BadRow):
                    writer.reject(row, on_missing == "skip" and row.reason == "image_missing")
                    continue
                counts[setting][f"{row['question_type']} {row['kind']}"] += 1
                unanswered += len(row["conversations"]) == 1
                rows.append(row)
            writer.add(f"{setting}.jsonl", rows)
        if NO_IMAGE in settings:
            Image.new("RGB", BLACK_SIZE).save(out / BLACK)
    audit = writer.audit()
    result = {
        "rows": audit["rows"],
        "bad_rows": audit["bad_rows"],
        "by_kind": {setting: dict(found) for setting, found in counts.items()},
        "without_answer": unanswered,
    }
    write_json(out / "audit.json", result)
    return result


def default_settings(root: Path) -> list[str]:
    """Clean, no picture, and the corruptions whose folders are there."""
    there = [name for name, folder in CORRUPTIONS.items() if (root / "corruption" / folder).is_dir()]
    return [name for name in SETTINGS if name in (CLEAN, NO_IMAGE, *there)]
