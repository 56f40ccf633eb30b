"""The page of tools/compare_stages.py: one HTML file that holds its pictures; every text in it is escaped."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

TERMS = {"object": "R_obj", "temporal": "R_temp", "detail": "R_detail", "hallucination": "R_hall"}
VERDICTS = {
    "hit": "named and detected",
    "false": "named, not detected",
    "denied": "said not to be there",
    "again": "general word, no further claim",
    "unseen": "no detector sees it",
}
NO_REFERENCE = "n/a: the reference has nothing to compare with, so the term is 0"
_PALETTE = ("#66ccee", "#ffb000", "#ee6677", "#44dd77", "#cc66ff", "#ffee55", "#ffffff", "#ff8844")
_LARGEST = 480  # pixels of a frame's longer side in the page
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; padding: 0 1rem; max-width: 1700px; color: #222; }
h1 { font-size: 1.3rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .3rem; overflow-wrap: anywhere }
.note, figcaption { color: #666; font-size: .85rem }
.changed { color: #b30000 }
.frames { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0 }
figure { margin: 0; flex: 1 1 190px; max-width: 340px } svg { width: 100%; display: block; border-radius: 4px }
table { border-collapse: collapse; width: 100%; table-layout: fixed; margin: .4rem 0 }
th, td { text-align: left; vertical-align: top; padding: .45rem .6rem; border: 1px solid #ddd; overflow-wrap: anywhere }
th { background: #f4f4f4; font-weight: 600 } td.reference { background: #fafafa } th.mode { width: 7.5rem }
mark { color: inherit; background: none; border-radius: 3px; padding: 0 .15em }
.hit { background: #cfe3f7; border-bottom: 2px solid #2166ac } .false { background: #fbd5c5; border-bottom: 2px dashed #b2182b }
.denied { text-decoration: line-through; color: #777 } .again { border-bottom: 1px solid #999 } .unseen { border-bottom: 1px dotted #777 }
.terms { display: grid; grid-template-columns: 4.8rem 1fr 2.8rem; gap: .1rem .4rem; margin-top: .6rem; font-size: .8rem; align-items: center }
.bar { height: .5rem; background: #eee } .bar i { display: block; height: 100%; background: #8aa9c8 } .reward i { background: #2b4a6f }
.chip { display: inline-block; border: 1px solid #ccc; border-radius: 1em; padding: 0 .6em; margin: .1em .2em .1em 0; font-size: .85rem }
.empty { color: #999; font-style: italic }
"""


def label_colours(frames: Sequence[dict[str, Any]]) -> dict[str, str]:
    """One colour for each label of a video's boxes."""
    labels = sorted({thing["label"] for frame in frames for thing in frame["objects"]})
    return {label: _PALETTE[place % len(_PALETTE)] for place, label in enumerate(labels)}


def label_counts(objects: Sequence[dict[str, Any]]) -> str:
    """ "car x 2, person", or "nothing"."""
    labels = [thing["label"] for thing in objects]
    counts = [f"{name} × {labels.count(name)}" if labels.count(name) > 1 else name for name in dict.fromkeys(labels)]
    return ", ".join(counts) or "nothing"


def needs_label(objects: Sequence[dict[str, Any]], width: int, height: int) -> list[bool]:
    """For each object whether its name is written: not where the same name stands close by already."""
    written: list[tuple[str, float, float]] = []
    needed = []
    for thing in objects:
        label, (x, y, *_) = thing["label"], thing["box"]
        near = any(name == label and abs(x - x0) < width / 5 and abs(y - y0) < height / 12 for name, x0, y0 in written)
        needed.append(not near)
        written += [] if near else [(label, x, y)]
    return needed


def told_of(terms: dict[str, Any]) -> str:
    """Length, false claims and missed classes in words."""
    told = [f"{terms['words']} words"] + (["names no object"] if terms["unverified"] else [])
    told += [f"not detected: {', '.join(terms['false_claims'])}"] if terms["false_claims"] else []
    told += [f"not named: {', '.join(terms['missed'])}"] if terms["missed"] else []
    return "; ".join(told)


def marked_parts(marked: dict[str, Any]) -> list[tuple[str, dict[str, Any] | None]]:
    """The text cut into (part, its mention or None); the parts joined are the text."""
    text, parts, end = marked["text"], [], 0
    for mention in marked["mentions"]:
        start = max(mention["start"], end)
        parts += [(text[end:start], None), (text[start : mention["end"]], mention)]
        end = max(mention["end"], end)
    return [(part, mention) for part, mention in [*parts, (text[end:], None)] if part]


