"""The picture of one video of tools/compare_stages.py: frames with boxes above, texts and reward terms in columns below."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.report.stages_page import (
    TERMS,
    VERDICTS,
    label_colours,
    label_counts,
    marked_parts,
    needs_label,
    told_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_COLUMN, _GAP, _MARGIN, _LINE, _BAR = 3.7, 0.25, 0.25, 0.165, 0.155  # inches
_FONT = 8.5
_DPI = 130
_COLOURS = {"hit": "#cfe3f7", "false": "#fbd5c5"}  # behind the words
_INKS = {"hit": "#0b4a8f", "false": "#a3121f", "denied": "#888888", "again": "#555555", "unseen": "#777777"}
Piece = tuple[float, str, str]  # inches from the left, words, verdict or ""


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
        [_wrapped_plain(sheet, told_of(answer["terms"]), _COLUMN) for answer in text["answers"].values()]
        for text in entry["texts"]
    ]
    heights = [
        _LINE * max(map(len, block)) + _BAR * (1 + len(TERMS)) + _LINE * max(map(len, told)) + 0.85
        for block, told in zip(blocks, notes, strict=True)
    ]
    per_row = math.ceil(len(pictures) / math.ceil(len(pictures) / max(4, 2 * columns)))  # rows of equal length
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
    told = f"{entry['video']} · detected in n of {entry['looked_at']} frames: {seen or 'nothing'}"
    sheet.text(_MARGIN, 0.52, told, color="#555555")
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
        inside, right = y1 < 0.09 * picture.height, x1 > 0.7 * picture.width  # labels stay within the picture
        axes.text(
            x2 if right else x1, y2 if inside else y1, thing["label"], color=colour, fontsize=6.5, ha="right" if right else "left",
            va="top" if inside else "bottom", parse_math=False, path_effects=outline, clip_on=True,
        )  # fmt: skip


def _draw_texts(
    sheet: _Sheet, top: float, text: dict[str, Any], block: list[list[list[Piece]]], told: list[list[str]]
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
            for number, note in enumerate(told[column - 1]):
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
    for verdict, told in VERDICTS.items():
        sheet.words(x, y, told, verdict)
        x += sheet.measure(told) + 0.25
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
                # a full stop behind a marked word stays on its line
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
