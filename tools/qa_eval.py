"""Answer accuracy: exact match after normalisation, with what a blind model and a guess would get next to it.

Normalised: lower case, no punctuation, no articles, single spaces (drive_vlm/evaluation/answer_accuracy.py). Accuracy
comes overall, for each category and for each template, with 95 % bootstrap intervals that resample whole scenes.
Baselines, from --train: the commonest training answer of the question's template, and chance (one over the number of
different training answers of the template); from --blind_predictions: the same model with its pictures blanked.
Several --predictions compare checkpoints on the questions they have in common.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.report.tables import console, interval, table, write_csv

if TYPE_CHECKING:
    import numpy as np

    from drive_vlm.data.predictions import Prediction
    from drive_vlm.evaluation.answer_accuracy import TrainingAnswers

EXAMPLES = """
python tools/qa_eval.py --predictions before.jsonl after.jsonl --train data/train.jsonl --json accuracy.json
python tools/qa_eval.py --predictions p.jsonl --train data/train.jsonl --blind_predictions blank.jsonl --out answers.csv
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/qa_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", nargs="+", required=True, help="JSONL files, one for each checkpoint")
    add("--train", help="training rows, for the majority baseline and chance")
    add("--blind_predictions", help="predictions of the last checkpoint with its pictures blanked")
    flag("--template_column", "template", "column that says which questions are alike")
    flag("--category_column", "category", "column of the coarse kind of question")
    add("--out", help="CSV with one line for each question and checkpoint")
    add("--json", help="write every number to this file")
    flag("--seed", 0, "of the bootstrap")
    return parser


def training_answers(path: str, template_column: str) -> "TrainingAnswers":
    """Every assistant turn of the training rows, counted under the row's template; errors name file:line."""
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.data.samples import parse_row
    from drive_vlm.evaluation.answer_accuracy import TrainingAnswers

    answers = TrainingAnswers()
    for where, row in JsonlFile(path).places():
        sample = parse_row(row, where, "")
        template = column(row, template_column, where)
        for turn in sample.turns:
            if turn.role == "assistant":
                answers.add(template, turn.text)
    if not answers.overall:
        raise ValueError(f"--train {path}: no rows")
    return answers


def column(row: dict[str, Any], name: str, where: str) -> str:
    if row.get(name) in (None, ""):
        raise ValueError(
            f'{where}: the row has no "{name}", which says which questions are alike; '
            "name another column (--template_column, --category_column)"
        )
    return str(row[name])


def accuracy(values: "np.ndarray", items: list["Prediction"], seed: int) -> dict[str, Any]:
    """{n, groups, accuracy, low, high} of values float[N] (0 or 1)."""
    from drive_vlm.evaluation.statistics import summarize

    result = summarize(values, [item.group for item in items], seed).to_dict()
    kept = {name: result[name] for name in ("low", "high")}
    return {"n": result["n"], "groups": result["groups"], "accuracy": result["mean"], **kept}


def accuracy_by(values: "np.ndarray", items: list["Prediction"], name: str, seed: int) -> dict[str, Any]:
    """`accuracy` of each value of a column; rows without the column stand under "(none)"."""
    members: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        members.setdefault(str(item.row.get(name) or "(none)"), []).append(index)
    return {key: accuracy(values[rows], [items[i] for i in rows], seed) for key, rows in sorted(members.items())}


def blind_baselines(items: list["Prediction"], args: Any) -> tuple[dict[str, Any], "np.ndarray | None"]:
    """Majority, chance and blanked accuracy on `items`, and the better blind one's values float[N] (None: no data)."""
    from drive_vlm.data.predictions import read_blind
    from drive_vlm.evaluation.answer_accuracy import correct_answers

    result: dict[str, Any] = {}
    values: dict[str, Any] = {}
    references = [item.reference for item in items]
    if args.train:
        answers = training_answers(args.train, args.template_column)
        templates = [column(item.row, args.template_column, f"{item.where}: id {item.id!r}") for item in items]
        values["majority"] = correct_answers(answers.majority(templates), references)
        result["chance"] = float(answers.chance(templates).mean())
        result["questions_of_unseen_templates"] = sum(template not in answers.by_template for template in templates)
    if args.blind_predictions:
        blanked = read_blind(args.blind_predictions, items)
        values["blanked"] = correct_answers([item.prediction for item in blanked], references)
    for name, correct in values.items():
        result[name] = accuracy(correct, items, args.seed)
    if not values:
        return result, None
    best = max(values, key=lambda name: values[name].mean())
    result["blind"] = {"which": best, **result[best]}
    return result, values[best]


