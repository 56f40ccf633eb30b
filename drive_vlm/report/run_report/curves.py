"""The curves of runs as inline SVG: what every run logs, and what a run on rewards or on pairs logs besides."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from drive_vlm.report.figures import COLOURS, bare, new_figure
from drive_vlm.report.run_report.run_files import RunFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Points of a curve; a longer one is averaged over as many bins.
MOST_POINTS = 600
# A page's ground is white or dark: grey words and axes are read on both.
_INK = "#808080"
_STYLES = ("-", "--", ":", "-.")
# Lines of one panel, and characters of a name in its legend.
_MOST_LINES, _LONGEST = 8, 44


@dataclass(frozen=True)
class Panel:
    """A chart: its title, the metrics it shows (patterns of fnmatch), and the word below the title."""

    title: str
    patterns: tuple[str, ...]
    unit: str = ""


PANELS = (
    Panel("loss", ("loss", "eval_loss"), "training, and held-out rows where there are"),
    Panel("learning rate", ("learning_rate", "value_learning_rate")),
    Panel("tokens a second", ("tokens_per_second",), "all ranks, padding not counted"),
    Panel("memory", ("memory_gib",), "GiB, peak of the main process"),
    Panel("gradient norm", ("grad_norm",)),
    Panel("held-out scores", ("eval_*",), "what --eval_steps measured"),
    Panel("reward", ("reward", "rewards/mean")),
    Panel("reward terms", ("rewards/*/mean",), "each as it was given"),
    Panel("length", ("completions/mean_length", "completions/min_length", "completions/max_length"), "tokens of a completion"),
    Panel("cut or not ended", ("completions/clipped_ratio", "completions/eos_rate"), "share of completions"),
    Panel("KL", ("kl",), "nats a token, to the reference"),
    Panel("entropy", ("entropy", "actions/entropy"), "nats"),
    Panel("groups without advantage", ("frac_reward_zero_std",), "share: all completions of the group earned the same"),
    Panel("unread or unscored", ("unscored", "*/unread", "completions/left_out"), "share: no number, so not learned from"),
    Panel("value head", ("explained_variance",)),
    Panel("preference accuracy", ("rewards/accuracies", "eval_rewards/accuracies"), "chosen above rejected"),
    Panel("preference margin", ("rewards/margins", "eval_rewards/margins")),
)  # fmt: skip
# Figures of an evaluation that are no score.
_NO_SCORE = ("eval_loss", "eval_runtime", "eval_*_per_second", "eval_rewards/*", "eval_logps/*", "eval_logits/*")

Series = list[tuple[float, float]]


def series(run: RunFiles, name: str) -> Series:
    """(step, value) of a metric; logs without it or with a value that is not finite are left out."""
    found = []
    for line in run.metrics:
        step: Any = line.get("step")
        value: Any = line.get(name)
        # Not isinstance: True is an int.
        if all(type(number) in (int, float) and math.isfinite(number) for number in (step, value)):
            found.append((float(step), float(value)))
    return found


def names_of(run: RunFiles, panel: Panel) -> list[str]:
    """The run's metrics that a panel shows, in the order of its patterns."""
    known = sorted({name for line in run.metrics for name in line})
    found = [name for pattern in panel.patterns for name in known if fnmatchcase(name, pattern)]
    if panel.patterns == ("eval_*",):
        found = [name for name in found if not any(fnmatchcase(name, pattern) for pattern in _NO_SCORE)]
    return list(dict.fromkeys(found))


def thinned(points: Series) -> Series:
    """At most MOST_POINTS: means of as many bins of neighbouring points; the last point stays as it is.

    >>> len(thinned([(float(i), 1.0) for i in range(10_000)])) <= MOST_POINTS
    True
    """
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil((len(points) - 1) / (MOST_POINTS - 1))
    bins = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    means = [tuple(sum(column) / len(part) for column in zip(*part, strict=True)) for part in bins]
    return [(x, y) for x, y in means] + points[-1:]


@dataclass(frozen=True)
class Drawn:
    """A chart as HTML, with what a reader without eyes, or without patience, needs: the last value of each line."""

    title: str
    unit: str
    svg: str
    last: list[tuple[str, str]]


def draw_panels(runs: Sequence[RunFiles]) -> list[Drawn]:
    """The panels that have a point; a colour for each run, or, with one run, for each metric."""
    found = []
    for panel in PANELS:
        lines = []
        for place, run in enumerate(runs):
            for number, name in enumerate(names_of(run, panel)):
                points = series(run, name)
                if points:
                    label = name if len(runs) == 1 else f"{run.name}: {name}"
                    colour = COLOURS[(place if len(runs) > 1 else number) % len(COLOURS)]
                    style = _STYLES[number % len(_STYLES)] if len(runs) > 1 else "-"
                    lines.append((label, points, colour, style))
        if not lines:
            continue
        figure = new_figure(4.4, 2.6)
        axes = figure.subplots()
        for label, points, colour, style in lines[:_MOST_LINES]:
            line = thinned(points)
            marker = "o" if len(line) < 12 else None
            axes.plot(
                [x for x, _ in line],
                [y for _, y in line],
                style,
                color=colour,
                # A legend of long names would leave no room for the lines.
                label=label if len(label) <= _LONGEST else f"{label[: _LONGEST - 3]}...",
                marker=marker,
                markersize=3,
                linewidth=1.4,
            )
        _dress(axes)
        last = [(label, f"{points[-1][1]:,.4g} at step {points[-1][0]:,.0f}") for label, points, *_ in lines]
        found.append(Drawn(panel.title, panel.unit, as_svg(figure, panel.title), last))
    return found


def _dress(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    bare(axes, "y")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("optimizer step", fontsize=8)
    if len(axes.get_lines()) > 1:
        axes.legend(fontsize=7, frameon=False)


def as_svg(figure: "Figure", name: str) -> str:
    """The figure as an <svg> for a page of either ground: transparent, grey words in the reader's own type, ids of its own.

    matplotlib escapes the words of titles, ticks and legends.
    """
    import matplotlib

    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=_INK, labelcolor=_INK)
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
        axes.title.set_color(_INK)
        for spine in axes.spines.values():
            spine.set_color(_INK)
        if (legend := axes.get_legend()) is not None:
            for label in legend.get_texts():
                label.set_color(_INK)
    figure.patch.set_alpha(0)
    buffer = io.BytesIO()
    # Words stay words, which can be searched and copied; equal figures are equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Several figures stand in one page: an id is its figure's alone.
    own = re.sub(r"\W+", "-", name)
    text = re.sub(r'(\sid="|="#|url\(#)', lambda match: f"{match.group(1)}{own}-", text)
    # The page's width decides, not a number of points.
    return re.sub(r'<svg\s+[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg class="plot" viewBox="\1" role="img">', text, count=1)
