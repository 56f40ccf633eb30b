"""DriveLM's challenge score of a prediction file: accuracy, language, match, and the GPT part where a judge is given.

Reads the challenge's own list `[{id, question, gt_answer, answer}]` and the project's predictions JSONL, whose ids may
be the official ones, a `drivelm_id` column, or those of tools/build_drivelm.py. Beside the official accuracy stands what answers mean
("The correct answer is B."), with intervals by scene; --judge_seeds says how far the judge's part moves from seed to seed.
"""

import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from drive_vlm.builders.stitching import denormalise_tags
from drive_vlm.config import CommandParser, add_dataclass, from_namespace, plain, run_tool
from drive_vlm.evaluation.drivelm import (
    JUDGE_PROMPT,
    WEIGHTS,
    Judge,
    Pair,
    Question,
    accuracy_table,
    over_seeds,
    parse_rating,
    read_questions,
    score,
)
from drive_vlm.judges import open_judge
from drive_vlm.judges.judge import REFUSED, JudgeConfig, Request, judge_all, spent_line
from drive_vlm.launch.stop import listening
from drive_vlm.report.scores import print_scores
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/drivelm_eval.py --predictions output.json --annotations test_eval.json
python tools/drivelm_eval.py --predictions generated.jsonl --annotations test_eval.json --stitched --json score.json
python tools/drivelm_eval.py --predictions output.json --annotations test_eval.json --judge_model gpt-4o --cache judge --judge_seeds 5
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/drivelm_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", required=True, help="output.json or predictions.jsonl")
    add("--annotations", required=True, help="test_eval.json of the challenge")
    flag("--stitched", False, "answers name points of the stitched 3x2 picture; map them back")
    add("--judge_prompt", help="text file with {reference} and {answer}, instead of the built-in prompt")
    add("--blind_predictions", help="the model's answers to blank pictures, for the accuracy part")
    flag(
        "--judge_seeds",
        1,
        "times the judge rates everything: greedy first, then sampled, each time with other seeds",
        least=1,
    )
    flag("--seed", 0, "of the bootstrap")
    add("--json", help="write the score with all its parts and counts here")
    add_dataclass(parser, JudgeConfig, "judge of the GPT part, which is left out without --judge_model")
    return parser


def load_reference(path: str) -> list[Question]:
    """Raises ValueError for a file that is absent or no test_eval JSON."""
    test = _load_json(path)
    if not isinstance(test, dict):
        raise ValueError(f"{path}: expected {{scene: ...}} as in test_eval.json, got a {type(test).__name__}")
    return read_questions(test, path)


def load_answers(path: str, questions: list[Question], stitched: bool = False) -> dict[str, str]:
    """Official id -> answer. Ids that the test file does not have are left out and reported on stderr.

    Raises ValueError for a row without id or answer, an id that comes twice, and a question that is not the test
    file's under this id (the numbers count within one test file and mean nothing in another).
    """
    known = {question.id: question for question in questions}
    known |= {question.alias: question for question in questions}
    answers: dict[str, str] = {}
    strangers = []
    for where, row in _rows(path):
        name = row.get("drivelm_id", row.get("id"))
        text = row.get("prediction", row.get("answer"))
        if name is None or not isinstance(text, str):
            raise ValueError(f'{where}: a row needs "id" and a text "prediction" (or "answer")')
        question = known.get(str(name)) or known.get(str(row.get("id")))
        if question is None:
            strangers.append(str(name))
            continue
        if question.id in answers:
            raise ValueError(f"{where}: id {name!r} comes twice")
        if "question" in row and _words(row["question"]) != _words(question.question):
            raise ValueError(
                f"{where}: id {name!r} asks {row['question'][:60]!r}, the test file asks {question.question[:60]!r}; "
                "build the rows from this very test file"
            )
        answers[question.id] = denormalise_tags(text) if stitched else text
    if strangers:
        print(f"{path}: {len(strangers)} rows are not in the test file, e.g. {strangers[0]}", file=sys.stderr)
    return answers


def make_judges(args: Any, spent: dict[str, Any]) -> list[Judge]:
    """The judge of the flags once for each of --judge_seeds, or none; what it took comes into `spent`. Raises ValueError for a prompt
    file without its two places."""
    config = from_namespace(JudgeConfig, args)
    if not config.judge_model and config.judge_backend == "openai":
        return []
    model = open_judge(config)
    prompt = _read(args.judge_prompt) if args.judge_prompt else JUDGE_PROMPT
    if "{reference}" not in prompt or "{answer}" not in prompt:
        raise ValueError(f"{args.judge_prompt}: the prompt must hold {{reference}} and {{answer}}")

    def rate(pairs: Sequence[Pair], seed: int) -> list[float | None]:
        requests = [Request((("user", _fill(prompt, answer, reference)),)) for answer, reference in pairs]
        blocks = judge_all(model, requests, _rating, config.judge_attempts, seed * config.judge_attempts)
        found = [judged for block in blocks for judged in block]
        again = spent.get("asked_again", 0) + sum(judged.attempts > 1 for judged in found)
        spent.update(model.spent(), asked_again=again)
        return [judged.value for judged in found]

    return [partial(rate, seed=seed) for seed in range(args.judge_seeds)]


