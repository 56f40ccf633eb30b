"""Rows of a benchmark's builder as its evaluator reads them, and the predictions that belong to them."""

from collections.abc import Mapping
from typing import Any

from drive_vlm.data.predictions import Prediction, read_predictions, rows_by_id
from drive_vlm.data.samples import parse_row
from drive_vlm.evaluation.score_table import match_predictions

Rows = dict[str, dict[str, Any]]


def benchmark_rows(path: str, benchmark: str, columns: Mapping[str, type], builder: str) -> Rows:
    """Rows of `path` by id, each with "question", what the user's turns say, and "reference", its own answer or "".

    Raises ValueError for a row that is not of `benchmark`, or lacks one of `columns` {name: type}; as rows_by_id does.
    """
    found: Rows = {}
    for name, (where, row) in rows_by_id(path).items():
        lacks = [column for column, kind in columns.items() if not isinstance(row.get(column), kind)]
        if row.get("benchmark") != benchmark or lacks:
            problem = f"lacks {', '.join(lacks)}" if lacks else f"its benchmark is {row.get('benchmark')!r}"
            raise ValueError(
                f"{where}: id {name!r} is no row of {benchmark}, {problem}; build the rows with tools/{builder}"
            )
        sample = parse_row(row, where, "", need_answer=False)
        question = " ".join(turn.text for turn in sample.turns if turn.role == "user").strip()
        found[name] = row | {"question": question, "reference": sample.reference}
    return found


def answered_rows(rows: Rows, data: str, predictions: str, on_missing: str) -> list[tuple[dict[str, Any], Prediction]]:
    """(row, prediction) in the order of the rows. Raises ValueError as match_predictions does, and where no row has a prediction."""
    found = match_predictions(rows, read_predictions(predictions, need_reference=False), data, on_missing)
    if not found:
        raise ValueError(f"{predictions}: no row of {data} has a prediction")
    return [(rows[item.id], item) for item in found]
