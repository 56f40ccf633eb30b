"""DriveBench and RoboSense track 1: accuracy of choices, a judge's score of free answers, ROUGE-L, METEOR, the drop from clean pictures.

Reads predictions of rows of tools/build_drivebench.py, one or more files of one model (one a setting), and the rows themselves: they say
how many there are. Accuracy comes by the official rule (the exact text) and by lenient reading side by side. The judge's prompts are
ours: its numbers compare with published ones only with the benchmark's prompts (--judge_prompts DIR) and its judge. METEOR has synonyms
where NLTK's WordNet is installed, and another name where it is not. Intervals are 95 % and draw scenes.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, add_dataclass, from_namespace, run_tool
from drive_vlm.evaluation.drivebench import CORRUPTED, MCQ, SETTINGS, TASKS, VERSION, VQA, Item, parse_total
from drive_vlm.judges import open_judge
from drive_vlm.judges.judge import JudgeConfig, Request, judge_all, spent_line
from drive_vlm.judges.verdicts import Turns, fill, read_prompt
from drive_vlm.launch.stop import listening
from drive_vlm.report.drivebench import print_settings
from drive_vlm.report.scores import print_scores

if TYPE_CHECKING:
    from drive_vlm.data.predictions import Prediction

PROMPTS = Path(__file__).parent / "prompts" / "drivebench"
PLACES = ("question", "reference", "prediction")
EXAMPLES = """
python tools/drivebench_eval.py --data data/drivebench/clean.jsonl data/drivebench/fog.jsonl --predictions clean.jsonl fog.jsonl --json scores.json
python tools/drivebench_eval.py --data data/drivebench/clean.jsonl --predictions clean.jsonl --train data/drivelm/train.jsonl --judge_model gpt-3.5-turbo
python tools/drivebench_eval.py --data data/drivebench/clean.jsonl --predictions first15.jsonl --on_missing skip
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/drivebench_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", nargs="+", required=True, help="predictions JSONL; together one model's answers")
    add("--data", nargs="+", required=True, help="the rows that were to be answered (tools/build_drivebench.py)")
    flag("--on_missing", ("error", "skip"), "rows without a prediction: stop, or count them; the score is partial then")
    add("--train", nargs="+", help="rows whose answers the majority knows (default: the evaluated ones)")
    add("--blind_predictions", nargs="+", help="the model's answers to the same questions with blank pictures")
    flag("--judge_prompts", str(PROMPTS), "folder with TASK_KIND.txt (perception_vqa.txt), else KIND.txt (vqa.txt)")
    flag("--judged", (VQA, "all"), "which rows the judge rates; DriveBench's own tables rate choices as well")
    flag("--seed", 0, "of the bootstrap")
    add("--json", help="write every number to this file")
    add_dataclass(parser, JudgeConfig, "judge of free answers, which have text overlap alone without --judge_model")
    return parser


def read_rows(paths: Sequence[str], full: bool = True) -> dict[str, dict[str, Any]]:
    """Rows of tools/build_drivebench.py by id, with "question" and "reference"; `full`: their columns are checked."""
    from drive_vlm.data.predictions import rows_by_id
    from drive_vlm.data.samples import parse_row

    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for name, (where, row) in rows_by_id(path).items():
            known = row.get("setting") in (*SETTINGS, CORRUPTED) and row.get("question_type") in TASKS
            if full and not (known and row.get("kind") in (MCQ, VQA) and isinstance(row.get("asked"), str)):
                raise ValueError(
                    f"{where}: id {name!r}: no setting, question_type, kind and asked of DriveBench; build the rows with tools/build_drivebench.py"
                )
            if name in found:
                raise ValueError(f"{where}: id {name!r} stands in another file of --data too")
            sample = parse_row(row, where, "", need_answer=False)
            question = " ".join(turn.text for turn in sample.turns if turn.role == "user").strip()
            found[name] = row | {"question": question, "reference": sample.reference or row.get("reference") or ""}
    return found


def to_item(row: dict[str, Any], prediction: str) -> Item:
    return Item(
        question_id=str(row["question_id"]),
        group=str(row.get("group") or row["question_id"]),
        setting=row["setting"],
        task=row["question_type"],
        kind=row["kind"],
        scope=str(row.get("scope", "")),
        question=row["asked"],
        reference=row["reference"],
        prediction=prediction,
    )


def known_items(paths: Sequence[str]) -> list[Item]:
    """The questions and answers that the majority knows; rows of tools/build_drivelm.py have other columns and serve as well."""
    from drive_vlm.evaluation.drivebench import kind_of

    items = []
    for row in read_rows(paths, full=False).values():
        question = row.get("asked") or row["question"].replace("<image>", "").strip()
        task = row.get("question_type") or row.get("category")
        if task in TASKS and row["reference"]:
            kind = row.get("kind") or kind_of(question, row["reference"], row.get("tag"))
            items.append(Item("", "", "", task, kind, "", question, row["reference"], ""))
    if not items:
        raise ValueError(f"--train {' '.join(paths)}: no row of the tasks {', '.join(TASKS)} with an answer")
    return items


def rate(items: list[Item], args: Any, spent: dict[str, Any]) -> list[Item] | None:
    """The items with the judge's ratings, None without a judge; what it took comes into `spent`."""
    config = from_namespace(JudgeConfig, args)
    if not config.judge_model and config.judge_backend == "openai":
        return None
    judge = open_judge(config)
    places = [i for i, item in enumerate(items) if item.reference and (item.kind == VQA or args.judged == "all")]
    prompts = {(item.task, item.kind): prompt_of(args.judge_prompts, item) for item in (items[i] for i in places)}
    requests = [Request(fill(prompts[item.task, item.kind], values_of(item))) for item in (items[i] for i in places)]
    judged = [found for block in judge_all(judge, requests, parse_total, config.judge_attempts) for found in block]
    spent.update(judge.spent(), asked_again=sum(found.attempts > 1 for found in judged))
    rated = list(items)
    for place, found in zip(places, judged, strict=True):
        rated[place] = replace(items[place], rating=found.value)
    return rated


