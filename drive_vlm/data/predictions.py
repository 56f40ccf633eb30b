"""Prediction rows `{"id", "dataset", "prediction", "reference", "image", ...}`: written by `generate`, read by every evaluator.

The column "reference" holds the row's own answer. The name is public (other tools read these files); elsewhere in this
project a *reference* is the frozen model that preference training compares with.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import Sample
from drive_vlm.store.keyed_lines import cut_torn_line, read_lines, write_lines


@dataclass(frozen=True)
class Prediction:
    """One checked row. `where` is "file:line"; `row` keeps the extra columns (category, template, group ...)."""

    where: str
    id: str
    dataset: str
    prediction: str
    reference: str
    images: tuple[str, ...]
    row: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """What names the same question in two prediction files."""
        return self.dataset, self.id

    @property
    def group(self) -> str:
        """The same for rows that are not independent: the row's `group`, else its pictures, else its id."""
        return str(self.row.get("group") or "|".join(self.images) or self.id)


class Answer(NamedTuple):
    """What a model said. `finish_reason`: stop, length (cut at the limit of new tokens) or refused (a server gave no answer)."""

    text: str
    finish_reason: str = "stop"


def read_predictions(path: str | Path, need_reference: bool = True) -> list[Prediction]:
    """All rows of one prediction file, checked.

    An empty prediction is a result (the model said nothing) and stays; an empty reference (answers about videos that have
    no rows) only without `need_reference`. Raises ValueError with file:line and id for a row without id, prediction or
    reference, for an id that comes twice in one data set, and for a file without rows.
    """
    rows: list[Prediction] = []
    seen: dict[tuple[str, str], str] = {}
    for where, row in JsonlFile(path).places():
        item = parse_prediction(row, where, need_reference)
        if item.key in seen:
            raise ValueError(
                f"{item.where}: id {item.id!r} came before at {seen[item.key]}; ids must be unique in a file"
            )
        seen[item.key] = item.where
        rows.append(item)
    if not rows:
        raise ValueError(f"{path}: no rows; expected one prediction a line (python -m drive_vlm generate writes it)")
    return rows


def parse_prediction(row: Any, where: str, need_reference: bool = True) -> Prediction:
    """One decoded row, checked; raises ValueError with `where` (file:line) and the id."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
    if "id" not in row:
        raise ValueError(f'{where}: the row has no "id"; every row of a prediction file needs one')
    name = f"{where}: id {str(row['id'])!r}"
    if not need_reference and row.get("reference") is None:
        row = row | {"reference": ""}
    for column in ("prediction", "reference"):
        if not isinstance(row.get(column), str):
            raise ValueError(f'{name}: "{column}" must be a text, got {json.dumps(row.get(column))}')
    if need_reference and not row["reference"].strip():
        raise ValueError(f'{name}: "reference" is empty; there is nothing to compare with')
    image = row.get("image") or row.get("images") or []
    images = [image] if isinstance(image, str) else image
    if not isinstance(images, list) or not all(isinstance(path, str) and path for path in images):
        raise ValueError(f'{name}: "image" must be a path or a list of paths, got {json.dumps(image)}')
    dataset = str(row.get("dataset") or "unnamed")
    return Prediction(where, str(row["id"]), dataset, row["prediction"], row["reference"], tuple(images), row)


def checkpoint_names(paths: Sequence[str]) -> list[str]:
    """Short names that differ: the file stems, with as many parent folders as it takes."""
    parts = [Path(path).resolve().with_suffix("").parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"--predictions names a file twice: {', '.join(paths)}")


def read_checkpoints(
    paths: Sequence[str], need_reference: bool = True
) -> tuple[list[str], list[list[Prediction]], list[int]]:
    """(names, rows, ids left out) of the files of --predictions, of each the samples that all have. Raises ValueError."""
    names = checkpoint_names(paths)
    return names, *common_samples([read_predictions(path, need_reference) for path in paths])


def common_samples(files: list[list[Prediction]]) -> tuple[list[list[Prediction]], list[int]]:
    """The samples that every file has, in the order of the first file, and how many more each file has.

    Raises ValueError when no sample is common, or when one sample has two different references.
    """
    tables = [{item.key: item for item in items} for items in files]
    keys = [key for key in tables[0] if all(key in table for table in tables)]
    if not keys:
        raise ValueError("the prediction files have no id in common; compare files generated from the same rows")
    for key in keys:
        first = tables[0][key]
        for table in tables[1:]:
            if table[key].reference != first.reference:
                other = table[key]
                raise ValueError(
                    f"{other.where}: id {other.id!r} has another reference than at {first.where}; "
                    "compare files generated from the same rows"
                )
    return [[table[key] for key in keys] for table in tables], [len(table) - len(keys) for table in tables]


def rows_by_id(path: str | Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """{id: ("file:line", row)} of a file of rows, in its order. Raises ValueError for what is no object with an id, for an id that comes
    twice, and without rows."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, row in JsonlFile(path).places():
        if not isinstance(row, dict) or row.get("id") is None:
            raise ValueError(f'{where}: not a row with an "id"; predictions are found by it')
        name = str(row["id"])
        if name in found:
            raise ValueError(f"{where}: id {name!r} came before at {found[name][0]}; ids must be unique in a file")
        found[name] = (where, row)
    if not found:
        raise ValueError(f"{path}: no rows")
    return found


