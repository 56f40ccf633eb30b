"""DriveLM's official JSON -> JSONL rows with six pictures or one stitched 3x2 picture, split by scene.

Reads v1_1_train_nus.json, the challenge's test_eval.json (rows then keep `tag` and score with tools/drivelm_eval.py)
and, with --questions_only, files without answers. Writes one JSONL a split; stitched pictures go to OUT/images and
object coordinates become thousandths of the stitched picture (drive_vlm/builders/stitching.py).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drive_vlm.builders.drivelm import Frame, read_frames, stitch_frames, write_split_rows
from drive_vlm.builders.row_writer import RowWriter
from drive_vlm.builders.splits import parse_fractions
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.drivelm import CATEGORIES
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/build_drivelm.py --annotations v1_1_train_nus.json --image_root data/nuscenes --out data/drivelm
python tools/build_drivelm.py --annotations v1_1_train_nus.json --image_root data/nuscenes --views stitched --out data/3x2
python tools/build_drivelm.py --annotations v1_1_train_nus.json --image_root data/nuscenes-mini --on_missing skip --out data/mini
python tools/build_drivelm.py --annotations test_eval.json --image_root data/nuscenes --out data/test --splits test:1
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_drivelm.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--annotations", required=True, help="DriveLM JSON: v1_1_train_nus.json or test_eval.json")
    add("--image_root", required=True, help="folder that holds samples/CAM_FRONT/... of nuScenes")
    add("--out", required=True, help="folder for SPLIT.jsonl and stitched pictures")
    flag("--views", ("six", "stitched"), "six pictures a row, or one 3x2 picture")
    add(
        "--splits",
        nargs="+",
        default=["train:0.9", "val:0.1"],
        metavar="NAME:SHARE",
        help="shares of the scenes; they sum to 1",
    )
    flag("--seed", 0, "seed of the split")
    add("--scene_names", nargs="+", metavar="SCENE", help="take these scenes only, by their names in the annotations")
    add("--limit", type=int, help="take the first N key frames that can be used")
    flag("--questions_only", False, "write rows without answers, for files that have none")
    flag(
        "--on_bad_row",
        ("error", "skip"),
        "error: stop at a frame without one of its pictures and at an empty question or answer; skip: leave it out, counted",
    )
    flag(
        "--on_missing",
        ("error", "skip"),
        "a frame whose pictures are not there, as in a part of nuScenes: error stops, skip leaves it out, counted",
    )
    flag("--workers", 4, "threads that stitch pictures")
    add("--json", help="write the counts here")
    return parser


def usable_frames(found: Iterator[Frame | BadRow], writer: RowWriter, skip_missing: bool) -> Iterator[Frame]:
    """The frames; what cannot be used is counted or raised by `writer`."""
    for frame in found:
        if isinstance(frame, BadRow):
            writer.reject(frame, skip_missing and frame.reason == "image_missing")
        else:
            yield frame


def run(args: Any) -> dict[str, Any]:
    """Read, split, stitch, write; the counts of each split, with the bad rows and the leaks where there are any."""
    images, out = Path(args.image_root), Path(args.out)
    shares = parse_fractions(args.splits, "--splits")
    with RowWriter(out, args.on_bad_row) as writer:
        usable = usable_frames(
            read_frames(Path(args.annotations), images, args.scene_names), writer, args.on_missing == "skip"
        )
        frames = list(itertools.islice(usable, args.limit))
        if not frames:
            raise ValueError(
                f"{args.annotations}: no key frames" + (f" that can be used; {writer.bad[0]}" if writer.bad else "")
            )
        stitched = args.views == "stitched"
        counts = write_split_rows(writer, frames, shares, args.seed, stitched, args.questions_only, args.annotations)
        if stitched:
            stitch_frames(frames, images, out, args.workers)
    audit = {name: part for name, part in writer.audit().items() if name != "rows"}
    return counts | (audit if audit["leaks"] or audit["bad_rows"]["total"] else {})


def show(result: dict[str, Any], args: Any) -> str | None:
    """Print the counts; the exit status, which says when splits leak."""
    counts = {name: result[name] for name in parse_fractions(args.splits, "--splits")}
    rows = [[name, *(str(count[name]) for count in counts.values())] for name in ("scenes", "frames", *CATEGORIES)]
    rows.append(["rows", *(str(sum(count[category] for category in CATEGORIES)) for count in counts.values())])
    print_table("DriveLM rows by split", ("", *counts), rows)
    root = args.out if args.views == "stitched" else args.image_root
    print(f"wrote {', '.join(f'{args.out}/{split}.jsonl' for split in counts)}; image root: {root}")
    for reason, count in result.get("bad_rows", {"by_reason": {}})["by_reason"].items():
        print(f"left out: {count:,} {reason}")
    leaks = result.get("leaks")
    return f"{len(leaks):,} leaks between the splits, e.g. {leaks[0]}" if leaks else None


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
