"""DriveBench's scores by setting on the screen: one line a setting, each with its drop from clean pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.evaluation.drivebench import CORRUPTED, SETTINGS
from drive_vlm.report.tables import change, console, interval, table

if TYPE_CHECKING:
    from rich.text import Text

# Column -> the score "SETTING: NAME" that it shows.
_COLUMNS = {
    "choices, strict": "all mcq, strict",
    "choices, lenient": "all mcq, lenient",
    "judge": "all vqa, judge",
    "ROUGE-L": "all vqa, ROUGE-L",
    "METEOR": "all vqa, METEOR",
    "METEOR*": "all vqa, METEOR (exact and stems)",
}


def print_settings(result: dict[str, Any]) -> None:
    """Print what tools/drivebench_eval.py found, settings down, scores across; columns without a score are left out."""
    scores, changes = result["scores"], result.get("changes", {})
    settings = [name for name in (*SETTINGS, CORRUPTED) if any(key.startswith(f"{name}: ") for key in scores)]
    shown = {head: name for head, name in _COLUMNS.items() if any(f"{s}: {name}" in scores for s in settings)}
    rows: list[Sequence[str | Text] | None] = []
    for setting in settings:
        cells = [_cell(scores.get(f"{setting}: {name}")) for name in shown.values()]
        rows.append([setting, *cells, change(changes.get(f"{setting} - clean, mcq lenient"), form="+.1f")])
    head = ("setting", *shown, "lenient - clean")
    console(150).print(table("by setting, points of 100, 95 % interval by scene", head, rows))


def _cell(score: dict[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "-"
    return f"{score['value']:.1f}{interval(score, '.1f')}"
