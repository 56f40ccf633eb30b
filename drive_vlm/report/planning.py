"""The report of tools/planning_eval.py: both protocols next to the baselines, what was not read, and what changed."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.report.tables import change, console, interval, table

if TYPE_CHECKING:
    from rich.text import Text

SECONDS = ("1s", "2s", "3s")
# Title -> columns: head -> score. Collisions only where there are boxes.
TABLES = {
    "L2 in metres, mean up to t (VAD, ST-P3)": {t: f"L2 mean {t}" for t in (*SECONDS, "avg")},
    "L2 in metres, at t (UniAD)": {t: f"L2 at {t}" for t in (*SECONDS, "avg")},
    "errors in metres, misses": {"ADE": "ADE", "FDE": "FDE", "end > 2 m": "miss_final", "any > 2 m": "miss_any"},
    "collisions, mean up to t (VAD's grid)": {t: f"collision mean {t}" for t in SECONDS},
    "collisions, at t (VAD's grid)": {t: f"collision at {t}" for t in SECONDS},
}
_SHARES = ("miss", "collision")
COMPARED = ("L2 mean avg", "L2 at avg", "ADE", "FDE", "miss_final")


def print_tables(result: dict[str, Any]) -> None:
    """Print `result`, which is what tools/planning_eval.py writes with --json."""
    shown = console(130)
    for reason in result["partial"]:
        shown.print(f"partial score: {reason}", style="red")
    of = f"{result['rows']:,} of {result['rows_there']:,} rows, {result['scenes']:,} scenes"
    for title, columns in TABLES.items():
        if not set(columns.values()) <= set(next(iter(result["references"].values()))["scores"]):
            continue
        rows: list[Sequence[str | Text] | None] = [
            [name, f"{entry['scored']:,}", *(_cell(score, entry["scores"][score]) for score in columns.values())]
            if entry
            else None
            for name, entry in _systems(result)
        ]
        shown.print(table(f"{title}: {of}, 95 % interval over scenes", ("", "scored", *columns), rows, whole=True))
    for line in _notes(result):
        shown.print(line)
    rows = [
        [
            f"{entry['second']} - {entry['first']}",
            f"{entry['rows']:,}",
            *(change(entry["scores"][name]) for name in COMPARED),
        ]
        for entry in result["comparisons"]
    ]
    if rows:
        shown.print(
            table("changes on the rows that both have; bold: the interval leaves out 0", ("", "rows", *COMPARED), rows)
        )


def _systems(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    yield from result["checkpoints"].items()
    yield "", None
    yield from result["references"].items()


def _cell(name: str, entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return "-"
    form = ".2%" if name.startswith(_SHARES) else ".3f"
    return f"{entry['value']:{form}}{interval(entry, form)}".replace(" ", "\n", 1)


def _notes(result: dict[str, Any]) -> Iterator[str]:
    yield f"protocol {result['version']}: six steps of 0.5 s; 1 s is the second step"
    for name, entry in (result["checkpoints"] | result["references"]).items():
        if count := result["rows"] - entry["scored"]:
            # As JSON: a reason may quote the answer.
            reasons = ", ".join(f"{json.dumps(text)} {n:,}" for text, n in list(entry["unread_by_reason"].items())[:5])
            share = f"{entry['unread']['value']:.1%}{interval(entry['unread'], '.1%')}"
            yield f"{name}: {count:,} of {result['rows']:,} answers unread, {share}; they have no part in its scores: {reasons}"
    for name, entry in result["checkpoints"].items():
        if entry["cut"]:
            yield f"{name}: {entry['cut']:,} answers were cut at the limit of new tokens"
        if entry["ids_left_out"]:
            yield f"{name}: {entry['ids_left_out']:,} ids left out, missing in another file"
        yield from _verdict(name, entry, result["references"])
    if result["missing"]:
        yield f"{len(result['missing']):,} rows of --data have no prediction and are left out"
    if not result["baselines_know"]:
        yield "without --train there is no ego-only baseline, which published numbers on nuScenes hardly beat"
    if result["scenes_known"]:
        yield f"{result['scenes_known']:,} of the {result['scenes']:,} scenes are in --train as well: two baselines know their futures"
    if result["boxes"]:
        yield f"steps at which the true way hits a box take no part as hits: {result['boxes']['steps_left_out']:.2%}"


def _verdict(name: str, entry: dict[str, Any], baselines: dict[str, Any]) -> Iterator[str]:
    """A line for the best baseline that is at least as good."""
    best = min(
        ((other["scores"]["ADE"]["value"], base) for base, other in baselines.items() if other["scored"]), default=None
    )
    own = entry["scores"]["ADE"]["value"]
    if best is not None and own is not None and best[0] <= own:
        yield f"{name}: the baseline {best[1]!r} is no worse, with an ADE of {best[0]:.3f} m against {own:.3f} m"
