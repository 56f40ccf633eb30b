"""The report of tools/meta_action_eval.py: accuracies, F1 by class, confusion, next to the baselines and to the published scripts."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.evaluation.meta_actions import CLASSES, KINDS, SENNA_F1, SPEEDS, UNREAD
from drive_vlm.report.tables import change, console, interval, table

if TYPE_CHECKING:
    from rich.text import Text

OVERALL = {
    "both": "accuracy", "speed": "accuracy speed", "path": "accuracy path", "read": "read", "F1 speed": "macro F1 speed",
    "F1 path": "macro F1 path",
}  # fmt: skip


def print_tables(result: dict[str, Any]) -> None:
    """Print `result`, which is what tools/meta_action_eval.py writes with --json."""
    shown = console(130)
    for reason in result["partial"]:
        shown.print(f"partial score: {reason}", style="red")
    of = f"{result['rows']:,} of {result['rows_there']:,} rows, {result['scenes']:,} scenes, classes of {result['classes']}"
    paths = CLASSES[result["classes"]]
    tables = {
        "accuracy, answers read, macro F1": OVERALL,
        "F1 of speeds": {name: f"F1 {name}" for name in SPEEDS},
        "F1 of paths": {name: f"F1 {name}" for name in paths},
    }
    for title, columns in tables.items():
        rows: list[Sequence[str | Text] | None] = [
            [name, *(_cell(entry["scores"][score]) for score in columns.values())] if entry else None
            for name, entry in _systems(result)
        ]
        shown.print(table(f"{title}: {of}, 95 % interval over scenes", ("", *columns), rows, whole=True))
    shown.print(_official_table(result, (*SPEEDS, *paths)))
    for name, entry in result["checkpoints"].items():
        for kind in KINDS:
            shown.print(_confusion_table(name, kind, entry["confusion"][kind]))
    for line in _notes(result):
        shown.print(line)
    changes: list[Sequence[str | Text] | None] = [
        [f"{entry['second']} - {entry['first']}", *(change(entry["scores"][score]) for score in OVERALL.values())]
        for entry in result["comparisons"]
    ]
    shown.print(table("changes; bold: the interval leaves out 0", ("", *OVERALL), changes))


def _systems(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    yield from result["checkpoints"].items()
    yield "", None
    yield from result["references"].items()


def _cell(entry: dict[str, Any]) -> str:
    return f"{entry['value']:.3f}{interval(entry)}".replace(" ", "\n", 1)


def _official_table(result: dict[str, Any], classes: Sequence[str]) -> Any:
    """Next to the numbers above: how the scripts count. Senna's has no F1 of lane changes, AlphaDrive's has."""
    rows: list[Sequence[str | Text] | None] = [
        ["accuracy", *(f"{entry['official']['accuracy']:.3f}" for entry in result["checkpoints"].values())]
    ]
    for name in classes:
        mark = "" if name in SENNA_F1 else " (not in Senna's)"
        values = [f"{entry['official'][f'F1 {name}']:.3f}" for entry in result["checkpoints"].values()]
        rows.append([f"F1 {name}{mark}", *values])
    return table("official: the words anywhere in the answer", ("", *result["checkpoints"]), rows)


def _confusion_table(name: str, kind: str, confusion: dict[str, dict[str, int]]) -> Any:
    heads = (f"true {kind}", *confusion, UNREAD)
    rows = [[true, *(f"{said[column]:,}" for column in heads[1:])] for true, said in confusion.items()]
    return table(f"{name}: {kind} said", heads, rows)


def _notes(result: dict[str, Any]) -> Iterator[str]:
    yield f"version {result['version']}"
    best = max((entry["scores"]["accuracy"]["value"], name) for name, entry in result["references"].items())
    for name, entry in result["checkpoints"].items():
        scores = entry["scores"]
        if lost := round((1 - scores["read"]["value"]) * result["rows"]):
            yield f"{name}: {lost:,} of {result['rows']:,} answers are unread in speed or path; they count as not right, as no class"
        if entry["official"]["accuracy"] != scores["accuracy"]["value"]:
            yield f"{name}: the official accuracy is {entry['official']['accuracy']:.3f}, that of what is read {scores['accuracy']['value']:.3f}"
        if entry["cut"]:
            yield f"{name}: {entry['cut']:,} answers were cut at the limit of new tokens"
        if entry["ids_left_out"]:
            yield f"{name}: {entry['ids_left_out']:,} ids left out, missing in another file"
        if best[0] >= scores["accuracy"]["value"]:
            yield f"{name}: the baseline {best[1]!r} is no worse, with an accuracy of {best[0]:.3f}"
    if result["missing"]:
        yield f"{len(result['missing']):,} rows of --data have no prediction and are left out"
    yield f"the commonest pair is of {result['baselines_know'] or 'the evaluated rows themselves, for want of --train'}"
