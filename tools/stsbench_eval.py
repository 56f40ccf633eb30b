"""STSBench: accuracy by scenario group (ego, ego and agent, agent, agent and agent) and their average.

The official score is a mean of means: over a scenario's questions, over the scenarios of a group, over the four groups; an answer counts
there by its first character (strict). Lenient reading stands beside it. Reads predictions of rows of tools/build_stsbench.py and the
rows themselves. Intervals are 95 % and draw recordings (logs), since the files name no scene.
"""

from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.report.scores import print_scores
from drive_vlm.report.tables import print_table

if TYPE_CHECKING:
    from drive_vlm.evaluation.stsbench import Item

EXAMPLES = """
python tools/stsbench_eval.py --data data/stsbench/stsbench.jsonl --predictions p.jsonl --json scores.json
python tools/stsbench_eval.py --data data/stsbench/stsbench.jsonl --predictions p.jsonl --blind_predictions blank.jsonl --scenarios
python tools/stsbench_eval.py --data data/stsbench/stsbench.jsonl --predictions first15.jsonl --on_missing skip
"""
COLUMNS = {"scenario_group": str, "scenario": str, "options": dict, "asked": str}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/stsbench_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", required=True, help="predictions JSONL of one model")
    add("--data", required=True, help="the rows that were to be answered (tools/build_stsbench.py)")
    flag("--on_missing", ("error", "skip"), "rows without a prediction: stop, or count them; the score is partial then")
    add("--train", help="rows whose answers the majority knows (default: the evaluated ones)")
    add("--blind_predictions", help="the model's answers to the same questions with blank pictures")
    flag("--scenarios", False, "print the accuracy of each scenario too; --json always has it")
    flag("--seed", 0, "of the bootstrap")
    add("--json", help="write every number to this file")
    return parser


def to_item(name: str, row: dict[str, Any], prediction: str) -> "Item":
    """Raises ValueError for a row whose answer is none of its options, or of an unknown group."""
    from drive_vlm.evaluation.stsbench import GROUPS, Item

    letter, group = row["reference"].strip(), row["scenario_group"]
    if letter not in row["options"]:
        raise ValueError(f"id {name!r}: its answer {letter!r} is none of its options {', '.join(row['options'])}")
    if group not in GROUPS:
        raise ValueError(f"id {name!r}: scenario_group {group!r}; expected one of {', '.join(GROUPS)}")
    return Item(str(row.get("group") or name), group, row["scenario"], row["options"], letter, prediction)


def run(args: Any) -> dict[str, Any]:
    """Read, score; returns what --json holds."""
    from drive_vlm.data.predictions import read_blind
    from drive_vlm.evaluation.benchmark_rows import answered_rows, benchmark_rows
    from drive_vlm.evaluation.choice_baselines import add_blind, add_guesses
    from drive_vlm.evaluation.score_table import ScoreTable, constant_column
    from drive_vlm.evaluation.stsbench import BENCHMARK, PUBLISHED, VERSION, add_scores, by_scenario

    rows = benchmark_rows(args.data, BENCHMARK, COLUMNS, "build_stsbench.py")
    train = benchmark_rows(args.train, BENCHMARK, COLUMNS, "build_stsbench.py") if args.train else None
    known = None if train is None else [to_item(name, row, "") for name, row in train.items()]
    pairs = answered_rows(rows, args.data, args.predictions, args.on_missing)
    items = [to_item(found.id, row, found.prediction) for row, found in pairs]
    table = ScoreTable(BENCHMARK, VERSION, len(rows), len(items), seed=args.seed)
    if len(rows) < PUBLISHED:
        table.partial.append(f"the file has {len(rows):,} of the {PUBLISHED:,} published questions")
    if reason := constant_column([item.scenario for item in items], "scenario"):
        table.partial.append(reason)
    add_scores(table, items)
    add_guesses(table, items, known)
    if args.blind_predictions:
        blind = read_blind(args.blind_predictions, [found for _, found in pairs], need_reference=False)
        said = [item.read(found.prediction) for item, found in zip(items, blind, strict=True)]
        add_blind(table, items, said)
    return table.to_dict() | {
        "by_scenario": by_scenario(items),
        "predictions": args.predictions,
        "majority_knows": args.train or "the evaluated rows",
    }


def show(result: dict[str, Any], args: Any) -> None:
    print_scores(result, "points of 100")
    if args.scenarios:
        lines = [
            [name, f"{found['n']:,}", f"{found['strict']:.1f}", f"{found['lenient']:.1f}"]
            for name, found in result["by_scenario"].items()
        ]
        print_table("by scenario", ("scenario", "rows", "strict", "lenient"), lines)
    print(f"baselines are of all rows; the majority knows {args.train or 'the evaluated rows themselves'}")


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
