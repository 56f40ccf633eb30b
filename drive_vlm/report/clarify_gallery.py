"""The gallery of tools/clarify_eval.py: examples of each kind of failure, with boxes drawn, candidates named, and what every checkpoint said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from drive_vlm.evaluation.clarify import FAILURES, KINDS, RIGHT, Reply, failure
from drive_vlm.report.page import PALETTE, Box, boxed, write_html

_STYLE = """
.example { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0 1.4rem; padding-top: .8rem; border-top: 1px solid #ddd }
.example figure { flex: 1 1 280px; max-width: 420px } .said { flex: 2 1 420px }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border: 1px solid #ddd; overflow-wrap: anywhere }
th { background: #f4f4f4; font-weight: 600 } td.this { background: #fdf3e7 }
.question { font-size: 1.05rem; font-weight: 600 } .right { color: #1a7a2e } .wrong { color: #a3121f }
.swatch { display: inline-block; width: .8em; height: .8em; border: 1px solid #333; margin-right: .3em }
nav a { margin-right: 1rem }
"""


@dataclass(frozen=True)
class Said:
    """A checkpoint's reply as it was given, and as it is read."""

    text: str
    reply: Reply

    @cached_property
    def kind(self) -> str:
        return failure(self.reply)


@dataclass(frozen=True)
class Example:
    """A row: its id, the files of its pictures, and what each checkpoint said."""

    id: str
    pictures: Sequence[str]
    said: Mapping[str, Said]


def write_gallery(path: Path, rows: Sequence[Example], most: int) -> dict[str, Any]:
    """Write the page: up to `most` rows of each kind, those of the last checkpoint first; returns {"file", kind: rows with it, of any
    checkpoint}. Raises BadRow for a picture that cannot be read.
    """
    names = list(rows[0].said)
    found: dict[str, Any] = {"file": str(path)}
    links, sections = [], []
    for kind, words in FAILURES.items():
        # A row once, however many checkpoints fail at it.
        failed = list(
            dict.fromkeys(i for name in reversed(names) for i, row in enumerate(rows) if row.said[name].kind == kind)
        )
        found[kind] = len(failed)
        if failed:
            shown = "\n".join(_example(rows[i], kind) for i in failed[:most])
            count = f"{min(most, len(failed))} of {len(failed):,} rows"
            links.append(f'<a href="#{kind}">{escape(words)} ({len(failed):,})</a>')
            sections.append(f'<h2 id="{kind}">{escape(words)} <span class="note">{count}</span></h2>\n{shown}')
    body = (
        f"<nav>{' '.join(links)}</nav>\n" + "\n".join(sections)
        if sections
        else "<p>No checkpoint fails at any row.</p>"
    )
    write_html(path, f"Failures: {', '.join(names)}", _STYLE, body)
    return found


def _example(example: Example, kind: str) -> str:
    from drive_vlm.data.vision import load_image

    first = next(iter(example.said.values())).reply
    row = first.row
    things = [(number, thing, PALETTE[(number - 1) % len(PALETTE)]) for number, thing in enumerate(row.candidates, 1)]
    boxes = [
        Box(thing.box, colour, str(number), f"{thing.name}: {', '.join(thing.attributes.values())}")
        for number, thing, colour in things
    ]
    # The boxes are of the row's one picture; further ones are shown as they are.
    figures = "".join(
        boxed(load_image(path, example.id), [] if place else boxes) for place, path in enumerate(example.pictures)
    )
    names = "".join(
        f'<div><span class="swatch" style="background:{colour}"></span>{number} {escape(thing.name)} <span class="note">'
        f"{escape(', '.join(f'{key} {value}' for key, value in thing.attributes.items()))}"
        f"{escape(_mark(first, number - 1))}</span></div>"
        for number, thing, colour in things
    )
    truth = f"level {row.level}, {row.type}: " + (
        "ambiguous, to be asked back" if row.ambiguous else f"clear, answer: {row.answer}"
    )
    said = "".join(_said(name, said, kind) for name, said in example.said.items())
    return (
        f'<div class="example"><figure>{figures}<figcaption>{escape(example.id)}</figcaption></figure><div class="said">'
        f'<div class="question">{escape(row.question)}</div><div class="note">{escape(truth)}</div>{names}'
        f"<table><tr><th>checkpoint</th><th>reply</th><th>read as</th></tr>{said}</table></div></div>"
    )


def _mark(reply: Reply, number: int) -> str:
    row = reply.row
    if row.ambiguous:
        answer = f"; answer: {row.answers[number]}" if number < len(row.answers) else ""
        return answer + ("; the user means this" if number == reply.meant else "")
    return "; asked about" if number == row.target else ""


def _said(name: str, said: Said, kind: str) -> str:
    reply, reading, verdict = said.reply, said.reply.reading, said.reply.verdict
    texts = escape(said.text) if said.text.strip() else '<span class="note">(empty)</span>'
    if reply.after is not None:
        texts += f'<div class="note">after the user\'s reply:</div>{escape(reply.after.text)}'
    what = "asks" if reading.asked else "lists" if reading.listed else "answers" if reading.answers else "no answer"
    judged = f"<br>judge: strategy {verdict.strategy}, {verdict.factual}" if verdict else ""
    note = f"{what}; strategy {reading.strategy}, {reading.factual}{judged}"
    mark = "right" if said.kind == RIGHT else "wrong"
    here = ' class="this"' if said.kind == kind else ""
    read = f'<span class="{mark}">{escape(KINDS[said.kind])}</span><div class="note">{note}</div>'
    return f"<tr><td{here}>{escape(name)}</td><td>{texts}</td><td>{read}</td></tr>"