# The baseline that is a model's answers to blank pictures.
BLIND = "blind pictures"


def read_blind(path: str, items: list[Prediction], need_reference: bool = True) -> list[Prediction]:
    """The answers of a --blind_predictions file to `items`, in their order. Raises ValueError where one is missing."""
    (_, blind), (missing, _) = common_samples([items, read_predictions(path, need_reference)])
    if missing:
        raise ValueError(
            f"--blind_predictions {path} lacks {missing} of {len(items)} questions; generate it from the same rows"
        )
    return blind


def prediction_row(sample: Sample, answer: str, finish_reason: str = "stop") -> dict[str, Any]:
    """A row of the predictions file: the contract's keys, then the row's own extra columns.

    An answer that is not whole says why in "finish_reason" (Answer). A row's own column "reference"
    replaces its answer. A column with the name of another key of the contract is left out.
    Columns that begin with "_" are notes of the reader (generate/rows.py) and are not written.
    """
    question = " ".join(turn.text for turn in sample.turns if turn.role == "user").strip()
    row = {
        "id": sample.id,
        "dataset": sample.columns["dataset"],
        "prediction": answer,
        "reference": sample.reference,
        "question": question,
    }
    if sample.images:
        row["image"] = sample.columns["_image"]
    if sample.video:
        row["video"] = sample.columns["_video"]
    if sample.group is not None:
        row["group"] = sample.group
    kept = {key: value for key, value in sample.columns.items() if key == "reference" or key not in row}
    row |= {key: value for key, value in kept.items() if not key.startswith("_") and key != "finish_reason"}
    return row if finish_reason == "stop" else row | {"finish_reason": finish_reason}


def finished_rows(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Predictions by data set and id (Sample.key) from the file and its parts. A torn last line, left by a killed run, is cut off the file."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for path in [out, *sorted(out.parent.glob(f"{out.name}.part*"))]:
        # Cut, not passed over: the next writer (an older version, a shell) must not continue the half line.
        cut_torn_line(path)
        found = read_lines(path, "not a prediction row", "Remove the line or give another --out.", _by_key)
        rows |= dict(row for _, row in found)
    return rows


def _by_key(row: dict[str, Any]) -> tuple[tuple[str, str], dict[str, Any]]:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    return (str(row.get("dataset", "")), str(row["id"])), row


def check_answered(out: Path, done: dict[tuple[str, str], dict[str, Any]], samples: Sequence[Sample]) -> None:
    """Raises ValueError where a kept answer was given to another video, picture or question, or has another "reference", than the
    row of that id now."""
    # Nor may an answer of a data set that is not read now, such as another folder of videos, share its id with a row.
    own = {sample.key[0] for sample in samples}
    others = {name: row for (dataset, name), row in done.items() if dataset not in own}
    for sample in samples:
        if (then := done.get(sample.key, others.get(sample.id))) is None:
            continue
        now = prediction_row(sample, "")
        for name in ("video", "image", "question", "reference"):
            if then.get(name) != now.get(name):
                raise ValueError(
                    f"{sample.where}: id {sample.id!r} is answered in {out}, there with {name} {then.get(name)!r}, here with "
                    f"{now.get(name)!r}. Give another --out, or remove the file to answer again."
                )


def join_parts(out: Path, samples: Sequence[Sample]) -> None:
    """Write all predictions in the order of the rows and remove the parts; predictions of other rows stay at the end."""
    rows = finished_rows(out)
    ordered = [rows.pop(sample.key) for sample in samples if sample.key in rows]
    write_lines(out, [*ordered, *rows.values()])
    for part in out.parent.glob(f"{out.name}.part*"):
        part.unlink()


def part_of_rank(out: Path, rank: int) -> Path:
    """Where a rank writes its answers until all are joined."""
    return out.with_name(f"{out.name}.part{rank}")
