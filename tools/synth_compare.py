"""Rounds of synthetic rows next to each other: distinct words, length, objects that no source has, rows that changed.

Reads rows.jsonl of tools/synth_gate.py, one file a round, the earliest first. hallucinated is the share of the objects claimed that a
source could have seen and none has; changed is the share of the rows that both rounds have (the same picture, task and question) whose
answers differ. Intervals are 95 %, over groups. Human rows are counted and left out of the figures. distinct-n falls as rows are added:
compare files of one size.
"""

from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, plain, run_tool
from drive_vlm.report.tables import interval, print_table

if TYPE_CHECKING:
    from drive_vlm.builders.synthesis.gates.candidate import Candidate

EXAMPLES = """
python tools/synth_compare.py --data round0/rows.jsonl round1/rows.jsonl --can_see synth/detect.jsonl --json rounds.json
python tools/synth_compare.py --data ungated/rows.jsonl gated/rows.jsonl --can_see coco
"""
FIGURES = ("hallucinated", "rows_hallucinated", "answer_words", "distinct_1", "distinct_2")


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/synth_compare.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--data", nargs="+", required=True, help="rows.jsonl of tools/synth_gate.py, the earliest round first")
    add(
        "--can_see",
        nargs="+",
        default=[],
        metavar="NAMES",
        help="as in tools/synth_gate.py (default: the labels that stand in any of the files)",
    )
    flag("--spacy_model", "en_core_web_sm", "name or folder of the spaCy model that reads the texts")
    flag("--seed", 0, "of the intervals")
    add("--json", help="write every number to this file")
    return parser


def run(args: Any) -> list[dict[str, Any]]:
    """The figures of each file, and its change against the one before."""
    from drive_vlm.builders.synthesis.can_see import read_names
    from drive_vlm.builders.synthesis.facts import facts_of, read_gated
    from drive_vlm.evaluation.synthesis import changed, figures
    from drive_vlm.rewards.text.open_names import OpenNames

    read = [read_gated(path) for path in args.data]
    if empty := next((path for path, (rows, _) in zip(args.data, read, strict=True) if not rows), None):
        raise ValueError(f"{empty}: no synthetic row in it")
    reader = OpenNames(read_names(args.can_see) if args.can_see else labels_of(read), args.spacy_model)
    facts = [[facts_of(row, reader) for row in rows] for rows, _ in read]
    found = []
    for i, (path, (rows, human)) in enumerate(zip(args.data, read, strict=True)):
        entry = {"file": path, "rows": len(rows), "human": human, "groups": len({row.group for row in rows})}
        entry |= {"figures": plain(figures(facts[i], args.seed))}
        found.append(entry | {"changed": plain(changed(facts[i - 1], facts[i], args.seed)) if i else None})
    return found


def labels_of(read: "list[tuple[list[Candidate], int]]") -> list[str]:
    return sorted({thing.label for rows, _ in read for row in rows for thing in row.objects})


def show(found: list[dict[str, Any]], args: Any) -> None:
    rows = [[name, *(cell(entry["figures"][name]) for entry in found)] for name in FIGURES]
    rows.append(["changed", *("-" if entry["changed"] is None else cell(entry["changed"]["share"]) for entry in found)])
    for name in ("both", "new", "gone"):
        rows.append(
            [f"rows: {name}", *("-" if entry["changed"] is None else f"{entry['changed'][name]:,}" for entry in found)]
        )
    for name in ("rows", "human", "groups"):
        rows.append([name, *(f"{entry[name]:,}" for entry in found)])
    print_table("synthetic rows", ("", *(entry["file"] for entry in found)), rows)


def cell(entry: dict[str, Any]) -> str:
    return "undefined" if entry["value"] is None else f"{entry['value']:.3f}{interval(entry)}"


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
