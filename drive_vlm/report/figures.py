"""What the pictures share: a figure without a screen, Tol's colours, intervals as error bars, bare axes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Paul Tol's bright scheme, which colour-blind readers can distinguish.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, width and height in inches, that needs no screen. Words between dollar signs are words."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Names of data stand in titles, ticks and legends, and one such as "$x" would be an unfinished formula.
    rcParams["text.parse_math"] = False
    figure = Figure(figsize=(width, height), layout="constrained")
    # pyplot would keep every figure alive and look for a screen; a canvas of its own does neither.
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write the PNG; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def errors_of(value: float, low: float | None, high: float | None) -> list[list[float]]:
    """The two lengths of an error bar from an interval; none where there is no interval."""
    low, high = (value if end is None else end for end in (low, high))
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def bare(axes: Any, grid: str) -> None:
    """Leave a light grid along the axis `grid`, and the spines that carry numbers."""
    axes.grid(axis=grid, alpha=0.25)
    axes.spines[["top", "right"] if grid == "y" else ["top", "right", "left"]].set_visible(False)
