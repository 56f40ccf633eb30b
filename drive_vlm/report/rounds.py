"""The picture of a chain of self-play rounds: what each model is worth, and the reward margin within each round."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.report.figures import COLOURS, bare, errors_of, new_figure, save

# The first colour is the models'.
BLUE, *ROUNDS = COLOURS


def plot_rounds(
    path: Path, name: str, rows: Sequence[Mapping[str, Any]], curves: Mapping[str, Sequence[Mapping[str, float]]]
) -> None:
    """Write a PNG: the metric `name` of every model with its interval, and where `rows` hold win rates those against SFT; below,
    where a round was trained, margin and reward accuracy over its steps.

    `rows` and `curves` as table and training_curves of drive_vlm/rounds/table.py give them.
    """
    values = {row["model"]: {"mean": row["value"], "low": row["low"], "high": row["high"]} for row in rows}
    rates = {row["model"]: rate | {"mean": rate["rate"]} for row in rows if (rate := row["win_rate"])}
    trained = bool(curves)
    figure = new_figure(10.0, 6.4 if trained else 3.4)
    grid = figure.add_gridspec(2 if trained else 1, 2)
    if rates:
        _draw_models(figure.add_subplot(grid[0, 0]), values, f"{name} on held-out rows, 95 % interval")
        axes = figure.add_subplot(grid[0, 1])
        axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
        _draw_models(axes, rates, "win rate against SFT, 95 % interval")
    else:
        _draw_models(figure.add_subplot(grid[0, :]), values, f"{name} on held-out rows, 95 % interval")
    if trained:
        title = "reward margin, chosen - rejected (beta x log-ratio)"
        _draw_curves(figure.add_subplot(grid[1, 0]), curves, "margin", title)
        _draw_curves(figure.add_subplot(grid[1, 1]), curves, "accuracy", "share of pairs with a positive margin")
    save(figure, path)


def _draw_models(axes: Any, entries: Mapping[str, Mapping[str, Any]], title: str) -> None:
    for place, entry in enumerate(entries.values()):
        mean, errors = entry["mean"], errors_of(entry["mean"], entry["low"], entry["high"])
        axes.errorbar(place, mean, errors, fmt="o", color=BLUE, markersize=5, capsize=5)
        axes.annotate(f"{mean:.3f}", (place, mean), (9, 0), textcoords="offset points", va="center")
    axes.set_xticks(range(len(entries)), list(entries))
    axes.set_xlim(-0.5, len(entries) - 0.3)
    _finish(axes, title)


def _draw_curves(axes: Any, curves: Mapping[str, Sequence[Mapping[str, float]]], key: str, title: str) -> None:
    for place, (number, points) in enumerate(curves.items()):
        steps, values = [point["step"] for point in points], [point[key] for point in points]
        color = ROUNDS[place % len(ROUNDS)]
        axes.plot(steps, values, color=color, linewidth=1.6, label=f"round {number}")
    axes.set_xlabel("step of the round")
    _finish(axes, title)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.02))
    # Room for the legend above the curves.
    axes.set_ylim(top=axes.get_ylim()[1] + 0.1 * (axes.get_ylim()[1] - axes.get_ylim()[0]))


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.margins(y=0.12)
    bare(axes, "y")
