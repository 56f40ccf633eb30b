"""DriveLMM-o1: accuracy of the final choice, and a judge's rubric of the reasoning (12 aspects and an overall score).

The final choice is read as the benchmark's script reads it (strict) and by what it means (lenient), side by side. The rubric needs a
judge (--judge_model); without one the score is partial. The judge's prompt is ours: its numbers compare with published ones only with
the benchmark's prompt (--judge_prompt FILE) and its judge, gpt-4o-mini. Judgements that cannot be read are left out of the means and
counted. Reads predictions of rows of tools/build_drivelmm_o1.py and the rows themselves. Intervals are 95 % and draw scenes.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, add_dataclass, from_namespace, run_tool
from drive_vlm.judges import open_judge
from drive_vlm.judges.judge import JudgeConfig, Request, judge_all, spent_line
from drive_vlm.judges.verdicts import fill, read_prompt
from drive_vlm.launch.stop import listening
from drive_vlm.report.scores import print_scores

if TYPE_CHECKING:
    from drive_vlm.evaluation.drivelmm_o1 import Item

PROMPT = Path(__file__).parent / "prompts" / "drivelmm_o1.txt"
PLACES = ("question", "reference", "prediction")
COLUMNS = {"asked": str, "question_number": int, "final_answer": str, "steps": str}
BUILDER = "build_drivelmm_o1.py"
EXAMPLES = """
python tools/drivelmm_o1_eval.py --data data/drivelmm/test.jsonl --predictions p.jsonl --train data/drivelmm/train.jsonl --json scores.json
python tools/drivelmm_o1_eval.py --data data/drivelmm/test.jsonl --predictions p.jsonl --judge_model gpt-4o-mini --judge_prompt official.json
python tools/drivelmm_o1_eval.py --data data/drivelmm/test.jsonl --predictions first15.jsonl --on_missing skip
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/drivelmm_o1_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", required=True, help="predictions JSONL of one model")
    add("--data", required=True, help="the rows that were to be answered (tools/build_drivelmm_o1.py)")
    flag("--on_missing", ("error", "skip"), "rows without a prediction: stop, or count them; the score is partial then")
    add("--train", help="rows whose answers the majority knows (default: the evaluated ones)")
    add("--blind_predictions", help="the model's answers to the same questions with blank pictures")
    flag("--judge_prompt", str(PROMPT), "prompt of the rubric: a text, or a JSON list of turns")
    flag("--seed", 0, "of the bootstrap")
    add("--json", help="write every number to this file")
    add_dataclass(parser, JudgeConfig, "judge of the reasoning, which has no score without --judge_model")
    return parser


def to_item(row: dict[str, Any], prediction: str) -> "Item":
    from drive_vlm.evaluation.drivelmm_o1 import Item

    return Item(
        str(row.get("group") or row["id"]), row["question_number"], row["asked"], row["final_answer"], prediction
    )


def rate(items: list["Item"], references: list[str], args: Any, spent: dict[str, Any]) -> list["Item"] | None:
    """The items with the judge's ratings, None without a judge; what it took comes into `spent`."""
    from drive_vlm.evaluation.drivelmm_o1 import read_rubric

    config = from_namespace(JudgeConfig, args)
    if not config.judge_model and config.judge_backend == "openai":
        return None
    judge, prompt = open_judge(config), read_prompt(args.judge_prompt, PLACES)
    requests = [
        Request(fill(prompt, {"question": item.question, "reference": truth, "prediction": item.prediction}))
        for item, truth in zip(items, references, strict=True)
    ]
    judged = [found for block in judge_all(judge, requests, read_rubric, config.judge_attempts) for found in block]
    spent.update(judge.spent(), asked_again=sum(found.attempts > 1 for found in judged))
    return [replace(item, rubric=found.value) for item, found in zip(items, judged, strict=True)]


def run(args: Any) -> dict[str, Any]:
    """Read, judge, score; returns what --json holds."""
    from drive_vlm.data.predictions import read_blind
    from drive_vlm.evaluation.benchmark_rows import answered_rows, benchmark_rows
    from drive_vlm.evaluation.choice_baselines import add_blind, add_guesses
    from drive_vlm.evaluation.drivelmm_o1 import BENCHMARK, VERSION, add_choices, add_rubric, reasoning_text
    from drive_vlm.evaluation.score_table import ScoreTable, constant_column

    rows = benchmark_rows(args.data, BENCHMARK, COLUMNS, BUILDER)
    train = benchmark_rows(args.train, BENCHMARK, COLUMNS, BUILDER) if args.train else None
    pairs = answered_rows(rows, args.data, args.predictions, args.on_missing)
    items = [to_item(row, found.prediction) for row, found in pairs]
    table = ScoreTable(BENCHMARK, VERSION, len(rows), len(items), seed=args.seed)
    if reason := constant_column([item.number for item in items], "question_number"):
        table.partial.append(reason)
    spent: dict[str, Any] = {}
    rated = rate(items, [reasoning_text(row["steps"], row["final_answer"]) for row, _ in pairs], args, spent)
    choices = add_choices(table, items)
    if rated is None:
        table.partial.append("no judge: the reasoning has no score; give --judge_model")
    else:
        add_rubric(table, rated)
    if choices:
        known = None if train is None else [item for row in train.values() if (item := to_item(row, "")).is_choice]
        add_guesses(table, choices, known)
        if args.blind_predictions:
            blind = read_blind(args.blind_predictions, [found for _, found in pairs], need_reference=False)
            said = [
                item.read(found.prediction)
                for item, found in zip(items, blind, strict=True)
                if item.is_choice and item.gold.read
            ]
            add_blind(table, choices, said)
    return table.to_dict() | {
        "predictions": args.predictions,
        "majority_knows": args.train or "the evaluated rows",
        "judge": spent | {"name": args.judge_model, "own_prompt": Path(args.judge_prompt) == PROMPT},
    }


def show(result: dict[str, Any], args: Any) -> None:
    print_scores(result, "points of 100")
    print(f"the majority knows {args.train or 'the evaluated rows themselves'}")
    if "requests" in result["judge"]:
        if result["judge"]["own_prompt"]:
            print(
                "rated with this project's prompt, not the benchmark's: compare with its scores only by --judge_prompt"
            )
        print(spent_line(result["judge"]))


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show)
