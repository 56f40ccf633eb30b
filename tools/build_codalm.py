"""CODA-LM's annotations -> JSONL rows of the three tasks, one file a split.

Reads the published layout: ROOT/CODA-LM/{Train,Val,Test,Mini}/val_0001.json (CODA-LM-chinese with --language chinese) and
the pictures of CODA 2022 in ROOT/{val,test}/images. Region rows show the region in a red rectangle; those pictures go to
ROOT/{val,test}/images_w_boxes, as the benchmark's own converter puts them. Rows of the Test split have no answer; where
its annotations hold one, it stands in the column "reference", for the evaluation alone.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drive_vlm.builders.row_writer import Row, RowWriter
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.codalm import GENERAL, QUESTIONS, REGION, SPLITS, SUGGESTION, TASKS, region_class
from drive_vlm.store.cache import write_json

FOLDERS = {"english": "CODA-LM", "chinese": "CODA-LM-chinese"}
SHORT = {GENERAL: "general", SUGGESTION: "suggestion", REGION: "region"}
TEXT = "description and explanation"
EXAMPLES = """
python tools/build_codalm.py --root data/CODA --out data/codalm --splits Train Val
python tools/build_codalm.py --root data/CODA --out data/codalm --splits Mini Test --language chinese --on_bad_row skip
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_codalm.py", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--root", required=True, help="folder that holds CODA-LM/, val/images and test/images; image root of the rows")
    add("--out", required=True, help="folder for SPLIT.jsonl and SPLIT.audit.json")
    add("--splits", nargs="+", choices=tuple(SPLITS), default=list(SPLITS), help="splits to build")
    add("--language", choices=tuple(FOLDERS), default="english", help="of the answers")
    add("--questions", help="JSON {task: question} in place of the published questions, e.g. in Chinese")
    add(
        "--on_bad_row",
        choices=("error", "skip"),
        default="error",
        help="error: stop at a missing picture, an empty answer or a box that is not one; skip: leave the row out and count it",
    )
    add("--workers", type=int, default=4, help="threads that draw boxes")
    add("--json", help="write the counts here")
    return parser


def read_questions(path: str | None) -> dict[str, str]:
    """The published questions, or those of a JSON file. Raises ValueError for a file that does not have all three."""
    if path is None:
        return QUESTIONS
    found = _read_json(Path(path))
    whole = isinstance(found, dict) and set(found) == set(TASKS)
    if not whole or not all(isinstance(text, str) for text in found.values()):
        raise ValueError(f"--questions {path}: expected a JSON object with the texts of {', '.join(TASKS)}")
    return found


