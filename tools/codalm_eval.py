"""CODA-LM's score: a judge rates the answers of general perception, driving suggestion and region perception.

Reads the project's predictions of rows from tools/build_codalm.py, or, with --data, the benchmark's own answer files
({task}_answer.jsonl). The judge sees the reference and the answer, not the picture, at temperature 0; ratings are read
as published; replies that cannot be read are asked for again, then counted and left out. The prompts are ours: numbers
compare with published ones only with the official prompts (--judge_prompts DIR) and the official judge.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, add_dataclass, from_namespace, plain, run_tool
from drive_vlm.evaluation.codalm import TASKS, Rated, region_class, score
from drive_vlm.judges import open_judge
from drive_vlm.judges.judge import Judge, JudgeConfig, Judgement, Request, judge_all, spent_line
from drive_vlm.judges.verdicts import Turns, fill, parse_rating, read_prompt
from drive_vlm.launch.stop import listening
from drive_vlm.report.tables import interval, print_table
from drive_vlm.store.keyed_lines import JudgedRow, JudgedRows

PROMPTS = Path(__file__).parent / "prompts" / "codalm"
PLACES = ("reference", "prediction")
ANSWER_FILES = tuple(f"{task}_answer{label}.jsonl" for task in TASKS for label in ("", "_w_label"))
EXAMPLES = """
python tools/codalm_eval.py --predictions runs/sft/mini.jsonl --judge_model gpt-4o-2024-05-13 --out mini_ratings.jsonl
python tools/codalm_eval.py --predictions results/ --data data/codalm/mini.jsonl --judge_model gpt-4o-2024-05-13 --judge_prompts official --out ratings.jsonl --json score.json
"""


class RatingRow(JudgedRow):
    """What is read again of a line of --out; `facts_of` says the rest."""

    rating: int | None
    attempts: int


@dataclass(frozen=True)
class Answer:
    """An answer to be rated. `image` is what the intervals draw; `category` is a region's category."""

    where: str
    id: str
    task: str
    image: str
    category: str
    reference: str
    prediction: str


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/codalm_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add(
        "--predictions",
        nargs="+",
        required=True,
        help="predictions JSONL, or published answer files or their folder; together one model's answers",
    )
    add(
        "--data",
        help="rows of tools/build_codalm.py: needed for published answer files; every row must then have an answer",
    )
    add("--out", required=True, help="JSONL of ratings; answers that are in it are not rated again")
    flag("--judge_prompts", str(PROMPTS), "folder with TASK.txt, or TASK.json with example turns")
    flag("--on_missing", ("error", "skip"), "rows without an answer: stop, or count them and leave them out")
    flag("--seed", 0, "of the bootstrap")
    add("--json", help="write every number to this file")
    add_dataclass(parser, JudgeConfig, "judge")
    return parser


