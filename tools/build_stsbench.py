"""STSBench's scenarios or questions (nuScenes) -> JSONL rows of multiple choice over six frames of several cameras.

Reads the scenarios of `python -m vqa_extractor.hf` and makes a question of each with four seeded negatives, or takes the questions of
vqa_extractor.internvl and .qwen as they stand. A row shows the cameras that see who is asked about (the ego's front camera, the agent's
and the other agent's camera of each frame), or with --views all the six of every frame.
"""

from pathlib import Path
from typing import Any

from drive_vlm.builders.stsbench import ALL, SEEN, build
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.evaluation.stsbench import GROUPS, PUBLISHED
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/build_stsbench.py --annotations STSnu.json --image_root data/nuscenes --out data/stsbench
python tools/build_stsbench.py --annotations STSnu.json --image_root data/nuscenes --views all --seed 1 --out data/sts_all
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_stsbench.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--annotations", required=True, help="JSON that a vqa_extractor of STSBench writes")
    add("--image_root", required=True, help="folder that holds samples/CAM_FRONT/... of nuScenes")
    add("--out", required=True, help="folder for NAME.jsonl and NAME.audit.json")
    flag("--name", "stsbench", "name of the file of rows")
    flag("--views", (SEEN, ALL), "cameras of a scenario's frames: those that see who is asked about, or all six")
    flag("--seed", 0, "of the negatives and of the order of options, for scenarios")
    flag(
        "--on_bad_row",
        ("error", "skip"),
        "error: stop at a missing picture, too few negatives, an answer that is no option; skip: leave it out and count it",
    )
    flag("--on_missing", ("error", "skip"), "a question whose pictures are not there: stop, or leave it out, counted")
    add("--json", help="write the counts here")
    return parser


def run(args: Any) -> dict[str, Any]:
    """Read, write; the counts."""
    where = (Path(args.annotations), Path(args.image_root), Path(args.out))
    return build(*where, args.name, args.views, args.seed, args.on_bad_row, args.on_missing)


def show(result: dict[str, Any], args: Any) -> None:
    rows = [[name, f"{result['groups'].get(name, 0):,}"] for name in GROUPS]
    print_table("STSBench: rows by scenario group", ("group", "rows"), rows)
    print(f"{result['rows']:,} rows of {result['scenarios']:,} scenarios; right letters: {result['letters']}")
    if result["rows"] != PUBLISHED:
        print(f"the published benchmark has {PUBLISHED:,} questions")
    for reason, count in result["bad_rows"]["by_reason"].items():
        print(f"left out: {count:,} {reason}")
    print(f"wrote {args.out}/{args.name}.jsonl; image root: {args.image_root}")


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