def run(args: Any) -> dict[str, Any]:
    """Read, score, write the CSV; returns what --json holds."""
    from drive_vlm.data.predictions import read_checkpoints
    from drive_vlm.evaluation.answer_accuracy import correct_answers
    from drive_vlm.evaluation.statistics import paired_difference

    names, files, left_out = read_checkpoints(args.predictions)
    correct = [correct_answers([i.prediction for i in items], [i.reference for i in items]) for items in files]
    baselines, blind = blind_baselines(files[-1], args)
    groups = [item.group for item in files[0]]
    result: dict[str, Any] = {"checkpoints": {}, "baselines": baselines, "comparisons": []}
    for name, path, items, values, missing in zip(names, args.predictions, files, correct, left_out, strict=True):
        result["checkpoints"][name] = {
            "file": path,
            **accuracy(values, items, args.seed),
            "ids_left_out": missing,
            "by_category": accuracy_by(values, items, args.category_column, args.seed),
            "by_template": accuracy_by(values, items, args.template_column, args.seed),
            "above_blind": None if blind is None else paired_difference(blind, values, groups, args.seed).to_dict(),
        }
    for name, values in zip(names[1:], correct[1:], strict=True):
        change = paired_difference(correct[0], values, groups, args.seed).to_dict()
        result["comparisons"].append({"first": names[0], "second": name, **change})
    if args.out:
        head = ("id", "dataset", "checkpoint", "category", "template", "correct", "prediction", "reference")
        write_csv(args.out, head, csv_rows(names, files, correct, args))
    return result


def csv_rows(names: list[str], files: list[list["Prediction"]], correct: list, args: Any) -> Iterator[list[Any]]:
    for name, items, values in zip(names, files, correct, strict=True):
        for item, value in zip(items, values, strict=True):
            kinds = [item.row.get(args.category_column, ""), item.row.get(args.template_column, "")]
            yield [item.id, item.dataset, name, *kinds, int(value), item.prediction, item.reference]


def show(result: dict[str, Any], args: Any) -> None:
    screen, checkpoints, baselines = console(), result["checkpoints"], result["baselines"]
    first = next(iter(checkpoints.values()))
    rows: list[Any] = [["all", str(first["n"]), *map(_percent, checkpoints.values())], None]
    for part in ("by_category", "by_template"):
        for key, entry in first[part].items():
            rows.append(
                [key, str(entry["n"]), *(_percent(checkpoint[part][key]) for checkpoint in checkpoints.values())]
            )
        rows.append(None)
    screen.print(table("answer accuracy, 95 % interval", ("questions", "n", *checkpoints), rows))
    words = {"majority": "majority training answer of the template", "blanked": "same model, pictures blanked"}
    for key, title in words.items():
        if key in baselines:
            screen.print(f"blind, {title}: {_percent(baselines[key])}")
    if "chance" in baselines:
        screen.print(f"chance: {baselines['chance']:.1%}")
    if count := baselines.get("questions_of_unseen_templates"):
        screen.print(f"{count} questions have a template that training never saw; all training answers stand in")
    for name, checkpoint in checkpoints.items():
        if checkpoint["above_blind"]:
            screen.print(f"{name} above the better blind baseline: {_points(checkpoint['above_blind'])}")
        if checkpoint["ids_left_out"]:
            screen.print(f"{name}: {checkpoint['ids_left_out']} ids left out, missing in another file")
    for entry in result["comparisons"]:
        screen.print(
            f"{entry['second']} - {entry['first']}: {_points(entry)} (newly right {entry['wins']}, newly wrong "
            f"{entry['losses']} of {entry['n']})"
        )


def _percent(entry: dict[str, Any]) -> str:
    return f"{entry['accuracy']:.1%}{interval(entry, '.1%')}"


def _points(entry: dict[str, Any]) -> str:
    return f"{100 * entry['difference']:+.1f} points{interval(entry, '+.1f', 100)}"


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
