"""Scores of meta-actions (Senna, AlphaDrive): accuracy, F1 by class, confusion, next to the commonest class and a model without pictures.

The true classes are the columns `speed_class`, `path_class` and `classes` of the predictions, which generate keeps, or of the rows of
--data (tools/build_meta_actions.py). "official" is what the published scripts count, which look for the words anywhere in an answer;
"read" understands the answer as a whole, and counts what it cannot read, which is no class and not right. Baselines: the commonest
pair of classes of --train (without it: of the evaluated rows), and --blind_predictions. Intervals are 95 %, from a bootstrap over
scenes. Definitions: drive_vlm/evaluation/meta_actions.py.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, output_file, run_tool
from drive_vlm.report.tables import write_csv

if TYPE_CHECKING:
    from drive_vlm.data.predictions import Prediction
    from drive_vlm.evaluation.meta_actions import Labels, MetaAction

EXAMPLES = """
python tools/meta_action_eval.py --predictions sft.jsonl grpo.jsonl --train data/meta/train.jsonl --json scores.json
python tools/meta_action_eval.py --predictions p.jsonl --data data/meta/val.jsonl --blind_predictions blank.jsonl --csv rows.csv
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/meta_action_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", nargs="+", required=True, help="JSONL files, one for each checkpoint")
    add("--data", help="rows with the classes, found by id; every row must then have a prediction")
    flag(
        "--on_missing",
        ("error", "skip"),
        "rows of --data without a prediction: stop, or leave them out and mark the scores as partial",
    )
    add("--train", help="rows with classes, usually those of training: what the commonest pair is of")
    add("--blind_predictions", help="predictions of the last checkpoint with blank pictures (generate --blank_images)")
    add("--csv", type=output_file, help="write one line for each row and checkpoint")
    add("--json", help="write every number to this file")
    flag("--seed", 0, "of the bootstrap")
    return parser


def true_action(row: dict[str, Any], where: str) -> "tuple[MetaAction, str]":
    """(the classes of a row, the set that they are of). Raises ValueError, naming the place, for a row without them."""
    from drive_vlm.evaluation.meta_actions import CLASSES, SPEEDS, VERSION, MetaAction

    speed, path, classes = (row.get(name) for name in ("speed_class", "path_class", "classes"))
    if row.get("protocol") != VERSION:
        found = repr(row["protocol"]) if "protocol" in row else "none"
        raise ValueError(
            f"{where}: the row's protocol is {found}, expected {VERSION!r}; take rows of tools/build_meta_actions.py, or name the file "
            "that has the classes (--data)"
        )
    if classes not in CLASSES or speed not in SPEEDS or path not in CLASSES[classes]:
        raise ValueError(
            f"{where}: speed_class {speed!r}, path_class {path!r} of the classes {classes!r} are not known"
        )
    return MetaAction(speed, path), classes


def read_actions(path: str) -> "dict[str, tuple[MetaAction, str]]":
    """The classes of all rows of a data file by id."""
    from drive_vlm.data.predictions import rows_by_id

    return {name: true_action(row, f"{where}: id {name!r}") for name, (where, row) in rows_by_id(path).items()}


def one_set(actions: "list[tuple[MetaAction, str]]", what: str) -> str:
    sets = {classes for _, classes in actions}
    if len(sets) > 1:
        raise ValueError(f"{what}: rows of the classes {' and '.join(sorted(sets))}; score each set on its own")
    return sets.pop()


def truth_of(items: "list[Prediction]", args: Any) -> "tuple[list[MetaAction], str, list[str]]":
    """(true classes of the files' rows, the set that they are of, ids of --data that have no prediction)."""
    from drive_vlm.data.predictions import rows_by_id
    from drive_vlm.evaluation.score_table import match_predictions

    rows = {item.id: (item.where, item.row) for item in items}
    if args.data:
        rows = rows_by_id(args.data)
        match_predictions({name: row for name, (_, row) in rows.items()}, items, args.data, args.on_missing)
    chosen = [true_action(rows[item.id][1], f"{rows[item.id][0]}: id {item.id!r}") for item in items]
    said = {item.id for item in items}
    return [action for action, _ in chosen], one_set(chosen, "the rows"), [name for name in rows if name not in said]


def entry_of(true: "Labels", said: "Labels", groups: list[str], seed: int) -> dict[str, Any]:
    from drive_vlm.evaluation.meta_actions import KINDS, confusion, scores

    found = {name: asdict(value) for name, value in scores(true, said, groups, seed).items()}
    return {"scores": found, "confusion": {kind: confusion(true, said, kind) for kind in KINDS}}


