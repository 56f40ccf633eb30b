"""What tools/compare_stages.py shows of Drive-VLM's training stages on the same videos: texts, reward terms, boxes.

One `result` (the tool's --json) in three forms: `write_page` makes one HTML file that holds its pictures and escapes every
text, `plot_video` one PNG a video, `print_comparison` a table of the terms for each video on the terminal.
"""

import functools
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.report.page import PALETTE, Box, boxed, write_html
from drive_vlm.report.tables import print_table
from drive_vlm.report.video import REWARD_TERMS

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

VERDICTS = {
    "hit": "named and detected",
    "false": "named, not detected",
    "denied": "said not to be there",
    "again": "general word, no further claim",
    "unseen": "no detector sees it",
}
NO_REFERENCE = "n/a: the reference has nothing to compare with, so the term is 0"
CHANGED = "not the picture that was looked at"
_STYLE = """
.changed { color: #b30000 }
.frames { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0 }
table { border-collapse: collapse; width: 100%; table-layout: fixed; margin: .4rem 0 }
th, td { text-align: left; vertical-align: top; padding: .45rem .6rem; border: 1px solid #ddd; overflow-wrap: anywhere }
th { background: #f4f4f4; font-weight: 600 } td.reference { background: #fafafa } th.mode { width: 7.5rem }
mark { color: inherit; background: none; border-radius: 3px; padding: 0 .15em }
.hit { background: #cfe3f7; border-bottom: 2px solid #2166ac } .false { background: #fbd5c5; border-bottom: 2px dashed #b2182b }
.denied { text-decoration: line-through; color: #777 } .again { border-bottom: 1px solid #999 } .unseen { border-bottom: 1px dotted #777 }
.terms { display: grid; grid-template-columns: 4.8rem 1fr 2.8rem; gap: .1rem .4rem; margin-top: .6rem; font-size: .8rem; align-items: center }
.bar { height: .5rem; background: #eee } .bar i { display: block; height: 100%; background: #8aa9c8 } .reward i { background: #2b4a6f }
.empty { color: #999; font-style: italic }
"""
# Of the PNG, in pixels.
_COLUMN, _GAP, _LINE = 480, 32, 22
# Behind the words of a verdict, and of the words themselves.
_COLOURS = {"hit": "#cfe3f7", "false": "#fbd5c5"}
_INKS = {"hit": "#0b4a8f", "false": "#a3121f", "denied": "#888888", "again": "#555555", "unseen": "#777777"}


def label_colours(frames: Sequence[dict[str, Any]]) -> dict[str, str]:
    """One colour for each label of a video's boxes."""
    labels = sorted({thing["label"] for frame in frames for thing in frame["objects"]})
    return {label: PALETTE[place % len(PALETTE)] for place, label in enumerate(labels)}


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


def term_values(terms: dict[str, Any]) -> dict[str, str]:
    """{name of a term: its number}, "n/a" where the reference has nothing to compare with."""
    return {name: "n/a" if key in terms["no_reference"] else f"{terms[key]:.3f}" for key, name in REWARD_TERMS.items()}


def seen_words(entry: dict[str, Any]) -> str:
    """In how many of the frames each class was detected."""
    seen = ", ".join(f"{label} {count}/{entry['looked_at']}" for label, count in entry["seen"].items())
    return f"detected in n of {entry['looked_at']} frames: {seen or 'nothing'}"


def outcome_words(terms: dict[str, Any]) -> str:
    """Length, false claims and missed classes in words."""
    parts = [f"{terms['words']} words"] + (["names no object"] if terms["unverified"] else [])
    parts += [f"not detected: {', '.join(terms['false_claims'])}"] if terms["false_claims"] else []
    parts += [f"not named: {', '.join(terms['missed'])}"] if terms["missed"] else []
    return "; ".join(parts)


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
    weights = " + ".join(f"{weight:g} {REWARD_TERMS[key]}" for key, weight in result["weights"].items())
    legend = " ".join(f'<mark class="{key}">{escape(text)}</mark>' for key, text in VERDICTS.items())
    title = f"{len(result['videos'])} videos: {', '.join(names)}"
    body = "\n".join(_video(entry, shown, names) for entry, shown in zip(result["videos"], pictures, strict=True))
    note = f"detector: {escape(result['detector'])}<br>reward = {escape(weights)}; {NO_REFERENCE}"
    write_html(path, title, _STYLE, f'<p class="note">{note}</p>\n<p>{legend}</p>\n{body}')


