"""Scores of action predictions with reasons (BDD-OIA): F1_all, mF1, micro-F1, accuracy, F1 of pairs, next to what no look earns.

Answers are read as text ("Action: ...; Reason: ...") or JSON (keys action, justification). A label out of vocabulary counts for
nothing and is shown; --map_nearest adds a line that takes the nearest label. True labels are the columns "actions" int[4] and
"reason" int[21] of the predictions, which generate keeps, or of the rows of --data. Baselines: the commonest set, the commonest
labels, always one action, prior and random from the labels of --train (without it: of the evaluated rows); blind pictures from
--blind_predictions. Intervals are 95 %, from a bootstrap over videos (the rows' "group"). Several --predictions are compared,
each with the first, on the rows they share. Definitions: drive_vlm/evaluation/oia.py and docs/bddoia.md.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, output_file, run_tool
from drive_vlm.report.tables import write_csv

if TYPE_CHECKING:
    from drive_vlm.data.predictions import Prediction
    from drive_vlm.evaluation.oia import Answers, Estimates, LabelSets

EXAMPLES = """
python tools/oia_eval.py --predictions sft.jsonl a2c.jsonl --train data/train.jsonl --json scores.json --plot f1.png
python tools/oia_eval.py --predictions p.jsonl --blind_predictions blank.jsonl --map_nearest --plot_distribution labels.png
python tools/oia_eval.py --predictions p.jsonl --data data/test.jsonl --on_missing skip --csv rows.csv
"""
# Columns with the labels of a row, and how long they are.
COLUMNS = {"actions": 4, "reason": 21}
# Different texts out of vocabulary that are shown of each kind, the commonest.
SHOWN = 10


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/oia_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", nargs="+", required=True, help="JSONL files, one for each checkpoint")
    add("--data", help="rows with the labels, found by id; every row must then have a prediction")
    flag(
        "--on_missing", ("error", "skip"), "rows of --data without a prediction: stop, or count them and leave them out"
    )
    add("--train", help="rows with labels, usually those of training: what the baselines know")
    add("--blind_predictions", help="predictions of the last checkpoint with blank pictures (generate --blank_images)")
    flag(
        "--map_nearest",
        False,
        "score a second time, texts out of vocabulary read as the nearest label (token F1 from 0.8)",
    )
    add("--csv", type=output_file, help="write one line for each row and checkpoint")
    add("--plot", type=output_file, help="write the F1 scores with their intervals to this PNG")
    add("--plot_distribution", type=output_file, help="write how often labels are true and said to this PNG")
    add("--json", help="write every number to this file")
    flag("--seed", 0, "of the bootstrap and of the baselines prior and random")
    return parser


def labels_of(row: dict[str, Any], where: str) -> tuple[list[int], list[int]]:
    """The row's actions int[4] and reason int[21]; raises ValueError for anything else."""
    for name, size in COLUMNS.items():
        value: Any = row.get(name)
        fits = isinstance(value, list) and len(value) == size
        # Not isinstance: True is an int.
        if not fits or not all(type(number) is int and number in (0, 1) for number in value):
            raise ValueError(
                f'{where}: "{name}" must be a list of {size} numbers 0 or 1, got {json.dumps(value)}; take rows of '
                "tools/build_bddoia.py or tools/build_synthetic.py, or name the file that has the labels (--data)"
            )
    return row["actions"], row["reason"]


def read_sets(path: str) -> "tuple[list[str], LabelSets]":
    """(ids, labels) of all rows of a data file. Raises ValueError for an id that comes twice, and without rows."""
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.evaluation.oia import label_sets

    found: dict[str, tuple[list[int], list[int]]] = {}
    for where, row in JsonlFile(path).places():
        name = str(row.get("id", where)) if isinstance(row, dict) else where
        if name in found:
            raise ValueError(f"{where}: id {name!r} came before; predictions are found by id, so make ids unique")
        found[name] = labels_of(row if isinstance(row, dict) else {}, f"{where}: id {name!r}")
    if not found:
        raise ValueError(f"{path}: no rows")
    return list(found), label_sets(*zip(*found.values(), strict=True))


def true_labels(files: list[list["Prediction"]], args: Any) -> "tuple[LabelSets, list[str]]":
    """The labels of the files' rows, and the ids of --data that have no prediction."""
    from drive_vlm.evaluation.oia import LabelSets, label_sets

    if args.data:
        ids, sets = read_sets(args.data)
        place = {name: index for index, name in enumerate(ids)}
        if lost := next((item for item in files[0] if item.id not in place), None):
            raise ValueError(f"{lost.where}: id {lost.id!r} is not in --data {args.data}; is it the same split?")
        missing = sorted(place.keys() - {item.id for item in files[0]}, key=lambda name: place[name])
        if missing and args.on_missing == "error":
            raise ValueError(
                f"{len(missing):,} of {len(ids):,} rows of {args.data} have no prediction, e.g. {missing[0]}; answer them, or "
                "count them and leave them out with --on_missing skip"
            )
        rows = [place[item.id] for item in files[0]]
        return LabelSets(sets.action[rows], sets.reason[rows]), missing
    each = [[labels_of(item.row, f"{item.where}: id {item.id!r}") for item in items] for items in files]
    for items, labels in zip(files[1:], each[1:], strict=True):
        for item, now, first in zip(items, labels, each[0], strict=True):
            if now != first:
                raise ValueError(f"{item.where}: id {item.id!r} has other labels than in {files[0][0].where}'s file")
    return label_sets(*zip(*each[0], strict=True)), []


