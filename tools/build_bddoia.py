"""BDD-OIA's labels and pictures -> JSONL rows with actions and reasons, one file a split.

Reads the official files SPLIT_25k_images_{actions,reasons}.json, joined by file name, and the lastframe pictures; or LXMERT's
gt_4a_21r_SPLIT.json. Every row has the columns actions int[4] and reason int[21], and `group`, the video it is from.
Writes to OUT
  {train,val,test}.jsonl   rows; the user's turn is the picture alone, or the picture and --question
  *.meta.json              each of these files as a source for --data, with its folder of pictures
  audit.json               what was read, which filter takes how many rows, what was left out, videos in more than one split
  frames_N/                with --clips: N frames of each clip, the labelled one last
"""

from typing import Any

from drive_vlm.builders.oia import OiaBuild, build
from drive_vlm.config import CommandParser, add_dataclass, run_tool
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/build_bddoia.py --labels data/lastframe --out data/bddoia
python tools/build_bddoia.py --labels data/lastframe --out data/toy --toy
python tools/build_bddoia.py --labels data/lastframe --out data/decide --target labels --question "What should the car do, and why?"
python tools/build_bddoia.py --labels data/lastframe --clips data/BDD-OIA --num_frames 8 --out data/clips --on_missing skip
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_bddoia.py", description=__doc__, examples=EXAMPLES)
    add_dataclass(parser, OiaBuild, "flags")
    return parser


def show(audit: dict[str, Any], args: OiaBuild) -> None:
    """Counts by filter, rows by file, what was left out, and videos in more than one split."""
    columns = ("rows", "official", "any_action", "taken", "no_action", "no_reason")
    rows = [[split, *(f"{count[column]:,}" for column in columns)] for split, count in audit["splits"].items()]
    print_table(f"BDD-OIA rows (--filter {args.filter})", ("split", *columns), rows)
    for split, count in audit["splits"].items():
        if (count["rows"], count["official"]) != (count["published"], count["published_official"]):
            published = f"{count['published']:,} rows, {count['published_official']:,} by the official rule"
            print(
                f"{split}: {count['rows']:,} rows, {count['official']:,} by the official rule; published are {published}"
            )
    for reason, number in audit["bad_rows"]["by_reason"].items():
        print(f"left out: {number:,} {reason}")
    if shared := audit["shared_videos"]:
        examples = [leak for leak in audit["leaks"] if leak.startswith("group ")][:3]
        print(f"{shared:,} videos in more than one split (audit.json names all): {'; '.join(examples)}")
    else:
        print("no video in more than one split")
    files = ", ".join(f"{args.out}/{name} ({count:,})" for name, count in audit["rows"].items())
    print(f"wrote {files}; image root: {audit['root']}")


if __name__ == "__main__":
    run_tool(make_parser(), build, show, OiaBuild)
