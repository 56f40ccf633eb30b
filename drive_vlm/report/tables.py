"""What printed and written tables share: one look, a width where there is no terminal, intervals as text, CSV files."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def console(width: int = 120) -> "Console":
    """As wide as the terminal, or `width` characters where there is none. Data is never markup: no tags ("[/bold]" in a name
    would end the printing), no ":car:" as a picture, no coloured numbers."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else width, highlight=False, markup=False, emoji=False)


def table(
    title: str | None,
    columns: Sequence[str],
    rows: "Iterable[Sequence[str | Text] | None]",
    left: int = 1,
    whole: bool = False,
) -> "Table":
    """The first `left` columns to the left, the others to the right. A row None ends a section.

    A cell that is too long is folded; with `whole` those to the right are not, and the others make room for them.
    """
    from rich.table import Table

    found = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        number = place >= left
        found.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=whole and number)
    for row in rows:
        if row is None:
            found.add_section()
        else:
            found.add_row(*row)
    return found


def print_table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str] | None], left: int = 1, width: int = 120
) -> None:
    console(width).print(table(title, columns, rows, left))


def interval(entry: dict[str, Any], form: str = ".3f", scale: float = 1) -> str:
    """` [low, high]`, each `scale` times the entry's and in `form`; "" where there is none (one group)."""
    if entry["low"] is None:
        return ""
    return f" [{scale * entry['low']:{form}}, {scale * entry['high']:{form}}]"


def change(entry: dict[str, Any] | None, value: str = "value", form: str = "+.3f") -> "Text":
    """The entry's change `value` with its interval, in `form`, bold where that leaves out 0; "-" where it is undefined."""
    from rich.text import Text

    if entry is None or entry[value] is None:
        return Text("-")
    sure = entry["low"] is not None and (entry["low"] > 0 or entry["high"] < 0)
    return Text(f"{entry[value]:{form}}{interval(entry, form)}", style="bold" if sure else "")


def write_csv(path: str | Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write the file; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
