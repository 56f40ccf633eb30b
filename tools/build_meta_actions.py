"""Rows with a future -> rows of meta-actions: "KEEP, STRAIGHT", by Senna's rules and thresholds.

Reads rows of tools/build_nuscenes_planning.py (`future`, `axes`; `speed` and `command` stand in the question) and writes each file
again with another question and answer, and the columns `speed_class` and `path_class`. AlphaDrive's classes fold lane changes into
straight; no thresholds of it are published, so Senna's make them too. Rules: drive_vlm/builders/meta_actions.py.
"""

from typing import Any

from drive_vlm.builders.meta_actions import MetaBuild, build
from drive_vlm.config import CommandParser, add_dataclass, run_tool
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/build_meta_actions.py --data data/planning/train.jsonl data/planning/val.jsonl --out data/meta
python tools/build_meta_actions.py --data data/planning/train.jsonl --classes alphadrive --think --out data/alphadrive
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_meta_actions.py", description=__doc__, examples=EXAMPLES)
    add_dataclass(parser, MetaBuild, "flags")
    return parser


def show(audit: dict[str, Any], args: MetaBuild) -> str | None:
    """Print the counts of classes; the exit status, which says when splits leak."""
    counts = audit["counts"]
    classes = next(iter(counts.values()))
    rows = [[name, *(f"{count[name]:,}" for count in counts.values())] for name in classes]
    print_table(f"meta-actions ({audit['classes']})", ("", *counts), rows)
    for reason, number in audit["bad_rows"]["by_reason"].items():
        print(f"left out: {number:,} {reason}")
    print(f"wrote {', '.join(f'{args.out}/{name}' for name in counts)}")
    leaks = audit["leaks"]
    return f"{len(leaks):,} leaks between the files, e.g. {leaks[0]}" if leaks else None


if __name__ == "__main__":
    run_tool(make_parser(), build, show, MetaBuild)
