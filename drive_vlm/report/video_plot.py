"""The picture of tools/video_eval.py: object scores and reward terms of each checkpoint with 95 % intervals, by mode."""

from pathlib import Path
from typing import Any

from drive_vlm.report.video_table import OBJECTS, TERMS

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # Tol's bright set, colour-blind safe


def plot_scores(path: Path, result: dict[str, Any]) -> None:
    """Write a PNG from what tools/video_eval.py writes with --json: one row of panels a mode."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    checkpoints = result["checkpoints"]
    first = next(iter(checkpoints.values()))["modes"]
    scores = [
        ("objects", OBJECTS, "value"),
        *(
            [("truth", OBJECTS, "value")]
            if any(c["modes"][mode]["truth"] for c in checkpoints.values() for mode in first)
            else []
        ),
    ]
    scores.append(("terms", {key: name for key, name in TERMS.items() if key != "words"}, "mean"))
    titles = {"objects": "objects, detector", "truth": "objects, exact classes", "terms": "reward and terms"}
    figure = Figure(figsize=(4.6 * len(scores), 2.6 * len(first) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(first), len(scores), squeeze=False)
    for row, mode in zip(panels, first, strict=True):
        for axes, (part, names, value) in zip(row, scores, strict=True):
            for place, (label, checkpoint) in enumerate(checkpoints.items()):
                if not checkpoint["modes"][mode][part]:
                    continue  # its rows hold no exact classes
                shift = 0.7 * ((place + 0.5) / len(checkpoints) - 0.5)
                entries = [checkpoint["modes"][mode][part][name] for name in names]
                _draw(axes, entries, value, shift, label, _COLOURS[place % len(_COLOURS)])
            axes.set_xticks(range(len(names)), names.values(), fontsize=8)
            axes.set_ylim(-0.03, 1.05)
            axes.set_title(f"{titles[part]}: {mode}", fontsize=9)
            axes.grid(axis="y", alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=len(labels), loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw(axes: Any, entries: list[dict[str, Any]], value: str, shift: float, label: str, colour: str) -> None:
    """Points with error bars; an undefined score leaves its place empty."""
    places = [place for place, entry in enumerate(entries) if entry[value] is not None]
    values = [entries[place][value] for place in places]
    errors = [
        [
            max(0.0, sign * (entries[place][end] - entries[place][value])) if entries[place][end] is not None else 0.0
            for place in places
        ]
        for end, sign in (("low", -1), ("high", 1))
    ]
    shifted = [place + shift for place in places]
    axes.errorbar(shifted, values, errors, fmt="o", color=colour, markersize=4, capsize=3, label=label)