def read_rows(path: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of tools/build_codalm.py that have a reference, by task and question_id."""
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.data.samples import parse_row

    rows = {}
    for where, row in JsonlFile(path).places():
        sample = parse_row(row, where, "", need_answer=False)
        if row.get("task") not in TASKS or not isinstance(row.get("question_id"), int):
            raise ValueError(f'{where}: no "task" and "question_id"; build the rows with tools/build_codalm.py')
        reference = sample.reference or row.get("reference")
        if reference:
            rows[row["task"], row["question_id"]] = row | {"reference": reference, "where": where}
    if not rows:
        raise ValueError(f"{path}: no row has a reference answer, so nothing can be rated")
    return rows


def read_answers(args: Any) -> tuple[list[Answer], list[str]]:
    """All answers in order, and the ids of rows without one. Raises ValueError for what does not fit together."""
    rows = read_rows(args.data) if args.data else None
    answers: list[Answer] = []
    for path in answer_files(args.predictions):
        answers += published_answers(path, rows) if path.name in ANSWER_FILES else own_answers(path)
    seen: dict[tuple[str, str], str] = {}
    for answer in answers:
        if (answer.task, answer.id) in seen:
            raise ValueError(f"{answer.where}: {answer.task} {answer.id} came before at {seen[answer.task, answer.id]}")
        seen[answer.task, answer.id] = answer.where
    missing = [str(row["id"]) for row in (rows or {}).values() if (row["task"], str(row["id"])) not in seen]
    if missing and args.on_missing == "error":
        raise ValueError(
            f"{len(missing):,} of {len(rows or {}):,} rows of {args.data} have no answer, e.g. {missing[0]}; answer them, or count them "
            "and leave them out with --on_missing skip"
        )
    return answers, missing


def answer_files(paths: list[str]) -> list[Path]:
    """The files named, folders replaced by the published answer files in them (with labels, where there are both)."""
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        here = [path / name for name in ANSWER_FILES if (path / name).is_file()]
        labelled = {file.name.replace("_w_label", "") for file in here if "_w_label" in file.name}
        here = [file for file in here if file.name not in labelled]
        if not here:
            raise ValueError(f"{path}: none of {', '.join(f'{task}_answer.jsonl' for task in TASKS)} is in this folder")
        found += here
    return found


def own_answers(path: Path) -> list[Answer]:
    """The project's predictions of rows built by tools/build_codalm.py."""
    from drive_vlm.data.predictions import read_predictions

    answers = []
    for item in read_predictions(path):
        task = item.row.get("task")
        if task not in TASKS:
            raise ValueError(
                f'{item.where}: id {item.id!r}: "task" is {json.dumps(task)}, not one of {", ".join(TASKS)}; predict rows of '
                "tools/build_codalm.py, or keep the published file names"
            )
        category = str(item.row.get("category", ""))
        answers.append(Answer(item.where, item.id, task, item.group, category, item.reference, item.prediction))
    return answers


def published_answers(path: Path, rows: dict[tuple[str, int], dict[str, Any]] | None) -> list[Answer]:
    """The answers of one published file, joined to the rows by question_id."""
    from drive_vlm.data.jsonl import JsonlFile

    if rows is None:
        raise ValueError(f"{path}: published answer files hold no references; give --data of tools/build_codalm.py")
    task = re.sub(r"_answer(_w_label)?$", "", path.stem)
    answers = []
    for where, found in JsonlFile(path).places():
        if (
            not isinstance(found, dict)
            or not isinstance(found.get("question_id"), int)
            or not isinstance(found.get("answer"), str)
        ):
            raise ValueError(f'{where}: expected {{"question_id": number, "answer": text}}')
        row = rows.get((task, found["question_id"]))
        if row is None:
            raise ValueError(
                f"{where}: {task} has no question {found['question_id']} with a reference in --data; is it the same split?"
            )
        if "image" in found and Path(found["image"]).name != Path(row["image"]).name:
            raise ValueError(
                f"{where}: answers {found['image']}, but question {found['question_id']} of --data is about {row['image']}"
            )
        name, group, category = (str(row[key]) for key in ("id", "group", "category"))
        answers.append(Answer(where, name, task, group, category, row["reference"], found["answer"]))
    return answers


def read_prompts(folder: str) -> dict[str, Turns]:
    """The turns of each task; TASK.json, where there is one, before TASK.txt."""
    files = {task: Path(folder) / f"{task}.json" for task in TASKS}
    return {
        task: read_prompt(path if path.is_file() else path.with_suffix(".txt"), PLACES) for task, path in files.items()
    }


def rate(answers: list[Answer], prompts: dict[str, Turns], judge: Judge, args: Any) -> tuple[list[dict[str, Any]], int]:
    """Rows of all ratings in order, and how many rows of an earlier run no longer fit."""
    from drive_vlm.store.cache import cache_key

    described = judge.describe()
    keys = [cache_key(described, prompts[a.task], a.task, a.id, a.reference, a.prediction) for a in answers]
    kept = JudgedRows(args.out, keys, args.judge_attempts, RatingRow, list(map(facts_of, answers)))
    todo = kept.missing()
    asked = [
        (prompts[a.task], {"reference": a.reference, "prediction": a.prediction}) for a in (answers[i] for i in todo)
    ]
    requests = [Request(fill(prompt, values)) for prompt, values in asked]
    blocks = judge_all(judge, requests, parse_rating, args.judge_attempts)
    return kept.add_blocks(todo, blocks, lambda _, judged: rating_row(judged)), kept.stale


def facts_of(answer: Answer) -> dict[str, Any]:
    return {"id": answer.id, "task": answer.task, "category": answer.category, "group": answer.image}


def rating_row(judged: "Judgement[int]") -> dict[str, Any]:
    return {"rating": judged.value, "attempts": judged.attempts, "reply": judged.reply} | judged.unread_after()


def show(result: dict[str, Any], args: Any) -> None:
    rows: list[Any] = []
    classes = {f"  region: {name}": entry for name, entry in result["region_classes"].items()}
    for part in (result["tasks"], classes):
        for name, entry in part.items():
            rows.append([name, f"{entry['rated'] + entry['unread']:,}", points(entry), f"{entry['unread']:,}"])
        rows.append(None)
    rows.append(["final (mean of the tasks)", "", points(result["final"]), ""])
    title = "CODA-LM, mean rating x 10, 95 % interval over images"
    print_table(title, ("task", "answers", "score", "unread"), rows)
    if result["note"]:
        print(result["note"])
    for text, count in (
        ("rows without an answer, left out", len(result["missing"])),
        ("answers were asked for again", result["asked_again"]),
        ("ratings of another judge, prompt or answer, dropped", result["ratings_of_other_settings_dropped"]),
    ):
        if count:
            print(f"{count:,} {text}")
    if result["judge"]["own_prompts"]:
        print(
            "rated with this project's prompts, not the published ones: compare with published scores only by --judge_prompts"
        )
    print(spent_line(result["judge"]))


def points(entry: dict[str, Any]) -> str:
    return "-" if entry["score"] is None else f"{entry['score']:.2f}{interval(entry, '.2f')}"


def run(args: Any) -> dict[str, Any]:
    """Read, rate, score; returns what --json holds."""
    config = from_namespace(JudgeConfig, args)
    prompts = read_prompts(args.judge_prompts)
    judge = open_judge(config)
    answers, missing = read_answers(args)
    rows, stale = rate(answers, prompts, judge, args)
    result = score([Rated(row["task"], row["group"], row["category"], row["rating"]) for row in rows], args.seed)
    return plain(result) | {
        "predictions": args.predictions,
        "missing": missing,
        "asked_again": sum(row["attempts"] > 1 for row in rows),
        "unknown_categories": sorted(
            {a.category for a in answers if a.task == TASKS[2] and region_class(a.category) == "unknown"}
        ),
        "ratings_of_other_settings_dropped": stale,
        "judge": {
            "name": config.judge_model,
            "prompts": args.judge_prompts,
            "own_prompts": Path(args.judge_prompts) == PROMPTS,
            **judge.spent(),
        },
    }


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show)
