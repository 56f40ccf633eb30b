"""The picture of a CLIP evaluation: distributions next to their shuffled baseline, and paired differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.clip.score import ClipScores
from drive_vlm.report.figures import COLOURS, bare, errors_of, new_figure, save

TITLES = {"text_text": "prediction · reference", "text_image": "prediction · picture"}


def plot_scores(path: Path, names: Sequence[str], scores: Sequence[ClipScores], result: dict[str, Any]) -> None:
    """Write a PNG: one violin a checkpoint with quartiles, mean, 95 % interval and shuffled mean; below, where there
    are several checkpoints, the paired difference to the first with its 95 % interval. `result` is the JSON result of
    tools/clip_eval.py."""
    comparisons = result["comparisons"]
    heights = [3.2, 0.9 + 0.35 * len(comparisons)] if comparisons else [3.2]
    width = max(8.0, 3.0 + 1.6 * len(names))
    figure = new_figure(width, sum(heights) + 1.2)
    rows = figure.subplots(len(heights), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for column, metric in enumerate(TITLES):
        entries = [_overall(result["checkpoints"][name]["datasets"])[metric] for name in names]
        _draw_distributions(rows[0][column], names, [getattr(part, metric) for part in scores], entries)
        rows[0][column].set_title(TITLES[metric])
        if comparisons:
            _draw_differences(rows[1][column], comparisons, metric)
    rows[0][0].set_ylabel("cosine")
    axes = rows[0][0]
    handles = [
        axes.errorbar([], [], [], fmt="o", color="black", markersize=4, capsize=3, label="mean, 95 % interval"),
        axes.vlines([], [], [], color="grey", linewidth=5, alpha=0.6, label="quartiles"),
        axes.hlines([], [], [], color="black", linestyle=":", label="mean against another sample (shuffled)"),
    ]
    figure.legend(handles=handles, fontsize=8, frameon=False, ncols=3, loc="outside lower center")
    figure.suptitle(f"CLIP scores, n = {len(scores[0].text_text)}, {result['clip']}", fontsize=10)
    save(figure, path)


def _overall(datasets: dict[str, Any]) -> dict[str, Any]:
    """The entry over all samples: the last one, since tools/clip_eval.py puts the sum behind the single sets."""
    return list(datasets.values())[-1]


def _draw_distributions(axes: Any, names: Sequence[str], values: Sequence[Any], entries: Sequence[dict]) -> None:
    places = list(range(len(names)))
    for place, sample, entry in zip(places, values, entries, strict=True):
        colour = COLOURS[place % len(COLOURS)]
        # Equal scores have no density to draw.
        if entry["sd"]:
            body = axes.violinplot(sample, positions=[place], widths=0.8, showextrema=False)["bodies"][0]
            body.set(facecolor=colour, alpha=0.3)
        axes.vlines(place, entry["q25"], entry["q75"], color=colour, linewidth=5, alpha=0.6)
        errors = errors_of(entry["mean"], entry["low"], entry["high"])
        axes.errorbar(place, entry["mean"], errors, fmt="o", color="black", markersize=4, capsize=5, zorder=3)
        # On a ground of its own: the line of the shuffled mean may pass behind it.
        ground = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
        point = (place, entry["mean"])
        axes.annotate(
            f"{entry['mean']:.3f}", point, (11, 0), textcoords="offset points", va="center", bbox=ground, zorder=4
        )
        if entry["shuffled_mean"] is not None:
            axes.hlines(entry["shuffled_mean"], place - 0.38, place + 0.38, color="black", linestyle=":", zorder=2)
    axes.set_xticks(places, names, rotation=0 if max(map(len, names)) < 14 else 15)
    axes.set_xlim(-0.7, len(names) - 0.3)
    bare(axes, "y")


def _draw_differences(axes: Any, comparisons: Sequence[dict], metric: str) -> None:
    for place, entry in enumerate(comparisons):
        change = entry[metric]
        errors = errors_of(change["difference"], change["low"], change["high"])
        colour = COLOURS[(place + 1) % len(COLOURS)]
        axes.errorbar(change["difference"], place, xerr=errors, fmt="o", color=colour, markersize=5, capsize=5)
        text, point = f"{change['difference']:+.3f}", (change["difference"], place)
        axes.annotate(text, point, (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(comparisons)), [entry["second"] for entry in comparisons])
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.margins(x=0.25)
    axes.set_xlabel(f"paired difference to {comparisons[0]['first']}, 95 % interval")
    bare(axes, "x")
