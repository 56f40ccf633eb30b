"""The page of tools/synth_gate.py: pictures with their boxes, what the sources said, the rows that came of them, and those that a gate
took out and why. One file, and nothing in it runs: whatever models and data wrote is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from drive_vlm.report.page import PALETTE, Box, boxed, write_html

_STYLE = """
.picture { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0 1.6rem; padding-top: .8rem; border-top: 1px solid #ddd }
.picture figure { flex: 1 1 340px; max-width: 560px } .rows { flex: 2 1 480px }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 1rem }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border: 1px solid #ddd; overflow-wrap: anywhere }
th { background: #f4f4f4; font-weight: 600 } .kept { color: #1a7a2e } .gone { color: #a3121f } tr.out td { background: #fdf1f1 }
dl { margin: .3rem 0 } dt { font-weight: 600 } dd { margin: 0 0 .4rem; white-space: pre-wrap; overflow-wrap: anywhere }
td:first-child { white-space: nowrap } .swatch { display: inline-block; width: .8em; height: .8em; border: 1px solid #333; margin-right: .3em }
"""
# Colours of boxes by who named them.
_COLOURS = {"detector": PALETTE[0], "retrieval": PALETTE[1], "unknown": PALETTE[6], "region": PALETTE[2]}


@dataclass(frozen=True)
class ShownBox:
    """x1, y1, x2, y2 in pixels, and what it is called; `by`: detector, retrieval, unknown (no name passed) or region (a row is about it)."""

    box: Sequence[float]
    label: str
    by: str
    score: float | None = None


@dataclass(frozen=True)
class ShownRow:
    """A row, and the gate that took it out ("" where none did)."""

    task: str
    question: str
    answer: str
    reasoning: str = ""
    gate: str = ""
    reason: str = ""
    detail: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownPicture:
    """A picture with what steps said of it: `texts` by their names (caption_raw ...), `dropped` claims."""

    name: str
    path: str
    boxes: Sequence[ShownBox]
    texts: Mapping[str, str]
    dropped: Sequence[str]
    rows: Sequence[ShownRow]


def write_sample(path: Path, pictures: Sequence[ShownPicture], audit: Mapping[str, Any]) -> None:
    """Write the page. `audit` is what data_audit.json holds. Raises BadRow for a picture that cannot be read."""
    legend = " ".join(
        f'<span class="swatch" style="background:{colour}"></span>{escape(name)}' for name, colour in _COLOURS.items()
    )
    head = (
        f"<p>{audit['given']:,} rows of {audit['pictures']:,} pictures: {audit['used']:,} used, {audit['rejected']:,} taken out. "
        f'{len(pictures):,} pictures are shown.</p>{_gates(audit["gates"])}<p class="note">boxes: {legend}</p>'
    )
    write_html(path, "Synthetic rows: a sample", _STYLE, head + "\n".join(map(_picture, pictures)))


def _gates(gates: Mapping[str, Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{entry['given']:,}</td><td>{entry['passed']:,}</td>"
        f"<td>{escape(', '.join(f'{reason} {count:,}' for reason, count in entry['rejected'].items()) or '-')}</td></tr>"
        for name, entry in gates.items()
    )
    return f"<table><tr><th>gate</th><th>given</th><th>passed</th><th>taken out</th></tr>{rows}</table>"


def _picture(shown: ShownPicture) -> str:
    from drive_vlm.data.vision import load_image

    boxes = [Box(item.box, _COLOURS.get(item.by, PALETTE[7]), item.label, _title(item)) for item in shown.boxes]
    texts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in shown.texts.items() if text)
    if shown.dropped:
        texts += f"<dt>dropped by the refine step</dt><dd>{escape('; '.join(shown.dropped))}</dd>"
    rows = "".join(map(_row, shown.rows)) or '<tr><td colspan="3">no row</td></tr>'
    return (
        f"<h2>{escape(shown.name)}</h2>"
        f'<div class="picture"><figure>{boxed(load_image(shown.path, shown.name), boxes)}<dl>{texts}</dl></figure>'
        f'<div class="rows"><table><tr><th>task</th><th>question and answer</th><th>gates</th></tr>{rows}</table></div></div>'
    )


def _title(item: ShownBox) -> str:
    return f"{item.label}, {item.by}" + ("" if item.score is None else f", {item.score:.2f}")


def _row(row: ShownRow) -> str:
    scores = ", ".join(f"{name} {value:g}" for name, value in row.scores.items())
    if row.gate:
        verdict = f'<span class="gone">{escape(row.gate)}: {escape(row.reason)}</span><div class="note">{escape(row.detail)}</div>'
    else:
        verdict = '<span class="kept">used</span>'
    reasoning = f'<div class="note">{escape(row.reasoning)}</div>' if row.reasoning else ""
    return (
        f"<tr{' class=out' if row.gate else ''}><td>{escape(row.task)}</td><td><b>{escape(row.question)}</b>{reasoning}"
        f'<div>{escape(row.answer)}</div></td><td>{verdict}<div class="note">{escape(scores)}</div></td></tr>'
    )