def checkpoint(
    items: list["Prediction"], truth: "LabelSets", groups: list[str], args: Any
) -> "tuple[Answers, dict[str, Any]]":
    """The answers of a file, and what --json holds of it."""
    from drive_vlm.evaluation.oia import Answers, distribution, scores

    strict = Answers([item.prediction for item in items])
    entry: dict[str, Any] = {
        "scores": plain(scores(truth, strict.sets, groups, args.seed)),
        "answers": plain_estimates(strict.shares(groups, args.seed)),
        "said": distribution(strict.sets),
        "unknown": {},
        "cut": sum(item.row.get("finish_reason") == "length" for item in items),
        "nearest": None,
    }
    for kind in entry["said"]:
        unknown = strict.unknown(kind)
        entry["unknown"][kind] = {"different": len(unknown), "commonest": unknown.most_common(SHOWN)}
    if args.map_nearest:
        near = Answers(strict.texts, nearest=True)
        entry["nearest"] = {
            "scores": plain(scores(truth, near.sets, groups, args.seed)),
            "said": distribution(near.sets),
        }
    return strict, entry


def plain(estimates: "dict[str, Estimates]") -> dict[str, Any]:
    return {kind: plain_estimates(entries) for kind, entries in estimates.items()}


def plain_estimates(estimates: "Estimates") -> dict[str, Any]:
    return {name: asdict(value) for name, value in estimates.items()}


def run(args: Any) -> dict[str, Any]:
    """Read, score, compare, write CSV and plots; returns what --json holds."""
    from drive_vlm.data.predictions import BLIND, read_blind, read_checkpoints
    from drive_vlm.evaluation.oia import Answers, baselines, changes, distribution, scores

    names, files, left_out = read_checkpoints(args.predictions, need_reference=False)
    truth, missing = true_labels(files, args)
    known = read_sets(args.train)[1] if args.train else truth
    groups = [item.group for item in files[0]]
    result: dict[str, Any] = {
        "rows": len(truth),
        "videos": len(set(groups)),
        "rows_without_prediction": len(missing),
        "missing": missing,
        "true": distribution(truth),
        "baselines_know": args.train,
        "checkpoints": {},
        "baselines": {},
        "comparisons": [],
    }
    said: dict[str, Answers] = {}
    for name, path, items, out in zip(names, args.predictions, files, left_out, strict=True):
        said[name], entry = checkpoint(items, truth, groups, args)
        result["checkpoints"][name] = {"file": path, "ids_left_out": out, **entry}
    if args.csv:
        write_csv(args.csv, CSV_HEAD, csv_rows(files, truth, said))
    for name, sets in baselines(known, len(truth), args.seed).items():
        result["baselines"][name] = {"scores": plain(scores(truth, sets, groups, args.seed))}
    pairs = [(names[0], name) for name in names[1:]]
    if args.blind_predictions:
        blind = Answers([item.prediction for item in read_blind(args.blind_predictions, files[-1], False)])
        said[BLIND] = blind
        result["baselines"][BLIND] = {"scores": plain(scores(truth, blind.sets, groups, args.seed))}
        pairs.append((BLIND, names[-1]))
    for first, second in pairs:
        old, new = said[first], said[second]
        moved = plain(changes(truth, old.sets, new.sets, groups, args.seed))
        shares = plain_estimates(old.share_changes(new, groups, args.seed))
        result["comparisons"].append({"first": first, "second": second, "scores": moved, "answers": shares})
    draw(args, result)
    return result


CSV_HEAD = (
    *(
        "id",
        "dataset",
        "group",
        "checkpoint",
        "form",
        "actions",
        "actions_said",
        "action_F1",
        "reasons",
        "reasons_said",
    ),
    *("reason_F1", "pair_F1", "unknown", "prediction"),
)


def csv_rows(files: list[list["Prediction"]], truth: "LabelSets", said: "dict[str, Answers]") -> Iterator[list[Any]]:
    from drive_vlm.evaluation.oia import KINDS, pair_f1, row_f1

    for items, (name, answers) in zip(files, said.items(), strict=True):
        f1 = {kind: row_f1(truth.of(kind), answers.sets.of(kind)) for kind in KINDS} | {
            "pair": pair_f1(truth, answers.sets)
        }
        for index, item in enumerate(items):
            labels = [_words(sets.of(kind)[index]) for kind in KINDS for sets in (truth, answers.sets)]
            marks = [f"{values[index]:.6f}" for values in f1.values()]
            first = [item.id, item.dataset, item.group, name, answers.read[index].form]
            cells = [*labels[:2], marks[0], *labels[2:], *marks[1:]]
            yield [*first, *cells, "|".join(answers.unknown_of(index)), item.prediction]


def _words(vector: Iterable[bool]) -> str:
    """Numbers of the labels, e.g. "0 3"."""
    return " ".join(str(index) for index, there in enumerate(vector) if there)


def draw(args: Any, result: dict[str, Any]) -> None:
    from drive_vlm.report import oia

    if args.plot:
        oia.plot_scores(args.plot, result)
    if args.plot_distribution:
        oia.plot_distribution(args.plot_distribution, result)


def main() -> None:
    from drive_vlm.report.oia import print_tables

    run_tool(make_parser(), run, lambda result, args: print_tables(result))


if __name__ == "__main__":
    main()