def headline(
    items: "list[Prediction]",
    actions: "list[MetaAction]",
    true: "Labels",
    said: "dict[str, Labels]",
    name: str,
    bases: list[str],
    missing: int,
    seed: int,
) -> dict[str, Any]:
    """The last checkpoint in the form that all evaluators share: its accuracies, official and as read, next to the baselines'."""
    from drive_vlm.evaluation.meta_actions import KINDS, VERSION, official_right
    from drive_vlm.evaluation.score_table import BASELINES, ScoreTable

    rows, groups = len(actions), [item.group for item in items]
    found = ScoreTable("meta-actions", VERSION, rows + missing, rows, seed=seed)
    right = {system: labels.right(true) for system, labels in said.items()}
    official = official_right(actions, [item.prediction for item in items])
    found.unread = int((~said[name].read).sum())
    found.differ = int((official != right[name]).sum())
    found.add("accuracy, strict", official.astype(float), groups)
    found.add("accuracy, lenient", right[name].astype(float), groups, unread=found.unread)
    for kind in KINDS:
        found.add(f"{kind}, lenient", (said[name].of(kind) == true.of(kind)).astype(float), groups)
    for base in bases:
        found.add(f"accuracy, {base}", right[base].astype(float), groups, section=BASELINES)
    return found.to_dict()


def run(args: Any) -> dict[str, Any]:
    """Read, score, compare, write the CSV; returns what --json holds."""
    from drive_vlm.data.predictions import BLIND, read_blind, read_checkpoints
    from drive_vlm.evaluation import meta_actions as meta

    names, files, left_out = read_checkpoints(args.predictions, need_reference=False)
    actions, classes, missing = truth_of(files[0], args)
    true, groups = meta.labels(actions, classes), [item.group for item in files[0]]
    known = true
    if args.train:
        rows = list(read_actions(args.train).values())
        if (other := one_set(rows, f"--train {args.train}")) != classes:
            raise ValueError(f"--train {args.train} is of the classes {other!r}, the predictions of {classes!r}")
        known = meta.labels([action for action, _ in rows], classes)

    def read(items: "list[Prediction]") -> "Labels":
        return meta.labels([meta.read_meta_action(item.prediction) for item in items], classes)

    said = {name: read(items) for name, items in zip(names, files, strict=True)}
    common = meta.majority(known, len(actions))
    said["commonest"] = common
    if args.blind_predictions:
        said[BLIND] = read(read_blind(args.blind_predictions, files[-1], False))
    bases = list(said)[len(names) :]
    result: dict[str, Any] = headline(files[-1], actions, true, said, names[-1], bases, len(missing), args.seed)
    if any(left_out):
        result["partial"].append(f"{sum(left_out):,} ids are not in every file")
    result |= {
        "classes": classes,
        "rows": len(actions),
        "missing": missing,
        "scenes": len(set(groups)),
        "baselines_know": args.train,
        "checkpoints": {},
        "references": {},
        "comparisons": [],
    }
    paths = meta.CLASSES[classes]
    for name, path, items, out in zip(names, args.predictions, files, left_out, strict=True):
        official = meta.official_scores(actions, [item.prediction for item in items], paths)
        cut = sum(item.row.get("finish_reason") == "length" for item in items)
        entry = {"file": path, "ids_left_out": out, "cut": cut, "official": official}
        result["checkpoints"][name] = entry | entry_of(true, said[name], groups, args.seed)
    for name in bases:
        result["references"][name] = entry_of(true, said[name], groups, args.seed)
    pairs = [(names[0], name) for name in names[1:]] + [(base, name) for name in names for base in bases]
    for first, second in pairs:
        moved = meta.changes(true, said[first], said[second], groups, args.seed)
        scores = {name: asdict(value) for name, value in moved.items()}
        result["comparisons"].append({"first": first, "second": second, "scores": scores})
    if args.csv:
        write_csv(args.csv, CSV_HEAD, csv_rows(names, files, actions, said))
    return result


CSV_HEAD = (
    "id", "dataset", "group", "checkpoint", "speed", "path", "speed_said", "path_said", "right", "prediction",
)  # fmt: skip


def csv_rows(
    names: list[str], files: "list[list[Prediction]]", actions: "list[MetaAction]", said: "dict[str, Labels]"
) -> Iterator[list[Any]]:
    from drive_vlm.evaluation.meta_actions import KINDS

    for name, items in zip(names, files, strict=True):
        labels = said[name]
        for index, (item, true) in enumerate(zip(items, actions, strict=True)):
            words = [labels.names(kind)[place] if (place := int(labels.of(kind)[index])) >= 0 else "" for kind in KINDS]
            right = int(words == [true.speed, true.path])
            yield [item.id, item.dataset, item.group, name, true.speed, true.path, *words, right, item.prediction]


def main() -> None:
    from drive_vlm.report.meta_actions import print_tables

    run_tool(make_parser(), run, lambda result, args: print_tables(result))


if __name__ == "__main__":
    main()
