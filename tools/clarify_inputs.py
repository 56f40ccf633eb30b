"""What tools/clarify_eval.py reads: rows and replies by id, answers to questions back, people's labels; checked, nothing left out in silence."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drive_vlm.data.predictions import Prediction
    from drive_vlm.evaluation.clarify_raters import Label
    from drive_vlm.evaluation.clarify_replies import ClarifyRow


@dataclass(frozen=True)
class Rows:
    """The rows that all checkpoints answered. `columns` are those of --data, else of the first file's predictions."""

    items: "list[list[Prediction]]"
    clarify: "list[ClarifyRow]"
    columns: list[dict[str, Any]]
    meant: list[int | None]
    missing: list[str]


def read_rows(args: Any) -> tuple[list[str], Rows, list[int]]:
    """(names, rows, ids that each file has alone)."""
    from drive_vlm.builders.ambiguity.followups import meant_in
    from drive_vlm.data.predictions import read_checkpoints
    from drive_vlm.evaluation.clarify_replies import ClarifyRow

    names, files, left_out = read_checkpoints(args.predictions, need_reference=False)
    columns, missing = [item.row for item in files[0]], []
    places = [f"{item.where}: id {item.id!r}" for item in files[0]]
    if args.data:
        known = rows_of(args.data)
        if lost := next((item for item in files[0] if item.id not in known), None):
            raise ValueError(f"{lost.where}: id {lost.id!r} is not in --data {args.data}; is it the same split?")
        answered = {item.id for item in files[0]}
        missing = [name for name in known if name not in answered]
        no_answer(args, missing, f"of {len(known):,} rows of {args.data} have no prediction in every file")
        columns = [known[item.id][1] for item in files[0]]
        places = [f"{known[item.id][0]}: id {item.id!r}" for item in files[0]]
    rows = [ClarifyRow.read(row, where) for row, where in zip(columns, places, strict=True)]
    if not args.data:
        for items in files[1:]:
            for item, row in zip(items, rows, strict=True):
                if ClarifyRow.read(item.row, f"{item.where}: id {item.id!r}") != row:
                    raise ValueError(
                        f"{item.where}: id {item.id!r} has other columns than in {args.predictions[0]}; answer the same rows"
                    )
    meant = [meant_in({**row, "id": item.id}, args.seed) for row, item in zip(columns, files[0], strict=True)]
    return names, Rows(files, rows, columns, meant, missing), left_out