def _rating(reply: str) -> float | None:
    """A refusal's own text may hold numbers."""
    return None if reply.startswith(REFUSED) else parse_rating(reply)


def show(result: dict[str, Any], args: Any) -> None:
    """A table of the parts and one line for everything that was counted on the way."""
    rows = [
        ("GPT", result["gpt"], "100", result["n"]["gpt"], WEIGHTS["gpt"]),
        ("language", result["language"], "1", result["n"]["language"], WEIGHTS["language"]),
        *(
            (f"  {name}", value, "10" if name == "CIDEr" else "1", "", "")
            for name, value in result["language_parts"].items()
        ),
        ("match", result["match"], "100", result["n"]["match"], WEIGHTS["match"]),
        ("  F1", result["match_f1"], "100", "", ""),
        ("  GPT", result["match_gpt"], "100", "", ""),
        ("accuracy", result["accuracy"], "1", result["n"]["accuracy"], WEIGHTS["accuracy"]),
    ]
    cells = [
        (part, "-" if value is None else f"{value:.4f}", scale, str(count), str(weight))
        for part, value, scale, count, weight in rows
    ]
    print_table("DriveLM", ("part", "score", "of", "questions", "weight"), cells)
    if result["final"] is None:
        print(f"no final score: {result['note']}")
        print(f"parts at hand: {result['covered_score']:.4f} of the weights' {result['covered_weight']:.1f}")
    else:
        print(f"final score: {result['final']:.4f}")
    if result["accuracy_table"]:
        print_scores(result["accuracy_table"], "points of 100")
    for name, found in (result["judge_seeds"] or {}).items():
        values = ", ".join("-" if value is None else f"{value:.4f}" for value in found["values"])
        spread = "-" if found["sd"] is None else f"{found['sd']:.4f}"
        print(f"{name} over {len(found['values'])} seeds of the judge: {values}; standard deviation {spread}")
    print(f"{result['questions']} questions: {result['counted']} counted, {result['gated']} gated out by the graph")
    warnings = {
        "answers missing (scored as empty)": result["missing"],
        "answers with an odd number of decimals": result["odd_decimals"],
        "coordinates without decimals, which the official rule ignores": result["ignored_coordinates"],
        "answers were asked about again": result["judge"].get("asked_again", 0),
        "replies of the judge without a rating (left out of the mean)": result["unrated"],
    }
    for text, count in warnings.items():
        if count:
            print(f"{count} {text}")
    if result["judge"]:
        print(spent_line(result["judge"]))


def _rows(path: str) -> list[tuple[str, dict[str, Any]]]:
    """("file:line" or "file[i]", row) of a JSONL file or a JSON list; the first character tells which."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    with open(path, "rb") as file:
        is_list = file.read(64).lstrip().startswith(b"[")
    if is_list:
        rows = [(f"{path}[{index}]", row) for index, row in enumerate(_load_json(path))]
    else:
        from drive_vlm.data.jsonl import JsonlFile

        rows = list(JsonlFile(path).places())
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object, got {type(row).__name__}")
    return rows


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def _load_json(path: str) -> Any:
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error


def _fill(prompt: str, answer: str, reference: str) -> str:
    """Both texts put in at once, so that braces inside an answer stay as they are."""
    values = {"{reference}": reference, "{answer}": answer}
    return re.sub(r"\{reference\}|\{answer\}", lambda match: values[match.group(0)], prompt)


def _words(question: str) -> str:
    """A question without pictures, coordinates and blanks: stitched rows carry other numbers."""
    return re.sub(r"<image>|[\d.,\[\]\s]+", "", question)


def run(args: Any) -> dict[str, Any]:
    """Read and score; returns what --json holds."""
    questions = load_reference(args.annotations)
    answers = load_answers(args.predictions, questions, args.stitched)
    spent: dict[str, Any] = {}
    judges = make_judges(args, spent)
    result = score(questions, answers, judges[0] if judges else None)
    record = {"predictions": args.predictions, "reference": args.annotations, "judge_model": args.judge_model}
    blind = load_answers(args.blind_predictions, questions, args.stitched) if args.blind_predictions else None
    table = accuracy_table(questions, answers, args.seed, blind)
    return (
        record
        | plain(result)
        | {"accuracy_table": table.to_dict() if table else None}
        | {"judge_seeds": over_seeds(questions, answers, result, judges[1:]) if judges[1:] else None, "judge": spent}
    )


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show)
