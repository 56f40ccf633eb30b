"""A benchmark's numbers on the screen: one table, what they were measured on, and in red why they are partial."""

from typing import Any

from drive_vlm.evaluation.score_table import BASELINES, CHANGES, SCORES
from drive_vlm.report.tables import console, interval, table

_TITLES = {SCORES: "", BASELINES: "without a look", CHANGES: "change"}


def print_scores(result: dict[str, Any], metric: str = "score") -> None:
    """Print what ScoreTable.to_dict gave."""
    rows: list[Any] = []
    for section, title in _TITLES.items():
        found = result.get(section, {})
        if found and title:
            rows.append([f"{title}:", "", "", ""])
        sign = "+" if section == CHANGES else ""
        rows += [[name, *_cells(score, sign)] for name, score in found.items()]
        if found:
            rows.append(None)
    screen = console()
    title = f"{result['benchmark']} ({result['version']}), {metric}, 95 % interval by scene"
    screen.print(table(title, ("", "rows", "score", "unread"), rows))
    line = f"{result['rows_scored']:,} of {result['rows_there']:,} rows scored"
    if result["unread_share"] is not None:
        line += f"; unread answers: {result['unread']:,} ({result['unread_share']:.1%})"
    if result["strict_and_lenient_differ"] is not None:
        line += f"; strict and lenient reading differ in {result['strict_and_lenient_differ']:,} rows"
    screen.print(line)
    for reason in result["partial"]:
        screen.print(f"partial score: {reason}", style="red")


def _cells(score: dict[str, Any], sign: str) -> tuple[str, str, str]:
    rows = f"{score['n']:,}" if score["n"] == score["of"] else f"{score['n']:,} of {score['of']:,}"
    value = "-" if score["value"] is None else f"{score['value']:{sign}.2f}{interval(score, f'{sign}.2f')}"
    return rows, value, f"{score['unread']:,}" if score["unread"] else ""
