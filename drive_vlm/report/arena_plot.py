"""The picture of an arena: Bradley-Terry ratings with their intervals beside the matrix of win rates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.evaluation.arena import Rating, WinRate


def plot_arena(
    path: Path, ratings: Mapping[str, Rating], rates: Mapping[str, Mapping[str, WinRate]], title: str
) -> None:
    """Write a PNG. `rates[model][other]` as win_rates gives it; pairs that never met stay white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(ratings, key=lambda name: -ratings[name].rating)
    size = max(3.4, 1.2 + 0.55 * len(names))
    figure = Figure(figsize=(2.6 * size, size), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_ratings(left, names, ratings)
    _draw_matrix(figure, right, names, rates)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_ratings(axes: Any, names: Sequence[str], ratings: Mapping[str, Rating]) -> None:
    for place, name in enumerate(names):
        entry = ratings[name]
        errors = [[max(0.0, entry.rating - entry.low)], [max(0.0, entry.high - entry.rating)]]
        axes.errorbar(entry.rating, place, xerr=errors, fmt="o", color="#4477aa", markersize=5, capsize=4)
        axes.annotate(
            f"{entry.rating:.0f}", (entry.rating, place), (0, 7), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.15)
    axes.set_xlabel("Bradley-Terry rating, 95 % interval (400 points: odds 10 to 1)")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_matrix(figure: Any, axes: Any, names: Sequence[str], rates: Mapping[str, Mapping[str, WinRate]]) -> None:
    import numpy as np

    table = np.full((len(names), len(names)), np.nan)
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            if other in rates.get(name, {}):
                table[i, j] = rates[name][other].rate
                dark = abs(table[i, j] - 0.5) > 0.3
                text = f"{100 * table[i, j]:.0f}\nn {rates[name][other].n}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    image = axes.imshow(table, cmap="RdBu", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("win rate of the row against the column, %", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8)
