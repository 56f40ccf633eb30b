"""CODA-LM's annotations -> JSONL rows of the three tasks, one file a split.

Reads the published layout: ROOT/CODA-LM/{Train,Val,Test,Mini}/val_0001.json (CODA-LM-chinese with --language chinese) and
the pictures of CODA 2022 in ROOT/{val,test}/images. Region rows show the region in a red rectangle; those pictures go to
ROOT/{val,test}/images_w_boxes, as the benchmark's own converter puts them. Rows of the Test split have no answer; where
its annotations hold one, it stands in the column "reference", for the evaluation alone.
"""

from pathlib import Path
from typing import Any

from drive_vlm.builders.codalm import FOLDERS, SHORT, build_split, read_questions
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.evaluation.codalm import SPLITS
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/build_codalm.py --image_root data/CODA --out data/codalm --splits Train Val
python tools/build_codalm.py --image_root data/CODA --out data/codalm --splits Mini Test --language chinese --on_bad_row skip
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_codalm.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add(
        "--image_root",
        required=True,
        help="folder that holds CODA-LM/, val/images and test/images; image root of the rows",
    )
    add("--out", required=True, help="folder for SPLIT.jsonl and SPLIT.audit.json")
    add("--splits", nargs="+", choices=tuple(SPLITS), default=list(SPLITS), help="splits to build")
    add("--language", choices=tuple(FOLDERS), default="english", help="of the answers")
    add("--questions", help="JSON {task: question} in place of the published questions, e.g. in Chinese")
    flag(
        "--on_bad_row",
        ("error", "skip"),
        "error: stop at a missing picture, an empty answer or a box that is not one; skip: leave the row out and count it",
    )
    flag("--workers", 4, "threads that draw boxes")
    add("--json", help="write the counts here")
    return parser


def run(args: Any) -> dict[str, dict[str, Any]]:
    """The audit of each split."""
    questions = read_questions(args.questions)
    where = (Path(args.image_root), Path(args.out), args.language)
    return {
        split: build_split(split, *where, questions, args.on_bad_row, args.workers)
        for split in dict.fromkeys(args.splits)
    }


def show(audits: dict[str, dict[str, Any]], args: Any) -> None:
    rows = []
    for split, audit in audits.items():
        counts = (audit["images"], audit["images_published"], *(audit["rows"].get(task, 0) for task in SHORT))
        rows.append([split, *(f"{n:,}" for n in (*counts, audit["without_answer"], audit["bad_rows"]["total"]))])
    head = ("split", "images", "published", *SHORT.values(), "no answer", "bad rows")
    print_table(f"CODA-LM rows ({args.language})", head, rows)
    for split, audit in audits.items():
        if audit["images"] != audit["images_published"]:
            print(f"{split}: {audit['images']:,} images, the published split has {audit['images_published']:,}")
        for reason, count in audit["bad_rows"]["by_reason"].items():
            print(f"{split}: {count:,} rows left out: {reason}")
    print(f"wrote {', '.join(f'{args.out}/{split.lower()}.jsonl' for split in audits)}; image root: {args.image_root}")


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
