"""DriveBench's and RoboSense track 1's official JSON -> JSONL rows, one file for each setting.

The 17 settings are clean pictures, 15 corruptions, and noimage, which shows a black picture for every camera (what a model knows without
looking). --image_root is the benchmark's `data` folder with nuscenes/samples and corruption/NAME. Of RoboSense give the converted file
(convert_format.py of the challenge), and --setting corrupted for its second phase, whose paths are taken as they stand. Questions without
an answer become rows without one, which can be answered and not scored.
"""

from pathlib import Path
from typing import Any

from drive_vlm.builders.drivebench import BLACK, build, default_settings, read_questions
from drive_vlm.builders.preamble import read_preamble
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.evaluation.drivebench import CORRUPTED, NO_IMAGE, PUBLISHED, SETTINGS
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/build_drivebench.py --annotations data/drivebench-test-final.json --image_root data --out data/drivebench
python tools/build_drivebench.py --annotations data/drivebench-test-final.json --image_root data --out data/some --settings clean noimage fog
python tools/build_drivebench.py --annotations phase2_convert.json --image_root data --out data/track1 --benchmark RoboSense --settings corrupted
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_drivebench.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--annotations", required=True, help="drivebench-test-final.json, or a converted file of the challenge")
    add("--image_root", required=True, help="folder that holds nuscenes/ and corruption/; image root of the rows")
    add("--out", required=True, help="folder for SETTING.jsonl and audit.json")
    add(
        "--settings",
        nargs="+",
        choices=(*SETTINGS, CORRUPTED),
        help="settings to build (default: clean, noimage and the corruptions whose folders are there)",
    )
    flag("--benchmark", tuple(PUBLISHED), "whose questions these are, for the rows and their published number")
    add("--preamble", help="text file that stands before each question, such as the benchmark's prompt.txt")
    flag(
        "--on_bad_row",
        ("error", "skip"),
        "error: stop at a missing picture or an empty question; skip: leave the question out and count it",
    )
    flag("--on_missing", ("error", "skip"), "a question whose pictures are not there: stop, or leave it out, counted")
    add("--json", help="write the counts here")
    return parser


def run(args: Any) -> dict[str, Any]:
    """Read, write; the counts of each setting."""
    root = Path(args.image_root)
    questions = read_questions(Path(args.annotations))
    settings = list(dict.fromkeys(args.settings or default_settings(root)))
    prompt = read_preamble(args.preamble)
    return build(
        questions, settings, root, Path(args.out), prompt, args.benchmark, args.on_bad_row, args.on_missing
    ) | {"questions": len(questions)}


def show(result: dict[str, Any], args: Any) -> None:
    kinds = sorted({kind for found in result["by_kind"].values() for kind in found})
    rows = [
        [setting, f"{sum(found.values()):,}", *(f"{found.get(kind, 0):,}" for kind in kinds)]
        for setting, found in result["by_kind"].items()
    ]
    print_table(f"{args.benchmark}: rows by setting", ("setting", "rows", *kinds), rows)
    published = PUBLISHED[args.benchmark]
    if result["questions"] != published:
        print(
            f"{args.annotations} holds {result['questions']:,} questions; the published test file holds {published:,}"
        )
    if result["without_answer"]:
        print(f"{result['without_answer']:,} rows have no answer: they can be answered, not scored")
    for reason, count in result["bad_rows"]["by_reason"].items():
        print(f"left out: {count:,} {reason}")
    print(
        f"wrote {', '.join(f'{args.out}/{setting}.jsonl' for setting in result['by_kind'])}; image root: {args.image_root}"
    )
    if NO_IMAGE in result["by_kind"]:
        print(f"the image root of {NO_IMAGE}.jsonl is {args.out} itself, where {BLACK} lies")


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
