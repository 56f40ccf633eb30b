"""What tools/compare_stages.py shows of Drive-VLM's training stages on the same videos: texts, reward terms, boxes.

One `result` (the tool's --json) in three forms: `write_page` makes one HTML file that holds its pictures and escapes every
text, `plot_video` one PNG a video, `print_comparison` a table for each video and mode on the terminal.
"""

import base64
import io
import math
import re
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
# Pixels of a frame's longer side in the page.
_LARGEST = 480
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
# Of the PNG, in inches.
_COLUMN, _GAP, _MARGIN, _LINE, _BAR = 3.7, 0.25, 0.25, 0.165, 0.155
_FONT = 8.5
_DPI = 130
# Behind the words of a verdict, and of the words themselves.
_COLOURS = {"hit": "#cfe3f7", "false": "#fbd5c5"}
_INKS = {"hit": "#0b4a8f", "false": "#a3121f", "denied": "#888888", "again": "#555555", "unseen": "#777777"}
# Inches from the left, words, verdict or "".
Piece = tuple[float, str, str]
_STYLES = {"hit": "bold blue", "false": "bold red underline", "denied": "strike", "again": "dim", "unseen": "dim"}


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
        # A label near the right edge grows to the left.
        right = x1 > 0.7 * width
        title = f"{thing['label']} {thing['score']:.2f}, {x1:g}, {y1:g}, {x2:g}, {y2:g}"
        shapes.append(
            f'<rect x="{x1}" y="{y1}" width="{x2 - x1}" height="{y2 - y1}" fill="none" stroke="{colour}" stroke-width="{unit:.2f}">'
            f"<title>{escape(title)}</title></rect>"
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
    for key, name in {"reward": "reward", **TERMS}.items():
        value = "n/a" if key in terms["no_reference"] else f"{terms[key]:.3f}"
        kind = "bar reward" if key == "reward" else "bar"
        lines.append(
            f'<span>{name}</span><span class="{kind}"><i style="width:{100 * min(1.0, terms[key]):.1f}%"></i></span><span>{value}</span>'
        )
    return f'<div class="terms">{"".join(lines)}</div><div class="note">{escape(outcome_words(terms))}</div>'


class _Sheet:
    """A figure that is measured in inches from its upper left corner."""

    def __init__(self, width: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width, 1), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.width, self.height = width, 1.0
        self._renderer = self.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        self._widths: dict[tuple[str, bool], float] = {}

    def set_height(self, height: float) -> None:
        self.height = height
        self.figure.set_size_inches(self.width, height)

    def measure(self, text: str, bold: bool = False) -> float:
        """Width in inches."""
        if (text, bold) not in self._widths:
            from matplotlib.font_manager import FontProperties

            font = FontProperties(size=_FONT, weight="bold" if bold else "normal")
            self._widths[text, bold] = self._renderer.get_text_width_height_descent(text, font, False)[0] / _DPI
        return self._widths[text, bold]

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """`y` is the baseline's distance from the top."""
        known: dict[str, Any] = {"fontsize": _FONT, "va": "baseline", "parse_math": False}
        self.figure.text(x / self.width, 1 - y / self.height, text, **known | style)

    def words(self, x: float, y: float, text: str, verdict: str) -> None:
        """Text as its verdict marks it; "" marks nothing."""
        if verdict in _COLOURS:
            self.box(x, y - 0.115, self.measure(text), 0.15, _COLOURS[verdict])
        if verdict == "denied":
            self.box(x, y - 0.05, self.measure(text), 0.01, _INKS[verdict])
        self.text(x, y, text, color=_INKS.get(verdict, "#222222"))

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        from matplotlib.patches import Rectangle

        corner = (x / self.width, 1 - (y + height) / self.height)
        self.figure.add_artist(
            Rectangle(corner, width / self.width, height / self.height, color=colour, lw=0, zorder=0)
        )


def plot_video(path: Path, entry: dict[str, Any], pictures: Sequence["Image"]) -> None:
    """Write the PNG of one entry of "videos" of the tool's --json; `pictures`: its shown frames."""
    columns = 1 + len(entry["texts"][0]["answers"])
    sheet = _Sheet(2 * _MARGIN + columns * (_COLUMN + _GAP) - _GAP)
    blocks = [
        [_wrapped(sheet, part) for part in (text["reference"], *text["answers"].values())] for text in entry["texts"]
    ]
    notes = [
        [_wrapped_plain(sheet, outcome_words(answer["terms"]), _COLUMN) for answer in text["answers"].values()]
        for text in entry["texts"]
    ]
    heights = [
        _LINE * max(map(len, block)) + _BAR * (1 + len(TERMS)) + _LINE * max(map(len, lines)) + 0.85
        for block, lines in zip(blocks, notes, strict=True)
    ]
    # Rows of equal length, each of at most max(4, 2 * columns) frames.
    per_row = math.ceil(len(pictures) / math.ceil(len(pictures) / max(4, 2 * columns)))
    side = (sheet.width - 2 * _MARGIN - (per_row - 1) * 0.1) / per_row
    tall = side * max(picture.height / picture.width for picture in pictures)
    captions = [_wrapped_plain(sheet, f"{f['index']}: {label_counts(f['objects'])}", side) for f in entry["frames"]]
    strips = [
        tall + 0.15 + _LINE * max(map(len, captions[start : start + per_row]))
        for start in range(0, len(captions), per_row)
    ]
    sheet.set_height(0.75 + sum(strips) + sum(heights) + 0.3)
    sheet.text(_MARGIN, 0.3, entry["group"], fontsize=11, weight="bold")
    seen = ", ".join(f"{label} {count}/{entry['looked_at']}" for label, count in entry["seen"].items())
    source = f"{entry['video']} · detected in n of {entry['looked_at']} frames: {seen or 'nothing'}"
    sheet.text(_MARGIN, 0.52, source, color="#555555")
    colours = label_colours(entry["frames"])
    for place, (picture, frame) in enumerate(zip(pictures, entry["frames"], strict=True)):
        row, column = divmod(place, per_row)
        x, y = _MARGIN + column * (side + 0.1), 0.65 + sum(strips[:row])
        _draw_frame(sheet, (x, y, side, tall), picture, frame, colours)
        for line, caption in enumerate(captions[place]):
            ink = "#b30000" if frame["changed"] else "#333333"
            sheet.text(x, y + tall + 0.15 + line * _LINE, caption, fontsize=7.5, color=ink)
    top = 0.65 + sum(strips)
    for text, block, lines, height in zip(entry["texts"], blocks, notes, heights, strict=True):
        _draw_texts(sheet, top, text, block, lines)
        top += height
    _draw_legend(sheet, any(frame["changed"] for frame in entry["frames"]))
    sheet.figure.savefig(path, dpi=_DPI)


def _draw_frame(
    sheet: _Sheet,
    place: tuple[float, float, float, float],
    picture: "Image",
    frame: dict[str, Any],
    colours: dict[str, str],
) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    axes = sheet.axes(*place)
    axes.imshow(picture, interpolation="nearest" if picture.width < 200 else "antialiased")
    axes.set_axis_off()
    axes.set_anchor("NW")
    for thing, labelled in zip(frame["objects"], needs_label(frame["objects"], *picture.size), strict=True):
        x1, y1, x2, y2 = thing["box"]
        colour = colours[thing["label"]]
        outline = [withStroke(linewidth=2.2, foreground="black")]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=1.2, path_effects=outline))
        if not labelled:
            continue
        # Labels stay within the picture.
        inside, right = y1 < 0.09 * picture.height, x1 > 0.7 * picture.width
        axes.text(
            x2 if right else x1, y2 if inside else y1, thing["label"], color=colour, fontsize=6.5, ha="right" if right else "left",
            va="top" if inside else "bottom", parse_math=False, path_effects=outline, clip_on=True,
        )  # fmt: skip


