"""LingoQA's Parquet table and frames -> JSONL rows.

Reads val.parquet (evaluation) or train.parquet (scenery, action) and the folder of its pictures, images/val/SEGMENT/0.jpg ... A row of
--row_of question has all references of its question, which tools/lingoqa_eval.py scores; --row_of answer makes a row of each answer, for
training. The frames are several pictures of a row, or with --shown video one video.
"""

from pathlib import Path
from typing import Any

from drive_vlm.builders.lingoqa import PER_ANSWER, PER_QUESTION, PICTURES, VIDEO, build
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.evaluation.lingoqa import PUBLISHED

EXAMPLES = """
python tools/build_lingoqa.py --table data/lingoqa/evaluation/val.parquet --out data/lingoqa/rows
python tools/build_lingoqa.py --table data/lingoqa/action/train.parquet --row_of answer --name action --out data/lingoqa/rows
python tools/build_lingoqa.py --table val.parquet --image_root evaluation --frames images/val --shown video --out data/videos
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_lingoqa.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--table", required=True, help="val.parquet or train.parquet")
    add("--image_root", help="folder that holds images/; image root of the rows (default: the table's folder)")
    add(
        "--frames",
        help="folder below --image_root that holds a folder of frames for each segment (default: images/TABLE)",
    )
    add("--out", required=True, help="folder for NAME.jsonl and NAME.audit.json")
    add("--name", help="name of the file of rows (default: the table's)")
    flag("--row_of", (PER_QUESTION, PER_ANSWER), "a row of each question with all its references, or of each answer")
    flag("--shown", (PICTURES, VIDEO), "the frames of a row as its pictures, or as one video")
    flag(
        "--on_bad_row",
        ("error", "skip"),
        "error: stop at an empty text, missing frames and two questions of one id; skip: leave it out and count it",
    )
    flag("--on_missing", ("error", "skip"), "a segment whose frames are not there: stop, or leave it out, counted")
    add("--json", help="write the counts here")
    return parser


def run(args: Any) -> dict[str, Any]:
    """Read, write; the counts."""
    table = Path(args.table)
    root = Path(args.image_root) if args.image_root else table.parent
    folder = args.frames or f"images/{table.name.partition('.')[0]}"
    name = args.name or table.name.partition(".")[0]
    return build(
        args.table, root, folder, Path(args.out), name, args.shown, args.row_of, args.on_bad_row, args.on_missing
    ) | {"image_root": str(root), "name": name}


def show(result: dict[str, Any], args: Any) -> None:
    print(f"{result['rows']:,} rows: {result['questions']:,} questions of {result['segments']:,} segments")
    for what, of in (("answers", "questions"), ("frames", "segments")):
        print("; ".join(f"{count:,} {of} have {number} {what}" for number, count in result[what].items()))
    if args.row_of == PER_QUESTION and result["name"].startswith("val") and result["questions"] != PUBLISHED:
        print(f"the published evaluation set has {PUBLISHED:,} questions")
    for reason, count in result["bad_rows"]["by_reason"].items():
        print(f"left out: {count:,} {reason}")
    print(f"wrote {args.out}/{result['name']}.jsonl; image root: {result['image_root']}")


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