def split_rows(folder: Path, split: str, questions: dict[str, str]) -> Iterator[tuple[Row, BadRow | None]]:
    """(row, what is wrong with it) in the published order; `question_id` counts within the task.

    Raises ValueError, naming the file, for an annotation that does not have the published form.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"{folder}: no annotation files such as val_0001.json; is --root the right folder?")
    numbers: Counter[str] = Counter()
    for file in files:
        match = re.fullmatch(r"(val|test)_(\w+)", file.stem)
        if match is None:
            raise ValueError(f"{file}: expected a name such as val_0001.json, which names the picture")
        source, number = match.groups()
        content = _read_json(file)
        for task, category, box, answer, name in _entries(content, file):
            drawn = f"{source}/images_w_boxes/{number}_object_{name}.jpg"
            image = f"{source}/images/{number}.jpg" if box is None else drawn
            row = {
                "id": f"{split}_{SHORT[task]}_{numbers[task]}",
                "question_id": numbers[task],
                "task": task,
                "category": category,
                "group": file.stem,
                "image": image,
                "conversations": [{"from": "human", "value": f"<image>\n{questions[task]}"}],
            }
            if task == REGION:
                row |= {"class": region_class(category), "box": box}
            numbers[task] += 1
            yield _with_answer(row, answer, split), _problem(answer, box, split, f"{file}: {task} {name}".rstrip())


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


def _with_answer(row: Row, answer: str, split: str) -> Row:
    """Test rows are prompts; their answer, where there is one, stands next to the conversation."""
    if split != "Test":
        row["conversations"].append({"from": "gpt", "value": answer})
    elif answer:
        row["reference"] = answer
    return row


def _problem(answer: str, box: list[float] | None, split: str, where: str) -> BadRow | None:
    way_out = "--on_bad_row skip leaves such rows out and counts them"
    if not answer and split != "Test":
        return BadRow("empty_answer", where, "the answer is empty", way_out)
    if box is not None and not (
        len(box) == 4 and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box) and min(box[2:]) > 0
    ):
        return BadRow("bad_box", where, f"the box {box} is not [x, y, width, height]", way_out)
    return None


def check_picture(row: Row, root: Path, where: str) -> BadRow | None:
    """A BadRow where the picture of a row, without its box, is not there."""
    path = root / plain_image(row)
    if path.is_file():
        return None
    way_out = "Is --root the right folder? --on_bad_row skip leaves such rows out and counts them"
    return BadRow("image_missing", where, f"the picture {path} does not exist", way_out)


def plain_image(row: Row) -> str:
    """The picture of CODA 2022 that a row is about."""
    return re.sub(r"images_w_boxes/(\w+)_object_\w+\.jpg$", r"images/\1.jpg", row["image"])


def draw_box(row: Row, root: Path) -> bool:
    """Write a region's picture, unless it is there; whether it was written. Raises ValueError, naming the picture."""
    import os

    from PIL import Image, ImageDraw

    target = root / row["image"]
    if target.is_file():
        return False
    x, y, width, height = row["box"]
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(root / plain_image(row)) as picture:
            boxed = picture.convert("RGB")
        ImageDraw.Draw(boxed).rectangle([x, y, x + width, y + height], outline="red", width=2)
        # At Pillow's default quality, as published.
        boxed.save(part, format="JPEG")
        os.replace(part, target)
    except OSError as error:
        raise ValueError(f"{target}: cannot be made from {root / plain_image(row)} ({error})") from error
    return True


def build_split(split: str, args: Any, questions: dict[str, str]) -> dict[str, Any]:
    """Write the usable rows of a split and its pictures with boxes; its audit, which is written as well."""
    from concurrent.futures import ThreadPoolExecutor

    from rich.console import Console
    from rich.progress import track

    root, name = Path(args.root), split.lower()
    rows: list[Row] = []
    images: set[str] = set()
    with RowWriter(Path(args.out), args.on_bad_row) as writer:
        for row, found in split_rows(root / FOLDERS[args.language] / split, split, questions):
            images.add(row["group"])
            if problem := found or check_picture(row, root, f"{split}: {row['id']}"):
                writer.reject(problem)
            else:
                rows.append(row)
        writer.add(f"{name}.jsonl", rows)
        regions = [row for row in rows if row["task"] == REGION]
        with ThreadPoolExecutor(max_workers=max(1, args.workers)) as pool:
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
    write_json(Path(args.out) / f"{name}.audit.json", audit)
    return audit


def run(args: Any) -> dict[str, dict[str, Any]]:
    """The audit of each split."""
    questions = read_questions(args.questions)
    return {split: build_split(split, args, questions) for split in dict.fromkeys(args.splits)}


def show(audits: dict[str, dict[str, Any]], args: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"CODA-LM rows ({args.language})", title_justify="left")
    for column in ("split", "images", "published", *SHORT.values(), "no answer", "bad rows"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, audit in audits.items():
        counts = (audit["images"], audit["images_published"], *(audit["rows"].get(task, 0) for task in SHORT))
        table.add_row(split, *(f"{n:,}" for n in (*counts, audit["without_answer"], audit["bad_rows"]["total"])))
    Console().print(table)
    for split, audit in audits.items():
        if audit["images"] != audit["images_published"]:
            print(f"{split}: {audit['images']:,} images, the published split has {audit['images_published']:,}")
        for reason, count in audit["bad_rows"]["by_reason"].items():
            print(f"{split}: {count:,} rows left out: {reason}")
    print(f"wrote {', '.join(f'{args.out}/{split.lower()}.jsonl' for split in audits)}; image root: {args.root}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