def _draw_texts(
    sheet: _Sheet, top: float, text: dict[str, Any], block: list[list[list[Piece]]], notes: list[list[str]]
) -> None:
    """Mode and question, then the reference and each checkpoint's text, terms and objects."""
    title = text["mode"] or "question"
    sheet.box(_MARGIN, top + 0.06, sheet.width - 2 * _MARGIN, 0.22, "#eef1f4")
    sheet.text(_MARGIN + 0.06, top + 0.215, title, weight="bold")
    sheet.text(_MARGIN + 0.2 + sheet.measure(title, bold=True), top + 0.215, text["question"], color="#555555")
    below = top + 0.66 + _LINE * max(map(len, block))
    for column, (name, lines) in enumerate(zip(("reference", *text["answers"]), block, strict=True)):
        x = _MARGIN + column * (_COLUMN + _GAP)
        sheet.text(x, top + 0.45, _cut(sheet, name), weight="bold")
        for number, line in enumerate(lines):
            for shift, words, verdict in line:
                sheet.words(x + shift, top + 0.64 + number * _LINE, words, verdict)
        if column:
            answer = text["answers"][name]
            _draw_terms(sheet, x, below, answer["terms"])
            for number, note in enumerate(notes[column - 1]):
                y = below + _BAR * (1 + len(TERMS)) + 0.14 + number * _LINE
                sheet.text(x, y, note, fontsize=7.5, color="#555555")


def _draw_terms(sheet: _Sheet, x: float, top: float, terms: dict[str, Any]) -> None:
    for place, (key, name) in enumerate({"reward": "reward", **TERMS}.items()):
        y, bold = top + place * _BAR, "bold" if key == "reward" else "normal"
        value = "n/a" if key in terms["no_reference"] else f"{terms[key]:.3f}"
        sheet.text(x, y + 0.11, name, fontsize=7.5, weight=bold)
        sheet.text(x + _COLUMN, y + 0.11, value, fontsize=7.5, weight=bold, ha="right")
        wide = _COLUMN - 1.15
        sheet.box(x + 0.7, y + 0.03, wide, 0.09, "#eeeeee")
        sheet.box(x + 0.7, y + 0.03, wide * min(1.0, terms[key]), 0.09, "#2b4a6f" if key == "reward" else "#8aa9c8")


