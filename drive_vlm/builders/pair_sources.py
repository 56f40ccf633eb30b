"""Where preference pairs come from: rows with the answers that models gave to them, and pairs of earlier rounds."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.preference.pairs import check_pair, pair_row
from drive_vlm.data.samples import Sample
from drive_vlm.data.sources import open_sources, require_files
from drive_vlm.data.table import read_sample


@dataclass(frozen=True)
class Answered:
    """A row as it stands in the file, checked, and the answers that were generated for it, without repetitions."""

    row: dict[str, Any]
    sample: Sample
    answers: tuple[str, ...]


class Generations:
    """The answers of a file by data set and id."""

    def __init__(self, answers: dict[tuple[str, str], str]) -> None:
        self.answers, self.datasets = answers, {name for name, _ in answers}

    def of(self, dataset: str, row_id: str, alone: bool) -> str | None:
        """The answer to a row of `dataset`: under its name. Where all rows are of one data set (`alone`) and all answers too, the
        names may differ: the file of rows was renamed."""
        if alone and len(self.datasets) == 1:
            (dataset,) = self.datasets
        return self.answers.get((dataset, row_id))


def read_answered(
    data: Sequence[str], generations: Sequence[str], image_root: str | None, need_answer: bool
) -> tuple[list[Answered], list[str], str]:
    """All rows that have generated answers, the ids of those that have none, and the folder that pictures start from.

    Raises ValueError, naming file and line, for bad rows, ids that come twice, several picture folders, and when no row
    has an answer.
    """
    generated = [Generations(read_generations(path)) for path in generations]
    files = open_sources(data, image_root)
    require_files(files)
    if len(roots := sorted({os.path.abspath(file.root) for file in files})) > 1:
        raise ValueError(
            f"the pictures of the data files start from {' and '.join(roots)}; give --image_root, or make pairs of each"
        )
    answered, missing, seen = [], [], dict[str, str]()
    rows = [(file, i, read_sample(file, i, need_answer)) for file in files for i in range(len(file.rows))]
    # An id belongs to its data set: pairs of ids that several files have say which one.
    shared = {name for name, count in Counter(sample.id for _, _, sample in rows).items() if count > 1}
    datasets = [str(sample.columns.get("dataset", file.name)) for file, _, sample in rows]
    alone = len(set(datasets)) == 1
    for (file, i, sample), dataset in zip(rows, datasets, strict=True):
        name = f"{dataset}/{sample.id}" if sample.id in shared else sample.id
        if name in seen:
            raise ValueError(f"{sample.where}: id {sample.id!r} came before at {seen[name]}; make ids unique")
        seen[name] = sample.where
        found = [answers.of(dataset, sample.id, alone) for answers in generated]
        if answers := tuple(dict.fromkeys(text for text in found if text is not None)):
            answered.append(
                Answered(_plain_row(file.row(i), sample, file.root), dataclasses.replace(sample, id=name), answers)
            )
        else:
            missing.append(name)
    if not answered:
        raise ValueError(f"no id of {', '.join(data)} is in {', '.join(generations)}; generate from the same rows")
    return answered, missing, roots[0]


def _plain_row(row: dict[str, Any], sample: Sample, root: str) -> dict[str, Any]:
    """The row itself where it is of one of the two forms of the data contract, else what it says as messages."""
    for column, role, text in (("conversations", "from", "value"), ("messages", "role", "content")):
        turns = row.get(column)
        if isinstance(turns, list) and all(isinstance(turn, dict) and {role, text} <= turn.keys() for turn in turns):
            return row
    images = [os.path.relpath(path, root) for path in sample.images]
    media = {"images": images} if images else {"video": os.path.relpath(sample.video, root)} if sample.video else {}
    group = {} if sample.group is None else {"group": sample.group}
    messages = [{"role": turn.role, "content": "".join(turn.parts)} for turn in sample.turns]
    return {"id": sample.id} | media | group | {"messages": messages} | sample.columns


def read_generations(path: str) -> dict[tuple[str, str], str]:
    """(data set, id) -> prediction. An empty prediction stays: it is dropped and counted as a pair."""
    found: dict[tuple[str, str], str] = {}
    for where, row in JsonlFile(path).places():
        if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("prediction"), str):
            raise ValueError(
                f'{where}: expected {{"id", "prediction": text}}, as python -m drive_vlm generate writes it'
            )
        key = str(row.get("dataset", "")), str(row["id"])
        if key in found:
            raise ValueError(
                f"{where}: id {row['id']!r} stands twice in this file; give several answers as several files"
            )
        found[key] = row["prediction"]
    return found


def read_pairs(paths: Sequence[str]) -> list[dict[str, Any]]:
    """All pairs of some files, checked."""
    return [check_pair(row, where) for path in paths for where, row in JsonlFile(path).places()]


def gold_pairs(sources: list[Answered], number: int) -> list[dict[str, Any]]:
    """Every generated answer against the row's own."""
    pairs = []
    for source in sources:
        columns = {"row_id": source.sample.id, "round": number}
        for k, answer in enumerate(source.answers):
            name = _pair_id(source, number, k)
            pairs.append(pair_row(source.row, source.sample.reference, answer, name, **columns))
    return pairs


def best_pairs(
    sources: list[Answered], scores: list[list[float | None]], number: int, margin: float
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The best generated answer of each row against its worst, and how many rows have none, by reason."""
    pairs, dropped = [], Counter[str]()
    for source, values in zip(sources, scores, strict=True):
        known = [
            (value, answer)
            for value, answer in zip(values, source.answers, strict=True)
            if value is not None and answer.strip()
        ]
        if len(known) < 2:
            dropped["fewer_than_two_answers"] += 1
            continue
        best, worst = max(known, key=lambda item: item[0]), min(known, key=lambda item: item[0])
        if best[0] - worst[0] <= margin:
            dropped["no_margin"] += 1
            continue
        columns = {"row_id": source.sample.id, "round": number, "scores": [best[0], worst[0]]}
        pairs.append(pair_row(source.row, best[1], worst[1], _pair_id(source, number, 0), **columns))
    return pairs, dropped


def _pair_id(source: Answered, number: int, k: int) -> str:
    return f"{source.sample.id}-r{number}" + (f"-{k}" if k else "")


def without(pairs: list[dict[str, Any]], reasons: Sequence[str | None], dropped: Counter[str]) -> list[dict[str, Any]]:
    dropped.update(reason for reason in reasons if reason)
    return [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]


def check_ids(pairs: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError for an id that comes twice."""
    seen: set[str] = set()
    for pair in pairs:
        if str(pair["id"]) in seen:
            raise ValueError(
                f"id {pair['id']!r} stands in --mix and among the new pairs; give the new ones another --round"
            )
        seen.add(str(pair["id"]))