def rows_of(path: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """(file:line, row) by id. Raises ValueError for an id that comes twice, and without rows."""
    from drive_vlm.data.jsonl import JsonlFile

    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, row in JsonlFile(path).places():
        if not isinstance(row, dict) or "id" not in row:
            raise ValueError(f'{where}: a row must be an object with an "id"; take rows of tools/build_ambiguity.py')
        if str(row["id"]) in found:
            raise ValueError(f"{where}: id {row['id']!r} came before; predictions are found by id, so make ids unique")
        found[str(row["id"])] = (where, row)
    if not found:
        raise ValueError(f"{path}: no rows")
    return found


def no_answer(args: Any, missing: Sequence[str], words: str) -> None:
    """Raises ValueError where answers are missing, unless they are to be skipped."""
    if missing and args.on_missing == "error":
        raise ValueError(
            f"{len(missing):,} {words}, e.g. {missing[0]}; answer them, or count them and leave them out with --on_missing skip"
        )


def read_training(runs: Sequence[str]) -> dict[str, Any]:
    """{name: {run, curves {metric: [[step, value]]}, canaries [{step, earned {canary: its best reward}}]}} of runs on the reward
    "clarify", from their metrics.jsonl and probes.jsonl. Raises ValueError for a folder that is none."""
    from drive_vlm.data.predictions import checkpoint_names
    from drive_vlm.launch.checkpoint import with_step
    from drive_vlm.store.keyed_lines import read_lines

    found = {}
    for name, run in zip(checkpoint_names(list(runs)), runs, strict=True):

        def lines(file: str, run: str = run) -> list[dict[str, Any]]:
            way_out = f"Remove the line, or leave {run} out of --training"
            return [row for _, row in read_lines(Path(run) / file, "not a line of a run", way_out, with_step)]

        curves: dict[str, list[list[float]]] = {}
        for line in lines("metrics.jsonl"):
            for metric, value in line.items():
                if metric.startswith(("clarify/", "alarm/", "reward")) and isinstance(value, int | float):
                    curves.setdefault(metric, []).append([line["step"], value])
        if not any(metric.startswith("clarify/") for metric in curves):
            raise ValueError(
                f"--training {run}: no metrics.jsonl with clarify/ metrics; give the folder of a run with --rewards clarify"
            )
        canaries = [
            {"step": line["step"], "earned": earned}
            for line in lines("probes.jsonl")
            if (earned := best_of(line.get("clarify", {}).get("canaries", {})))
        ]
        found[name] = {"run": run, "curves": curves, "canaries": canaries}
    return found


def best_of(canaries: dict[str, list[float | None]]) -> dict[str, float]:
    """The most that each canary reply earns on a row; none for one without a verdict."""
    read = {name: [reward for reward in rewards if reward is not None] for name, rewards in canaries.items()}
    return {name: max(rewards) for name, rewards in read.items() if rewards}


def one_each(args: Any, flag: str) -> list[Any]:
    """The values of a flag that has one for each checkpoint; None where it is not given, or is "none"."""
    given, wanted = getattr(args, flag), len(args.predictions)
    if given is not None and len(given) != wanted:
        raise ValueError(f"--{flag}: {len(given)} for {wanted} --predictions; give one for each, in their order")
    return [None if str(value) == "none" else value for value in given or [None] * wanted]


def read_after(
    path: str | None, items: "list[Prediction]", rows: Rows, asked: list[bool], args: Any
) -> tuple[dict[int, str], list[str]]:
    """({row: the second reply}, ids of asked rows without one). Raises ValueError for answers to another question back, or of another seed."""
    from drive_vlm.builders.ambiguity.followups import after_id
    from drive_vlm.data.predictions import read_predictions

    # The file of a checkpoint that never asked has no rows.
    if path is None or not any(asked):
        return {}, []
    found = {item.id: item for item in read_predictions(path, need_reference=False)}
    texts, missing = {}, []
    for i, item in enumerate(items):
        if not asked[i]:
            continue
        if (second := found.get(after_id(item.id))) is None:
            missing.append(item.id)
            continue
        where = f"{second.where}: id {second.id!r}"
        if second.row.get("back") != item.prediction:
            raise ValueError(
                f"{where} answers another question back than {item.where} asks; write the dialogues again (--write_dialogues)"
            )
        if second.row.get("target") != rows.meant[i]:
            raise ValueError(f"{where}: its user means candidate {second.row.get('target')}, with --seed {args.seed} it is {rows.meant[i]}; give the seed of --write_dialogues")  # fmt: skip
        texts[i] = second.prediction
    no_answer(args, missing, f"questions back have no answer in {path}")
    return texts, missing


def read_human(path: str, names: list[str], items: "list[Prediction]") -> "dict[tuple[str, int], Label]":
    """Labels by (checkpoint, row). Raises ValueError with file:line."""
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.evaluation.clarify_raters import FIELDS, Label

    if not Path(path).is_file():
        raise ValueError(f"--human {path}: no such file")
    if path.endswith(".csv"):
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines: list[tuple[str, Any]] = [(f"{path}:{reader.line_num}", row) for row in reader]
    else:
        lines = list(JsonlFile(path).places())
    place = {item.id: i for i, item in enumerate(items)}
    found: dict[tuple[str, int], Label] = {}
    for where, row in lines:
        if not isinstance(row, dict) or row.get("id") is None:
            raise ValueError(f"{where}: expected the columns id, {', '.join(FIELDS)}")
        name = row.get("checkpoint") or (names[0] if len(names) == 1 else None)
        if name not in names:
            raise ValueError(f'{where}: "checkpoint" is {json.dumps(name)}, not one of {", ".join(names)}')
        if str(row["id"]) not in place:
            raise ValueError(f"{where}: id {row['id']!r} has no prediction")
        key = (name, place[str(row["id"])])
        if key in found:
            raise ValueError(f"{where}: id {row['id']!r} of {name} has a label before")
        try:
            found[key] = Label.read(row)
        except ValueError as error:
            raise ValueError(f"{where}: id {row['id']!r}: {error}") from error
    if not found:
        raise ValueError(f"{path}: no labels")
    return found


def image_root(args: Any) -> str:
    return args.image_root or str(Path(args.data or args.predictions[0]).resolve().parent)
