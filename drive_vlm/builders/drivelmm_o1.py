"""DriveLMM-o1's JSON as InternVL rows with reasoning: six views, stitched into one picture, and steps before the final answer.

The files are lists (or objects of) {"idx": "SCENE_FRAME_NUMBER", "image": [six paths], "question", ...} with "answer" in the training
file and "steps" and "final_answer" in the test file (mbzuai-oryx/DriveLMM-o1, evaluation/prepare_data_internvl.py, a742279). The stitched
picture has the front views above and back right, back, back left below: questions and answers speak of places in it. The benchmark's
own stitching is not published; the order is that of projects that build on it, and differs from DriveLM's (stitching.py).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.builders.drivelm import below_samples
from drive_vlm.builders.row_writer import Row, RowWriter, meta_entry
from drive_vlm.builders.stitching import Job, stitch_files
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.drivelmm_o1 import BENCHMARK, question_number, reasoning_text
from drive_vlm.store.cache import read_json, write_json

LAYOUT = {
    "CAM_FRONT_LEFT": (0, 0),
    "CAM_FRONT": (1, 0),
    "CAM_FRONT_RIGHT": (2, 0),
    "CAM_BACK_RIGHT": (0, 1),
    "CAM_BACK": (1, 1),
    "CAM_BACK_LEFT": (2, 1),
}
STITCHED, SIX = "stitched", "six"
REASONING, FINAL = "reasoning", "final"
SKIP = "--on_bad_row skip leaves it out and counts it"
_FINAL = re.compile(r"\*{0,2}Final Answer:?\*{0,2}\s*:?\s*", re.IGNORECASE)


def read_items(path: Path) -> list[Any]:
    """The questions of a file. Raises ValueError for what is not in the published form."""
    content = read_json(path)
    items = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) and "idx" in item for item in items):
        raise ValueError(f"{path}: expected a list of questions with idx, image, question, as DriveLMMo1_TEST.json is")
    return items


def rows_of(
    items: Sequence[dict[str, Any]], source: str, root: Path, views: str, target: str, preamble: str
) -> Iterator[tuple[Row, dict[str, str]] | BadRow]:
    """(row, its views {camera: path}) of each item, or why there is none. `target`: what the answer is, the reasoning with the final
    answer or the final answer alone."""
    for index, item in enumerate(items):
        where, idx = f"{source}[{index}]", str(item["idx"])
        number = question_number(idx)
        parts = idx.split("_")
        question, final, answer = str(item.get("question") or "").strip(), *_answers(item)
        if number is None or len(parts) < 3:
            yield BadRow("bad_name", where, f"idx {idx!r} is no SCENE_FRAME_NUMBER", SKIP)
            continue
        if not question or not final:
            yield BadRow("empty_text", where, f"idx {idx}: no question, or no final answer", SKIP)
            continue
        found = _views(item, root, where)
        if isinstance(found, BadRow):
            yield found
            continue
        frame = idx.rpartition("_")[0]
        images = [f"images/{frame}.jpg"] if views == STITCHED else list(found.values())
        asked = "<image>\n" * len(images) + question
        row: Row = {
            "id": idx,
            "group": parts[0],
            "frame": parts[1],
            "benchmark": BENCHMARK,
            "question_number": number,
            "asked": question,
            "steps": str(item.get("steps") or "").strip(),
            "final_answer": final,
            "image": images[0] if views == STITCHED else images,
            "conversations": [
                {"from": "human", "value": f"{preamble.strip()}\n{asked}" if preamble.strip() else asked},
                {"from": "gpt", "value": answer if target == REASONING else final},
            ],
        }
        yield row, found


def _answers(item: dict[str, Any]) -> tuple[str, str]:
    """(final answer, whole answer with its reasoning). The training file has the whole: the final answer stands behind its mark."""
    final, steps = (str(item.get(name) or "").strip() for name in ("final_answer", "steps"))
    if final:
        return final, reasoning_text(steps, final) if steps else final
    whole = str(item.get("answer") or "").strip()
    marks = list(_FINAL.finditer(whole))
    return (whole[marks[-1].end() :].strip() if marks else whole), whole


def _views(item: dict[str, Any], root: Path, where: str) -> dict[str, str] | BadRow:
    paths = item.get("image")
    named = [below_samples(path) for path in paths if isinstance(path, str)] if isinstance(paths, list) else []
    views = {camera: [path for path in named if f"/{camera}/" in f"/{path}"] for camera in LAYOUT}
    for camera, found in views.items():
        if len(found) != 1:
            return BadRow("camera_missing", where, f"{len(found)} pictures of {camera} in image, expected 1", SKIP)
        if not (root / found[0]).is_file():
            problem = f"{root / found[0]} does not exist; is --image_root the folder that holds samples/?"
            return BadRow("image_missing", where, problem, SKIP)
    return {camera: found[0] for camera, found in views.items()}


def build(
    annotations: dict[str, Path],
    root: Path,
    out: Path,
    views: str,
    target: str,
    preamble: str,
    on_bad_row: str,
    on_missing: str,
    workers: int,
) -> dict[str, Any]:
    """Write NAME.jsonl of each file, meta.json (InternVL), pictures and audit.json; gives {"rows": by file, "numbers": {file: {question
    number: rows}}, "bad_rows", "leaks"}."""
    numbers: dict[str, Counter[str]] = {name: Counter() for name in annotations}
    jobs: dict[str, Job] = {}
    with RowWriter(out, on_bad_row) as writer:
        for name, path in annotations.items():
            writer.add(f"{name}.jsonl", ())
            seen: set[str] = set()
            for found in rows_of(read_items(path), str(path), root, views, target, preamble):
                if isinstance(found, BadRow):
                    writer.reject(found, on_missing == "skip" and found.reason == "image_missing")
                    continue
                row, cameras = found
                if row["id"] in seen:
                    writer.reject(BadRow("duplicate_id", str(path), f"idx {row['id']!r} comes twice", SKIP))
                    continue
                seen.add(row["id"])
                if views == STITCHED and row["image"] not in jobs:
                    of = {camera: root / name for camera, name in cameras.items()}
                    jobs[row["image"]] = Job(out / row["image"], of, f"{path}: {row['id']}")
                numbers[name][str(row["question_number"])] += 1
                writer.add(f"{name}.jsonl", [row], name)
        if jobs:
            (out / "images").mkdir(exist_ok=True)
            stitch_files(list(jobs.values()), workers, LAYOUT)
    audit = writer.audit()
    place = str(out if views == STITCHED else root)
    write_json(
        out / "meta.json",
        {name: meta_entry(place, f"{name}.jsonl", sum(found.values())) for name, found in numbers.items()},
    )
    result = {
        "rows": {name: sum(found.values()) for name, found in numbers.items()},
        "numbers": {
            name: dict(sorted(found.items(), key=lambda item: int(item[0]))) for name, found in numbers.items()
        },
        "bad_rows": audit["bad_rows"],
        "leaks": audit["leaks"],
        "image_root": place,
    }
    write_json(out / "audit.json", result)
    return result