def _draw_legend(sheet: _Sheet, changed: bool) -> None:
    x, y = _MARGIN, sheet.height - 0.12
    for verdict, meaning in VERDICTS.items():
        sheet.words(x, y, meaning, verdict)
        x += sheet.measure(meaning) + 0.25
    if changed:
        sheet.text(x, y, "red caption: not the picture that the detector looked at", color="#b30000")


def _cut(sheet: _Sheet, name: str) -> str:
    while sheet.measure(name, bold=True) > _COLUMN and len(name) > 2:
        name = "…" + name[2:]
    return name


def _wrapped_plain(sheet: _Sheet, text: str, width: float) -> list[str]:
    marked = {"text": text, "mentions": []}
    return ["".join(words for _, words, _ in line) for line in _wrapped(sheet, marked, width)]


def _wrapped(sheet: _Sheet, marked: dict[str, Any], width: float = _COLUMN) -> list[list[Piece]]:
    """Lines of pieces that fit into `width` inches; words of one verdict that stand together are one piece."""
    if not marked["text"].strip():
        return [[(0.0, "(empty)", "unseen")]]
    lines: list[list[Piece]] = [[]]
    x, space, spaced = 0.0, sheet.measure("a a") - sheet.measure("aa"), False
    for part, mention in marked_parts(marked):
        for word in re.findall(r"\s+|\S+", part):
            if word.isspace():
                spaced = True
                continue
            for piece in _pieces(sheet, word, width):
                wide, gap = sheet.measure(piece), space if spaced and lines[-1] else 0.0
                # A full stop behind a marked word stays on its line.
                if lines[-1] and x + gap + wide > width and (gap or len(piece) > 1):
                    lines.append([])
                    x = gap = 0.0
                _append(lines[-1], x + gap, piece, mention["verdict"] if mention else "", bool(gap))
                x += gap + wide
                spaced = False
    return lines


def _append(line: list[Piece], x: float, word: str, verdict: str, spaced: bool) -> None:
    if line and line[-1][2] == verdict:
        start, words, _ = line[-1]
        line[-1] = (start, words + (" " if spaced else "") + word, verdict)
    else:
        line.append((x, word, verdict))


def _pieces(sheet: _Sheet, word: str, width: float) -> list[str]:
    """A word that is wider than a line is cut."""
    pieces = []
    while sheet.measure(word) > width:
        end = next(end for end in range(len(word) - 1, 0, -1) if end == 1 or sheet.measure(word[:end]) <= width)
        pieces.append(word[:end])
        word = word[end:]
    return [*pieces, word]


def print_comparison(result: dict[str, Any]) -> None:
    """Print `result`, which is what the tool writes with --json."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if Console().is_terminal else 150)
    for entry in result["videos"]:
        console.print(Text(f"\n{entry['group']} ({entry['video']})", style="bold"))
        seen = ", ".join(f"{label} {count}/{entry['looked_at']}" for label, count in entry["seen"].items())
        console.print(Text(f"detected in n of {entry['looked_at']} frames: {seen or 'nothing'}"))
        for frame in entry["frames"]:
            changed = " (not the picture that was looked at)" if frame["changed"] else ""
            console.print(Text(f"  frame {frame['index']}: {label_counts(frame['objects'])}{changed}", style="dim"))
        for text in entry["texts"]:
            console.print(_text_table(text))
    legend = Text("\n")
    for key, meaning in VERDICTS.items():
        legend.append(meaning, _STYLES[key]).append("   ")
    console.print(legend)
    console.print(Text(f"detector: {result['detector']}; {NO_REFERENCE}", style="dim"))


def _text_table(text: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    title = ": ".join(filter(None, (text["mode"], text["question"])))
    table = Table(title=Text(title), title_justify="left", show_lines=True)
    table.add_column("checkpoint", min_width=9, overflow="fold")
    table.add_column("text", ratio=1)
    for name in ("reward", *TERMS.values()):
        table.add_column(name, justify="right")
    table.add_row("reference", _marked_text(text["reference"]), *[""] * 5)
    for name, answer in text["answers"].items():
        terms = answer["terms"]
        cells = ["n/a" if key in terms["no_reference"] else f"{terms[key]:.3f}" for key in ("reward", *TERMS)]
        table.add_row(Text(name), _marked_text(answer).append(f"\n{outcome_words(terms)}", "dim"), *cells)
    return table


def _marked_text(marked: dict[str, Any]) -> Any:
    from rich.text import Text

    line = Text()
    for part, mention in marked_parts(marked):
        line.append(part, _STYLES[mention["verdict"]] if mention else "")
    return line if marked["text"].strip() else Text("(empty)", style="dim italic")