def write_page(path: Path, result: dict[str, Any], pictures: Sequence[Sequence["Image"]]) -> None:
    """Write what tools/compare_stages.py writes with --json as a page; `pictures`: the shown frames of each video."""
    names = result["checkpoints"]
    weights = " + ".join(f"{result['weights'][key]:g} {name}" for key, name in TERMS.items())
    legend = " ".join(f'<mark class="{key}">{escape(text)}</mark>' for key, text in VERDICTS.items())
    title = f"{len(result['videos'])} videos: {', '.join(names)}"
    body = "\n".join(_video(entry, shown, names) for entry, shown in zip(result["videos"], pictures, strict=True))
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="note">detector: {escape(result["detector"])}<br>reward = {escape(weights)}; {NO_REFERENCE}</p>\n<p>{legend}</p>\n'
        f"{body}\n</body></html>\n",
        encoding="utf-8",
    )


def _video(entry: dict[str, Any], pictures: Sequence["Image"], names: Sequence[str]) -> str:
    colours = label_colours(entry["frames"])
    frames = "".join(_frame(frame, image, colours) for frame, image in zip(entry["frames"], pictures, strict=True))
    of = entry["looked_at"]
    chips = "".join(f'<span class="chip">{escape(label)} {n}/{of}</span>' for label, n in entry["seen"].items())
    head = "".join(f"<th>{escape(name)}</th>" for name in ("reference", *names))
    rows = "".join(_row(text, names) for text in entry["texts"])
    return (
        f'<h2>{escape(entry["group"])}</h2>\n<div class="note">{escape(entry["video"])} · detected in n of {of} frames: '
        f'{chips or "nothing"} · <a href="{escape(entry["png"])}">PNG</a></div>\n<div class="frames">{frames}</div>\n'
        f'<table><thead><tr><th class="mode">mode</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _frame(frame: dict[str, Any], picture: "Image", colours: dict[str, str]) -> str:
    """The picture with its boxes, drawn in the pixels of the frame as the detector saw it."""
    width, height = picture.size
    small = picture.copy()
    small.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    unit = max(width, height) / 100
    shapes = []
    for thing, labelled in zip(frame["objects"], needs_label(frame["objects"], width, height), strict=True):
        x1, y1, x2, y2 = thing["box"]
        colour = colours[thing["label"]]
        right = x1 > 0.7 * width  # a label near the edge grows to the left
        told = f"{thing['label']} {thing['score']:.2f}, {x1:g}, {y1:g}, {x2:g}, {y2:g}"
        shapes.append(
            f'<rect x="{x1}" y="{y1}" width="{x2 - x1}" height="{y2 - y1}" fill="none" stroke="{colour}" stroke-width="{unit:.2f}">'
            f"<title>{escape(told)}</title></rect>"
        )
        if labelled:
            shapes.append(
                f'<text x="{x2 if right else x1}" text-anchor="{"end" if right else "start"}" y="{max(y1 - unit, 5 * unit):.2f}" font-size="{5 * unit:.2f}" fill="{colour}" stroke="#000" '
                f'stroke-width="{unit:.2f}" paint-order="stroke">{escape(thing["label"])}</text>'
            )
    changed = ' <span class="changed">not the picture that was looked at</span>' if frame["changed"] else ""
    return (
        f'<figure><svg viewBox="0 0 {width} {height}"><image href="data:image/jpeg;base64,{data}" width="{width}" height="{height}"/>'
        f"{''.join(shapes)}</svg><figcaption>frame {frame['index']}: {escape(label_counts(frame['objects']))}{changed}</figcaption></figure>"
    )


def _row(text: dict[str, Any], names: Sequence[str]) -> str:
    answers = "".join(
        f"<td>{_marked(text['answers'][name])}{_terms(text['answers'][name]['terms'])}</td>" for name in names
    )
    mode = f"<b>{escape(text['mode'])}</b><br>" if text["mode"] else ""
    head = f'<th class="mode">{mode}<span class="note">{escape(text["question"])}</span></th>'
    return f'<tr>{head}<td class="reference">{_marked(text["reference"])}</td>{answers}</tr>\n'


def _marked(marked: dict[str, Any]) -> str:
    if not marked["text"].strip():
        return '<span class="empty">(empty)</span>'
    parts = []
    for part, mention in marked_parts(marked):
        if mention is None:
            parts.append(escape(part))
        else:
            told = f"{', '.join(mention['classes']) or 'no class'}: {VERDICTS[mention['verdict']]}"
            parts.append(f'<mark class="{mention["verdict"]}" title="{escape(told)}">{escape(part)}</mark>')
    return f"<div>{''.join(parts)}</div>"


def _terms(terms: dict[str, Any]) -> str:
    lines = []
    for key, name in {"reward": "reward", **TERMS}.items():
        value = "n/a" if key in terms["no_reference"] else f"{terms[key]:.3f}"
        kind = "bar reward" if key == "reward" else "bar"
        lines.append(
            f'<span>{name}</span><span class="{kind}"><i style="width:{100 * min(1.0, terms[key]):.1f}%"></i></span><span>{value}</span>'
        )
    return f'<div class="terms">{"".join(lines)}</div><div class="note">{escape(told_of(terms))}</div>'
