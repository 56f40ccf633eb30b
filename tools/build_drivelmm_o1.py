"""DriveLMM-o1's JSON (nuScenes) -> InternVL rows with reasoning: one stitched picture or six, steps and a final answer.

Reads DriveLMMo1_TRAIN.json and DriveLMMo1_TEST.json. The answer of a row is the step-by-step reasoning with the final answer, or with
--target final the final answer alone, as the benchmark's own converter has it. Stitched pictures go to OUT/images, which makes OUT the
image root. meta.json is an InternVL meta file of both.
"""

from pathlib import Path
from typing import Any

from drive_vlm.builders.drivelmm_o1 import FINAL, REASONING, SIX, STITCHED, build
from drive_vlm.builders.preamble import read_preamble
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.evaluation.drivelmm_o1 import CHOICES

EXAMPLES = """
python tools/build_drivelmm_o1.py --train DriveLMMo1_TRAIN.json --test DriveLMMo1_TEST.json --image_root data/nuscenes --out data/drivelmm
python tools/build_drivelmm_o1.py --test DriveLMMo1_TEST.json --image_root data/nuscenes --views six --preamble prompt.txt --out data/six
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_drivelmm_o1.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--train", help="DriveLMMo1_TRAIN.json, for train.jsonl")
    add("--test", help="DriveLMMo1_TEST.json, for test.jsonl")
    add("--image_root", required=True, help="folder that holds samples/CAM_FRONT/... of nuScenes")
    add("--out", required=True, help="folder for the rows, meta.json, images/ and audit.json")
    flag("--views", (STITCHED, SIX), "one picture of 3x2 views, or six pictures")
    flag("--target", (REASONING, FINAL), "the answer: reasoning and final answer, or the final answer alone")
    add("--preamble", help="text file that stands before each question, such as the benchmark's own prompt")
    flag(
        "--on_bad_row",
        ("error", "skip"),
        "error: stop at a missing camera or picture and at an empty text; skip: leave the question out and count it",
    )
    flag("--on_missing", ("error", "skip"), "a question whose pictures are not there: stop, or leave it out, counted")
    flag("--workers", 4, "threads that stitch pictures")
    add("--json", help="write the counts here")
    return parser


def run(args: Any) -> dict[str, Any]:
    """Read, write; the counts."""
    annotations = {name: Path(path) for name, path in (("train", args.train), ("test", args.test)) if path}
    if not annotations:
        raise ValueError("give --train DriveLMMo1_TRAIN.json, --test DriveLMMo1_TEST.json, or both")
    preamble = read_preamble(args.preamble)
    where = (Path(args.image_root), Path(args.out))
    return build(annotations, *where, args.views, args.target, preamble, args.on_bad_row, args.on_missing, args.workers)


def show(result: dict[str, Any], args: Any) -> str | None:
    """Print the counts; the exit status, which says when training and test leak."""
    for name, rows in result["rows"].items():
        choices = sum(count for number, count in result["numbers"][name].items() if int(number) in CHOICES)
        print(
            f"{name}: {rows:,} rows, {choices:,} of them multiple choice; by question number {result['numbers'][name]}"
        )
    for reason, count in result["bad_rows"]["by_reason"].items():
        print(f"left out: {count:,} {reason}")
    print(
        f"wrote {', '.join(f'{args.out}/{name}.jsonl' for name in result['rows'])}; image root: {result['image_root']}"
    )
    leaks = result["leaks"]
    return f"{len(leaks):,} leaks between the splits, e.g. {leaks[0]}" if leaks else None


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
