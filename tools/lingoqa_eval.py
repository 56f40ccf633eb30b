"""LingoQA: the share of answers that Lingo-Judge calls right, with BLEU, METEOR, CIDEr and ROUGE-L beside it.

Lingo-Judge is the benchmark's published classifier; --lingo_judge names the folder with its weights (hf download wayveai/Lingo-Judge
--local-dir Lingo-Judge), nothing is downloaded. Of several references the best counts. Without it the score is partial: text overlap
alone. Empty answers are wrong and counted. Reads predictions of rows of tools/build_lingoqa.py and the rows themselves. Intervals are
95 % and draw segments.
"""

from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, output_file, run_tool
from drive_vlm.report.scores import print_scores
from drive_vlm.report.tables import write_csv

if TYPE_CHECKING:
    from drive_vlm.evaluation.lingoqa import Item

EXAMPLES = """
python tools/lingoqa_eval.py --data data/lingoqa/val.jsonl --predictions p.jsonl --lingo_judge Lingo-Judge --json scores.json
python tools/lingoqa_eval.py --data data/lingoqa/val.jsonl --predictions p.jsonl --train data/lingoqa/train.jsonl --blind_predictions blank.jsonl
python tools/lingoqa_eval.py --data data/lingoqa/val.jsonl --predictions first15.jsonl --on_missing skip --official_csv predictions.csv
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/lingoqa_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", required=True, help="predictions JSONL of one model")
    add("--data", required=True, help="the rows that were to be answered (tools/build_lingoqa.py --row_of question)")
    flag("--on_missing", ("error", "skip"), "rows without a prediction: stop, or count them; the score is partial then")
    add("--lingo_judge", help="folder with the weights of wayveai/Lingo-Judge; without it the score is partial")
    flag("--device", "cpu", "where Lingo-Judge runs: cpu, cuda, cuda:1 ...")
    flag("--batch_size", 16, "inputs of Lingo-Judge at a time", least=1)
    add("--train", help="rows whose answers the majority knows (default: the evaluated ones)")
    add("--blind_predictions", help="the model's answers to the same questions with blank pictures")
    add("--official_csv", type=output_file, help="write predictions.csv as the benchmark's own script reads it")
    flag("--seed", 0, "of the bootstrap")
    add("--json", help="write every number to this file")
    return parser


def read_items(path: str) -> tuple[dict[str, dict[str, Any]], dict[str, "Item"]]:
    """(rows, items without a prediction) by id. Raises ValueError for a row without a reference."""
    from drive_vlm.evaluation.benchmark_rows import benchmark_rows
    from drive_vlm.evaluation.lingoqa import BENCHMARK, Item

    rows = benchmark_rows(path, BENCHMARK, {"asked": str, "segment_id": str, "question_id": str}, "build_lingoqa.py")
    items = {}
    for name, row in rows.items():
        references = tuple(
            text for text in row.get("references") or [row["reference"]] if isinstance(text, str) and text
        )
        if not references:
            raise ValueError(f"{path}: id {name!r} has no reference, neither in references nor as its answer")
        items[name] = Item(row["segment_id"], row["asked"], references, "")
    return rows, items


def run(args: Any) -> dict[str, Any]:
    """Read, judge, score; returns what --json holds."""
    from drive_vlm.data.predictions import read_blind
    from drive_vlm.evaluation.benchmark_rows import answered_rows
    from drive_vlm.evaluation.lingoqa import (
        BENCHMARK,
        PUBLISHED,
        VERSION,
        add_judged,
        add_texts,
        commonest_answers,
    )
    from drive_vlm.evaluation.score_table import BASELINES, SCORES, ScoreTable
    from drive_vlm.judges.lingo import GET, LingoJudge

    rows, all_items = read_items(args.data)
    known = list(read_items(args.train)[1].values()) if args.train else None
    pairs = answered_rows(rows, args.data, args.predictions, args.on_missing)
    items = [all_items[found.id] for _, found in pairs]
    said = {
        "": [found.prediction for _, found in pairs],
        "majority, " if known else "majority of these rows, ": commonest_answers(items, known),
    }
    if args.blind_predictions:
        blind = read_blind(args.blind_predictions, [found for _, found in pairs], need_reference=False)
        said["blind, "] = [found.prediction for found in blind]
    judge = LingoJudge(args.lingo_judge, args.device, args.batch_size) if args.lingo_judge else None
    table = ScoreTable(BENCHMARK, VERSION, len(rows), len(items), seed=args.seed)
    table.unread = sum(not text.strip() for text in said[""])
    if len(rows) < PUBLISHED:
        table.partial.append(f"the file has {len(rows):,} of the {PUBLISHED:,} published questions")
    if judge is None:
        table.partial.append(f"no Lingo-Judge, only text overlap: give --lingo_judge; {GET}")
    if one := sum(len(item.references) == 1 for item in items):
        table.partial.append(
            f"{one:,} of {len(items):,} questions have one reference; the benchmark takes the best of several"
        )
    cut = {}
    for name, texts in said.items():
        section = BASELINES if name else SCORES
        if judge is not None:
            before = judge.truncated
            scores = judge.scores([item.question for item in items], [item.references for item in items], texts)
            add_judged(table, name, items, texts, scores, section)
            cut[name.rstrip(", ") or "predictions"] = judge.truncated - before
        add_texts(table, name, items, texts, section)
    if args.official_csv:
        lines = [(row["question_id"], row["segment_id"], row["asked"], found.prediction) for row, found in pairs]
        write_csv(args.official_csv, ("question_id", "segment_id", "question", "answer"), lines)
    return table.to_dict() | {
        "predictions": args.predictions,
        "majority_knows": args.train or "the evaluated rows",
        "judge": None if judge is None else judge.describe() | {"truncated": cut},
    }


def show(result: dict[str, Any], args: Any) -> None:
    print_scores(result, "points of 100")
    print(f"the majority knows {args.train or 'the answers of the evaluated rows, not their questions'}")
    if result["judge"] and (cut := result["judge"]["truncated"]["predictions"]):
        print(
            f"Lingo-Judge saw {cut:,} answers, each with one reference, cut at {result['judge']['max_tokens']} tokens"
        )


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
