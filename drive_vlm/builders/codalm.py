"""CODA-LM's annotations as rows of the three tasks, and the pictures of its regions; tools/build_codalm.py has the layout."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drive_vlm.builders.row_writer import Row, RowWriter
from drive_vlm.data.samples import BadRow
from drive_vlm.data.vision import load_image
from drive_vlm.evaluation.codalm import GENERAL, QUESTIONS, REGION, SPLITS, SUGGESTION, TASKS, region_class
from drive_vlm.store.cache import read_json, write_json

FOLDERS = {"english": "CODA-LM", "chinese": "CODA-LM-chinese"}
SHORT = {GENERAL: "general", SUGGESTION: "suggestion", REGION: "region"}
TEXT = "description and explanation"
SKIP = "--on_bad_row skip leaves such rows out and counts them"


def read_questions(path: str | None) -> dict[str, str]:
    """The published questions, or those of a JSON file. Raises ValueError for a file that does not have all three."""
    if path is None:
        return QUESTIONS
    found = read_json(Path(path))
    if (
        not isinstance(found, dict)
        or set(found) != set(TASKS)
        or not all(isinstance(text, str) for text in found.values())
    ):
        raise ValueError(f"--questions {path}: expected a JSON object with the texts of {', '.join(TASKS)}")
    return found


def split_rows(folder: Path, split: str, questions: dict[str, str]) -> Iterator[tuple[Row, BadRow | None]]:
    """(row, what is wrong with it) in the published order; `question_id` counts within the task.

    Raises ValueError, naming the file, for an annotation that does not have the published form.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"{folder}: no annotation files such as val_0001.json; is --image_root the right folder?")
    numbers: Counter[str] = Counter()
    for file in files:
        match = re.fullmatch(r"(val|test)_(\w+)", file.stem)
        if match is None:
            raise ValueError(f"{file}: expected a name such as val_0001.json, which names the picture")
        source, number = match.groups()
        content = read_json(file)
        for task, category, box, answer, name in _entries(content, file):
            image = f"images/{number}" if box is None else f"images_w_boxes/{number}_object_{name}"
            row: Row = {
                "id": f"{split}_{SHORT[task]}_{numbers[task]}",
                "question_id": numbers[task],
                "task": task,
                "category": category,
                "group": file.stem,
                "image": f"{source}/{image}.jpg",
                "conversations": [{"from": "human", "value": f"<image>\n{questions[task]}"}],
            }
            if task == REGION:
                row |= {"class": region_class(category), "box": box}
            # Test rows are prompts; their answer, where there is one, stands next to the conversation.
            if split != "Test":
                row["conversations"].append({"from": "gpt", "value": answer})
            elif answer:
                row["reference"] = answer
            numbers[task] += 1
            yield row, _problem(answer, box, split, f"{file}: {task} {name}".rstrip())


def _entries(content: Any, file: Path) -> Iterator[tuple[str, str, list[float] | None, str, str]]:
    """(task, category, box, answer, number of the region) of one annotation file."""
    try:
        yield GENERAL, GENERAL, None, content[GENERAL][TEXT].strip(), ""
        yield SUGGESTION, SUGGESTION, None, content[SUGGESTION].strip(), ""
        for name, region in content[REGION].items():
            yield REGION, region["category_name"], list(region["box"]), region[TEXT].strip(), name
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: not a CODA-LM annotation ({type(error).__name__}: {error}); expected {GENERAL}, {SUGGESTION} and "
            f"{REGION} with their texts, boxes and categories"
        ) from error


def _problem(answer: str, box: list[float] | None, split: str, where: str) -> BadRow | None:
    if not answer and split != "Test":
        return BadRow("empty_answer", where, "the answer is empty", SKIP)
    numbers = box is None or all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
    if box is None or (numbers and len(box) == 4 and min(box[2:]) > 0):
        return None
    return BadRow("bad_box", where, f"the box {box} is not [x, y, width, height]", SKIP)


def check_picture(row: Row, root: Path, where: str) -> BadRow | None:
    """A BadRow where the picture of a row, without its box, is not there."""
    path = root / plain_image(row)
    if path.is_file():
        return None
    return BadRow(
        "image_missing", where, f"the picture {path} does not exist", f"Is --image_root the right folder? {SKIP}"
    )


def plain_image(row: Row) -> str:
    """The picture of CODA 2022 that a row is about."""
    return re.sub(r"images_w_boxes/(\w+)_object_\w+\.jpg$", r"images/\1.jpg", row["image"])


def draw_box(row: Row, root: Path) -> bool:
    """Write a region's picture, unless it is there; whether it was written. Raises ValueError, naming the picture."""
    from PIL import ImageDraw

    target = root / row["image"]
    if target.is_file():
        return False
    x, y, width, height = row["box"]
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        boxed = load_image(str(root / plain_image(row)), str(row["id"]))
        ImageDraw.Draw(boxed).rectangle([x, y, x + width, y + height], outline="red", width=2)
        # At Pillow's default quality, as published.
        boxed.save(part, format="JPEG")
        os.replace(part, target)
    except (OSError, BadRow) as error:
        raise ValueError(f"{target}: cannot be made from {root / plain_image(row)} ({error})") from error
    return True


def build_split(
    split: str, root: Path, out: Path, language: str, questions: dict[str, str], on_bad_row: str, workers: int
) -> dict[str, Any]:
    """Write the usable rows of a split and its pictures with boxes; its audit, which is written as well."""
    from concurrent.futures import ThreadPoolExecutor

    from rich.console import Console
    from rich.progress import track

    name = split.lower()
    rows: list[Row] = []
    images: set[str] = set()
    with RowWriter(out, on_bad_row) as writer:
        for row, found in split_rows(root / FOLDERS[language] / split, split, questions):
            images.add(row["group"])
            if problem := found or check_picture(row, root, f"{split}: {row['id']}"):
                writer.reject(problem)
            else:
                rows.append(row)
        writer.add(f"{name}.jsonl", rows)
        regions = [row for row in rows if row["task"] == REGION]
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            drawn = pool.map(lambda row: draw_box(row, root), regions)
            written = sum(track(drawn, f"boxes of {split}", total=len(regions), console=Console(stderr=True)))
    audit = {
        "images": len(images),
        "images_published": SPLITS[split],
        "rows": dict(Counter(row["task"] for row in rows)),
        "without_answer": sum(len(row["conversations"]) == 1 and "reference" not in row for row in rows),
        "boxes_drawn": written,
        "bad_rows": writer.audit()["bad_rows"],
    }
    write_json(out / f"{name}.audit.json", audit)
    return audit
