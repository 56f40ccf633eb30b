"""nuScenes info files of VAD or UniAD -> rows for open-loop planning in words: past positions, speed and command in, six positions out.

Reads nuscenes_infos_temporal_{train,val}.pkl, or the same as JSON. The pickle is read without running anything of it: arrays and plain
values only, anything else is refused by name. Frames whose future is not whole are left out and counted, as all protocols do.
Writes to OUT
  SPLIT.jsonl         rows; columns `past`, `future`, `speed`, `command` and their axes, unit and step
  SPLIT.boxes.jsonl   road users and their ways, for the collision rate of tools/planning_eval.py (VAD's files only)
  SPLIT.meta.json     the rows as a source for --data
  audit.json          frames read, rows, what was left out, frames whose history VAD made up, leaks between the splits
tools/build_meta_actions.py makes rows of meta-actions from these.
"""

from typing import Any

from drive_vlm.builders.nuscenes_planning import PlanningBuild, build
from drive_vlm.config import CommandParser, add_dataclass, run_tool
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/build_nuscenes_planning.py --train infos_train.pkl --val infos_val.pkl --image_root data/nuscenes --out data/planning
python tools/build_nuscenes_planning.py --val infos_val.pkl --cameras none --inputs history speed --out data/ego
python tools/build_nuscenes_planning.py --val infos_val.json --image_root data/nuscenes --axes forward_left --form pt --out data/pt
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_nuscenes_planning.py", description=__doc__, examples=EXAMPLES)
    add_dataclass(parser, PlanningBuild, "flags")
    return parser


def show(audit: dict[str, Any], args: PlanningBuild) -> str | None:
    """Print the counts; the exit status, which says when splits leak."""
    rows = [[split, *(f"{count:,}" for count in counts.values())] for split, counts in audit["splits"].items()]
    heads = ("", "frames", "rows", "history made up", "with boxes")
    print_table(f"nuScenes planning rows ({audit['axes']}, metres)", heads, rows)
    for reason, number in audit["bad_rows"]["by_reason"].items():
        print(f"left out: {number:,} {reason}")
    files = ", ".join(f"{args.out}/{name} ({count:,})" for name, count in audit["rows"].items())
    print(f"wrote {files}; image root: {args.image_root}")
    leaks = audit["leaks"]
    return f"{len(leaks):,} leaks between the splits, e.g. {leaks[0]}" if leaks else None


if __name__ == "__main__":
    run_tool(make_parser(), build, show, PlanningBuild)
