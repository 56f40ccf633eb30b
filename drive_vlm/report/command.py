"""One self-contained HTML page of one run or several: verdict, what ran, curves, data, scores, rows with pictures, faults, how to reproduce.

It reads run directories, prediction files and what the evaluators wrote with --json. The last prediction file is the one that is
judged; the first of several is the start. What is not there is said on the page. A score is green where its paired interval is above
every baseline, red where one is as good. The page needs no network and no JavaScript, and is at most 10 MB.
"""

import shlex
import time
from collections.abc import Sequence

from drive_vlm.config import CommandParser, output_file, user_errors

EXAMPLES = """
python -m drive_vlm report runs/x --out report.html
python -m drive_vlm report runs/x --predictions before.jsonl after.jsonl --blind_predictions blind.jsonl --out report.html
python -m drive_vlm report runs/x runs/y --predictions x.jsonl y.jsonl --scores scores.json --by weather --out report.html
python -m drive_vlm report runs/x --predictions a.jsonl b.jsonl --row_scores scores.csv --row_score action_F1 --out report.html
"""


def make_parser() -> CommandParser:
    from drive_vlm.report.run_report.scored import METRICS

    parser = CommandParser(prog="python -m drive_vlm report", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("runs", nargs="*", help="output directories of runs; several are compared")
    add("--out", type=output_file, default="report.html", help="the page")
    add(
        "--predictions",
        nargs="+",
        default=[],
        help="prediction files on the same rows; the last one is judged, the first of several is the start",
    )
    add("--blind_predictions", help="answers of the last checkpoint with its pictures blanked")
    add("--scores", nargs="+", default=[], help="files that evaluators wrote with --json")
    add(
        "--train",
        nargs="+",
        default=[],
        help="training rows, for the majority answer, the prior and leaks (default: those of the runs that are still there)",
    )
    add(
        "--image_root",
        help="folder that the rows' pictures are relative to (default: those of the runs, and the folders of the files)",
    )
    flag("--metric", tuple(METRICS), "score of a row; of free texts give an evaluator's CSV instead")
    add("--row_scores", help="CSV of an evaluator (--out or --csv) with a line for each row and checkpoint")
    add("--row_score", help="its column, e.g. correct, action_F1, right_strategy, text_text")
    flag("--lower_is_better", False, "the column of --row_score is an error, such as ADE")
    add("--by", nargs="+", default=[], help="further columns of the rows to split the scores by")
    flag("--rows", 30, "rows with pictures", least=0, most=300)
    add("--title", help="of the page")
    flag("--seed", 0, "of the bootstrap")
    return parser


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm report RUN ... --out report.html`."""
    parser = make_parser()
    flags = parser.parse_args(list(words))
    begun = time.monotonic()
    with user_errors(parser.prog):
        from drive_vlm.report.run_report.page import ReportConfig, write_report

        config = ReportConfig(**vars(flags))
        found = write_report(config, shlex.join(["python", "-m", "drive_vlm", "report", *words]))
    for verdict in found["verdicts"]:
        print(f"{verdict['tone']}: {verdict['title']}: {verdict['system']} {verdict['value']:.3f}, {verdict['words']}")
    if not found["verdicts"]:
        print("no verdict: no answers and no scores were given")
    shown = f"{found['rows_shown']} of {found['rows']:,} rows, {found['pictures']} pictures"
    lost = found["pictures_not_found"] + found["pictures_without_room"]
    print(
        f"{found['file']}: {found['bytes'] / 1e6:.2f} MB, {shown}{f', {lost} not shown' if lost else ''}, {time.monotonic() - begun:.1f} s"
    )