def _video(entry: dict[str, Any], pictures: Sequence["Image"], names: Sequence[str]) -> str:
    colours = label_colours(entry["frames"])
    frames = "".join(_frame(frame, image, colours) for frame, image in zip(entry["frames"], pictures, strict=True))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("reference", *names))
    rows = "".join(_row(text, names) for text in entry["texts"])
    return (
        f'<h2>{escape(entry["group"])}</h2>\n<div class="note">{escape(entry["video"])} · '
        f'{escape(seen_words(entry))} · <a href="{escape(entry["png"])}">PNG</a></div>\n<div class="frames">{frames}</div>\n'
        f'<table><thead><tr><th class="mode">mode</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _frame(frame: dict[str, Any], picture: "Image", colours: dict[str, str]) -> str:
    """The picture with its boxes, drawn in the pixels of the frame as the detector saw it."""
    boxes = []
    for thing, labelled in zip(frame["objects"], needs_label(frame["objects"], *picture.size), strict=True):
        x1, y1, x2, y2 = thing["box"]
        title = f"{thing['label']} {thing['score']:.2f}, {x1:g}, {y1:g}, {x2:g}, {y2:g}"
        boxes.append(Box(thing["box"], colours[thing["label"]], thing["label"] if labelled else "", title))
    changed = f' <span class="changed">{CHANGED}</span>' if frame["changed"] else ""
    caption = f"frame {frame['index']}: {escape(label_counts(frame['objects']))}{changed}"
    return f"<figure>{boxed(picture, boxes)}<figcaption>{caption}</figcaption></figure>"


def _row(text: dict[str, Any], names: Sequence[str]) -> str:
    answers = "".join(
        f"<td>{_marked_html(text['answers'][name])}{_terms(text['answers'][name]['terms'])}</td>" for name in names
    )
    mode = f"<b>{escape(text['mode'])}</b><br>" if text["mode"] else ""
    head = f'<th class="mode">{mode}<span class="note">{escape(text["question"])}</span></th>'
    return f'<tr>{head}<td class="reference">{_marked_html(text["reference"])}</td>{answers}</tr>\n'


def _marked_html(marked: dict[str, Any]) -> str:
    if not marked["text"].strip():
        return '<span class="empty">(empty)</span>'
    parts = []
    for part, mention in marked_parts(marked):
        if mention is None:
            parts.append(escape(part))
        else:
            title = f"{', '.join(mention['classes']) or 'no class'}: {VERDICTS[mention['verdict']]}"
            parts.append(f'<mark class="{mention["verdict"]}" title="{escape(title)}">{escape(part)}</mark>')
    return f"<div>{''.join(parts)}</div>"


def _terms(terms: dict[str, Any]) -> str:
    lines = []
    for key, (name, value) in zip(REWARD_TERMS, term_values(terms).items(), strict=True):
        kind = "bar reward" if key == "reward" else "bar"
        lines.append(
            f'<span>{name}</span><span class="{kind}"><i style="width:{100 * min(1.0, terms[key]):.1f}%"></i></span><span>{value}</span>'
        )
    return f'<div class="terms">{"".join(lines)}</div><div class="note">{escape(outcome_words(terms))}</div>'


def plot_video(path: Path, entry: dict[str, Any], pictures: Sequence["Image"]) -> None:
    """Write the PNG of one entry of "videos" of the tool's --json; `pictures`: its shown frames.

    From the top: the frames with their boxes; for each question the texts next to each other, below them terms and objects.
    """
    from PIL import ImageOps

    columns = 1 + len(entry["texts"][0]["answers"])
    width = columns * (_COLUMN + _GAP) - _GAP
    parts = [_text(entry["group"], width, 18), _text(f"{entry['video']} · {seen_words(entry)}", width, 15, "#555555")]
    # Rows of equal length, each of at most max(4, 2 * columns) frames.
    per_row = math.ceil(len(pictures) / math.ceil(len(pictures) / max(4, 2 * columns)))
    side, colours = min(_COLUMN, (width + _GAP) // per_row - _GAP), label_colours(entry["frames"])
    frames = [_boxed(*both, colours, side) for both in zip(pictures, entry["frames"], strict=True)]
    parts += [_join(frames[start : start + per_row]) for start in range(0, len(frames), per_row)]
    for text in entry["texts"]:
        answers, blank = text["answers"].values(), _text("", _COLUMN)
        parts.append(_text(": ".join(filter(None, (text["mode"], text["question"]))), width, paper="#eef1f4"))
        parts.append(_join([_text(name, _COLUMN, 18) for name in ("reference", *text["answers"])]))
        parts.append(_join([_text(one, _COLUMN) for one in (text["reference"], *answers)]))
        parts.append(_join([blank, *(_bars(answer["terms"]) for answer in answers)]))
        notes = [_text(outcome_words(answer["terms"]), _COLUMN, 13, "#555555") for answer in answers]
        parts.append(_join([blank, *notes]))
    legend: dict[str, Any] = {"text": "", "mentions": []}
    for verdict, meaning in VERDICTS.items():
        start = len(legend["text"])
        legend["text"] += meaning + " " * 6
        legend["mentions"].append({"start": start, "end": start + len(meaning), "verdict": verdict})
    ImageOps.expand(_join([*parts, _text(legend, width)], down=True), _GAP, "white").save(path)


@functools.cache
def _font(size: int) -> "FreeTypeFont":
    """DejaVu Sans, which comes with matplotlib; bold where it is large."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if size > 15 else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def _canvas(width: int, height: int, paper: str = "white") -> tuple["Image", "ImageDraw"]:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), paper)
    return picture, ImageDraw.Draw(picture)


def _join(parts: Sequence["Image"], down: bool = False) -> "Image":
    """All `parts` on one picture, next to each other, or each below the last."""
    widths, heights = [part.width for part in parts], [part.height for part in parts]
    gap = 8 if down else _GAP
    extra = gap * (len(parts) - 1)
    size = (max(widths), sum(heights) + extra) if down else (sum(widths) + extra, max(heights))
    whole, _ = _canvas(*size)
    place = 0
    for part in parts:
        whole.paste(part, (0, place) if down else (place, 0))
        place += gap + (part.height if down else part.width)
    return whole


def _text(
    text: str | dict[str, Any], width: int, size: int = 15, ink: str = "#222222", paper: str = "white"
) -> "Image":
    """A picture of the text in lines of `width` pixels. What --json holds of an answer is marked by its mentions."""
    if isinstance(text, dict) and not text["text"].strip():
        text = "(empty)"
    marked = {"text": text, "mentions": []} if isinstance(text, str) else text
    font, placed, x, line = _font(size), [], 0.0, 0
    for part, mention in marked_parts(marked):
        # Thirty letters of the widest kind fit into a column.
        for word in re.findall(r"\s|\S{1,30}", part):
            # Pillow cannot measure a line break.
            word = " " if word.isspace() else word
            wide = font.getlength(word)
            # A full stop behind a marked word stays on its line.
            if x + wide > width and len(word) > 1:
                x, line = 0.0, line + 1
            if x or not word.isspace():
                placed.append((x, line, wide, word, mention["verdict"] if mention else ""))
                x += wide
    picture, draw = _canvas(width, (line + 1) * _LINE, paper)
    for x, line, wide, word, verdict in placed:
        top = line * _LINE
        if verdict in _COLOURS:
            draw.rectangle([x, top, x + wide, top + _LINE - 3], fill=_COLOURS[verdict])
        draw.text((x, top), word, _INKS.get(verdict, ink), font)
        if verdict == "denied":
            draw.line([x, top + 10, x + wide, top + 10], fill=_INKS[verdict])
    return picture


def _boxed(picture: "Image", frame: dict[str, Any], colours: dict[str, str], side: int) -> "Image":
    """The frame, `side` pixels wide, with its boxes and a caption."""
    from PIL import ImageDraw

    scale = side / picture.width
    shown = picture.convert("RGB").resize((side, round(scale * picture.height)))
    draw = ImageDraw.Draw(shown)
    for thing, labelled in zip(frame["objects"], needs_label(frame["objects"], *picture.size), strict=True):
        x1, y1, x2, y2 = (scale * pixel for pixel in thing["box"])
        draw.rectangle([x1, y1, x2, y2], outline=colours[thing["label"]], width=2)
        if labelled:
            # Labels stay within the picture.
            right, inside = x1 > 0.7 * side, y1 < 0.09 * shown.height
            place, anchor = (
                (x2 if right else x1, y2 if inside else y1),
                ("r" if right else "l") + ("a" if inside else "d"),
            )
            draw.text(
                place, thing["label"], colours[thing["label"]], _font(13), anchor, stroke_width=2, stroke_fill="black"
            )
    caption = f"{frame['index']}: {label_counts(frame['objects'])}" + (f" ({CHANGED})" if frame["changed"] else "")
    return _join([shown, _text(caption, side, 13, "#b30000" if frame["changed"] else "#333333")], down=True)


def _bars(terms: dict[str, Any]) -> "Image":
    """A bar for each term with its number, the reward first."""
    picture, draw = _canvas(_COLUMN, 20 * len(REWARD_TERMS))
    left, right = 90, _COLUMN - 70
    for place, (key, (name, value)) in enumerate(zip(REWARD_TERMS, term_values(terms).items(), strict=True)):
        top = 20 * place
        draw.text((0, top), name, "#222222", _font(13))
        draw.text((_COLUMN, top), value, "#222222", _font(13), "ra")
        draw.rectangle([left, top + 3, right, top + 14], fill="#eeeeee")
        full = left + min(1.0, terms[key]) * (right - left)
        draw.rectangle([left, top + 3, full, top + 14], fill="#2b4a6f" if key == "reward" else "#8aa9c8")
    return picture


def print_comparison(result: dict[str, Any]) -> None:
    """Print the terms and objects of every text of `result`, which is what the tool writes with --json."""
    columns = ("mode", "checkpoint", *REWARD_TERMS.values(), "words and objects")
    for entry in result["videos"]:
        rows: list[list[str] | None] = []
        for text in entry["texts"]:
            for name, answer in text["answers"].items():
                terms = answer["terms"]
                rows.append([text["mode"], name, *term_values(terms).values(), outcome_words(terms)])
            rows.append(None)
        print_table(f"{entry['group']} ({entry['video']}): {seen_words(entry)}", columns, rows, 2, width=150)
    print(f"detector: {result['detector']}; {NO_REFERENCE}")
