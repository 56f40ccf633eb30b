"""The gallery of tools/clarify_eval.py: examples of each kind of failure, with boxes drawn, candidates named, and what every checkpoint said."""

from collections.abc import Mapping, Sequence
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


def write_gallery(
    path: Path, systems: Mapping[str, Sequence[Reply]], ids: Sequence[str], pictures: Sequence[Sequence[str]], most: int
) -> dict[str, Any]:
    """Write the page: up to `most` rows of each kind, those of the last checkpoint first; returns {"file", kind: rows with it, of any checkpoint}.

    Raises BadRow for a picture that cannot be read.
    """
    kinds = {name: [failure(reply) for reply in replies] for name, replies in systems.items()}
    found: dict[str, Any] = {"file": str(path)}
    chosen: dict[str, list[int]] = {}
    for kind in FAILURES:
        # A row once, whoever fails at it.
        rows = list(
            dict.fromkeys(i for name in reversed(list(systems)) for i, own in enumerate(kinds[name]) if own == kind)
        )
        found[kind], chosen[kind] = len(rows), rows[:most]
    title = f"Failures: {', '.join(systems)}"
    sections = []
    for kind, words in FAILURES.items():
        if chosen[kind]:
            shown = "\n".join(_example(ids[i], i, kind, systems, kinds, pictures[i]) for i in chosen[kind])
            head = f"{escape(words)} <span class='note'>{len(chosen[kind])} of {found[kind]:,} rows</span>"
            sections.append(f'<h2 id="{kind}">{head}</h2>\n{shown}')
    links = " ".join(
        f'<a href="#{kind}">{escape(FAILURES[kind])} ({found[kind]:,})</a>' for kind in FAILURES if chosen[kind]
    )
    body = f"<nav>{links}</nav>\n" + "\n".join(sections) if sections else "<p>No checkpoint fails at any row.</p>"
    write_html(path, title, _STYLE, body)
    return found


def _example(
    name: str,
    i: int,
    kind: str,
    systems: Mapping[str, Sequence[Reply]],
    kinds: Mapping[str, Sequence[str]],
    pictures: Sequence[str],
) -> str:
    from drive_vlm.data.vision import load_image

    first = next(iter(systems.values()))[i]
    row = first.row
    colours = [PALETTE[place % len(PALETTE)] for place in range(len(row.candidates))]
    boxes = [
        Box(thing.box, colour, str(number), f"{thing.name}: {', '.join(thing.attributes.values())}")
        for number, (thing, colour) in enumerate(zip(row.candidates, colours, strict=True), 1)
    ]
    # The boxes are of the row's one picture; further ones are shown as they are.
    figures = "".join(boxed(load_image(path, name), boxes if place == 0 else []) for place, path in enumerate(pictures))
    names = "".join(
        f'<div><span class="swatch" style="background:{colour}"></span>{number} {escape(thing.name)} <span class="note">'
        f"{escape(', '.join(f'{key} {value}' for key, value in thing.attributes.items()))}"
        f"{escape(_mark(first, number - 1))}</span></div>"
        for number, (thing, colour) in enumerate(zip(row.candidates, colours, strict=True), 1)
    )
    truth = f"level {row.level}, {row.type}: " + (
        "ambiguous, to be asked back" if row.ambiguous else f"clear, answer: {row.answer}"
    )
    said = "".join(_said(system, replies[i], kinds[system][i], kind) for system, replies in systems.items())
    return (
        f'<div class="example"><figure>{figures}<figcaption>{escape(name)}</figcaption></figure><div class="said">'
        f'<div class="question">{escape(row.question)}</div><div class="note">{escape(truth)}</div>{names}'
        f"<table><tr><th>checkpoint</th><th>reply</th><th>read as</th></tr>{said}</table></div></div>"
    )


def _mark(reply: Reply, number: int) -> str:
    row = reply.row
    if row.ambiguous:
        answer = f"; answer: {row.answers[number]}" if number < len(row.answers) else ""
        return answer + ("; the user means this" if number == reply.meant else "")
    return "; asked about" if number == row.target else ""


def _said(system: str, reply: Reply, own: str, kind: str) -> str:
    reading, verdict = reply.reading, reply.verdict
    texts = escape(reading.text) or '<span class="note">(empty)</span>'
    if reply.after is not None:
        texts += f'<div class="note">after the user\'s reply:</div>{escape(reply.after.text)}'
    what = "asks" if reading.asked else "lists" if reading.listed else "answers" if reading.answers else "no answer"
    judged = f"<br>judge: strategy {verdict.strategy}, {verdict.factual}" if verdict else ""
    read = f"{what}; strategy {reading.strategy}, {reading.factual}{judged}"
    mark = "right" if own == RIGHT else "wrong"
    here = ' class="this"' if own == kind else ""
    return f'<tr><td{here}>{escape(system)}</td><td>{texts}</td><td><span class="{mark}">{escape(KINDS[own])}</span><div class="note">{read}</div></td></tr>'