def prompt_of(folder: str, item: Item) -> Turns:
    own = Path(folder) / f"{item.task}_{item.kind}.txt"
    return read_prompt(own if own.is_file() else Path(folder) / f"{item.kind}.txt", PLACES)


def values_of(item: Item) -> dict[str, str]:
    return {"question": item.question, "reference": item.reference, "prediction": item.prediction}


def read_all(paths: Sequence[str]) -> list["Prediction"]:
    from drive_vlm.data.predictions import read_predictions

    return [item for path in paths for item in read_predictions(path, need_reference=False)]


def matched(args: Any, rows: dict[str, dict[str, Any]]) -> list[Item]:
    """The answered rows in their order. Raises ValueError for an id in two files, and as `match_predictions` does."""
    from drive_vlm.evaluation.score_table import match_predictions

    predictions = read_all(args.predictions)
    seen: dict[str, str] = {}
    for item in predictions:
        if item.id in seen:
            raise ValueError(
                f"{item.where}: id {item.id!r} came before at {seen[item.id]}; give one model's answers, each once"
            )
        seen[item.id] = item.where
    found = match_predictions(rows, predictions, " ".join(args.data), args.on_missing)
    return [to_item(rows[item.id], item.prediction) for item in found]


def read_blind(args: Any, items: list[Item]) -> dict[str, str] | None:
    """{question_id: answer} of --blind_predictions. Raises ValueError where none of them is about an evaluated question."""
    if not args.blind_predictions:
        return None
    known = {item.question_id for item in items}
    found = {str(item.row.get("question_id", item.id)): item.prediction for item in read_all(args.blind_predictions)}
    if not known & found.keys():
        raise ValueError(
            f"--blind_predictions {' '.join(args.blind_predictions)}: no question_id of the evaluated rows; generate them from rows of "
            "tools/build_drivebench.py (noimage.jsonl, or --blank_images)"
        )
    return {name: answer for name, answer in found.items() if name in known}


def run(args: Any) -> dict[str, Any]:
    """Read, judge, score; returns what --json holds."""
    from drive_vlm.evaluation.drivebench import (
        PUBLISHED,
        add_accuracy,
        add_baselines,
        add_challenge,
        add_drops,
        add_texts,
    )
    from drive_vlm.evaluation.meteor import open_wordnet
    from drive_vlm.evaluation.score_table import ScoreTable, constant_column

    rows = read_rows(args.data)
    items = matched(args, rows)
    if not items:
        raise ValueError("no row has a prediction")
    if not any(item.reference for item in items):
        raise ValueError(
            f"{' '.join(args.data)}: no row has a reference; the challenge hides them, and nothing can be scored here"
        )
    benchmark = str(next(iter(rows.values())).get("benchmark", "DriveBench"))
    table = ScoreTable(benchmark, VERSION, len(rows), len(items), seed=args.seed)
    spent: dict[str, Any] = {}
    rated = rate(items, args, spent)
    items = rated or items
    short = {name: sum(row["setting"] == name for row in rows.values()) for name in {i.setting for i in items}}
    fewer = [name for name, n in sorted(short.items()) if name != CORRUPTED and n < PUBLISHED.get(benchmark, 0)]
    if fewer:
        more = f" (and {len(fewer) - 1} more settings)" if fewer[1:] else ""
        table.partial.append(
            f"{fewer[0]}{more}: the file has {short[fewer[0]]:,} of the {PUBLISHED[benchmark]:,} published questions"
        )
    if reason := constant_column([item.task for item in items], "question_type"):
        table.partial.append(reason)
    add_accuracy(table, items)
    wordnet = open_wordnet() if any(item.kind == VQA for item in items) else None
    add_texts(table, items, wordnet, rated is not None)
    final = add_challenge(table, items) if benchmark == "RoboSense" else None
    add_drops(table, items)
    add_baselines(table, items, known_items(args.train) if args.train else items, read_blind(args, items))
    return table.to_dict() | {
        "final": final,
        "predictions": args.predictions,
        "majority_knows": args.train or "the evaluated rows",
        "judge": spent | {"name": args.judge_model, "own_prompts": Path(args.judge_prompts) == PROMPTS},
    }


def show(result: dict[str, Any], args: Any) -> None:
    print_settings(result)
    first = next(iter(result["scores"])).partition(":")[0]
    types = {name: found for name, found in result["scores"].items() if name.startswith(f"{first}: ")}
    phases = {name: found for name, found in result["scores"].items() if name.startswith("track 1")}
    print_scores(result | {"scores": types | phases, "changes": {}}, "points of 100")
    if result["final"] is not None:
        print(f"track 1: 0.2 clean + 0.8 corrupted = {result['final']:.2f}")
    print(f"the majority knows {result['majority_knows'] if args.train else 'the evaluated rows themselves'}")
    if "requests" in result["judge"]:
        if result["judge"]["own_prompts"]:
            print(
                "rated with this project's prompts, not the benchmark's: compare with its scores only by --judge_prompts"
            )
        print(spent_line(result["judge"]))
    elif any(name.endswith("METEOR (exact and stems)") for name in result["scores"]):
        from drive_vlm.evaluation.meteor import GET_WORDNET

        print(f"METEOR without WordNet's synonyms; with them: {GET_WORDNET}", file=sys.stderr)


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show)
