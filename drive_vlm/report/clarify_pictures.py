"""The pictures of tools/clarify_eval.py, one PNG for each question: see `plot_all`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.data.predictions import BLIND
from drive_vlm.evaluation.clarify import ALWAYS, KINDS, NEVER, RIGHT
from drive_vlm.evaluation.clarify_choices import LETTERS, UNREAD
from drive_vlm.evaluation.clarify_raters import FIELDS
from drive_vlm.report.clarify import CELLS, FEW, choice_entries, systems
from drive_vlm.report.figures import COLOURS, bare, errors_of, new_figure, save

# Thirteen kinds need as many colours: Tol's bright scheme, its muted one, and grey for what is right.
KIND_COLOURS = (*COLOURS, "#332288", "#88ccee", "#44aa99", "#999933", "#882255", "#661100", "#dddddd")
GREY = "#bbbbbb"
MARKERS = {ALWAYS: "^", NEVER: "v", BLIND: "x"}
# Panels of a run on the reward "clarify": title -> metric of its log -> (words, the alarm that watches it).
TRAINING: dict[str, dict[str, tuple[str, str]]] = {
    "what the replies earn": {
        "reward": ("reward", ""),
        "clarify/train_judge": ("training's judge", "judges_part"),
        "clarify/held_out_judge": ("held-out judge, same replies", ""),
    },
    "when the policy asks back": {
        "clarify/asked_when_ambiguous": ("of ambiguous rows", ""),
        "clarify/asked_when_clear": ("of clear rows: over-asking", "over_asking"),
    },
    "what a judge may be fooled by": {
        "clarify/question_marks": ("question marks a reply", "question_marks"),
        "clarify/markdown": ("replies with markup", "markdown"),
        "clarify/unread": ("verdicts that cannot be read", "unread"),
    },
}
# Up to so many points a curve shows each.
_SPARSE = 40


def plot_all(folder: Path, result: dict[str, Any]) -> list[str]:
    """Write the pictures that `result` has numbers for; returns their paths.

    confusion, failures, asking (over- against under-asking), parts (recall by what the rows are), lengths (score by
    length of the reply) always; calibration, choices, agreement and training where there are samples, four options, several
    raters, and runs of the reward.
    """
    made: dict[str, tuple[Callable[[Path, dict[str, Any]], None], bool]] = {
        "confusion": (plot_confusion, True),
        "failures": (plot_failures, True),
        "asking": (plot_asking, True),
        "parts": (plot_parts, True),
        "lengths": (plot_lengths, True),
        "calibration": (plot_calibration, any(entry["calibration"] for entry in result["checkpoints"].values())),
        "choices": (plot_choices, bool(choice_entries(result))),
        "agreement": (plot_agreement, bool(result["agreement"])),
        "training": (plot_training, bool(result["training"])),
    }
    paths = []
    for name, (plot, there) in made.items():
        if there:
            path = folder / f"{name}.png"
            plot(path, result)
            paths.append(str(path))
    return paths


def plot_confusion(path: Path, result: dict[str, Any]) -> None:
    """Rows by truth and reply, as shares of the truth's rows, a panel for each system."""
    names = list(systems(result))
    figure = new_figure(2.6 * len(names) + 0.6, 2.9)
    for axes, (name, entry) in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        truths, saids = ("ambiguous", "clear"), ("asked", "listed", "answered")
        shares = [[0.0] * len(saids) for _ in truths]
        for truth, said in CELLS:
            row, column = truths.index(truth), saids.index(said)
            count, total = entry["confusion"][truth][said], sum(entry["confusion"][truth].values())
            share = shares[row][column] = count / total if total else 0.0
            axes.text(
                column,
                row,
                f"{share:.0%}\n{count:,}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share > 0.6 else "black",
            )
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(saids)), saids, fontsize=8)
        axes.set_yticks(range(len(truths)), truths, fontsize=8, rotation=90, va="center")
        axes.set_title(name, fontsize=9)
    figure.suptitle("truth (rows) and reply (columns)", fontsize=10)
    save(figure, path)


def plot_failures(path: Path, result: dict[str, Any]) -> None:
    """The kinds of failure of each system, stacked to 100 %."""
    names = list(systems(result))
    figure = new_figure(9.5, 1.6 + 0.5 * len(names))
    axes = figure.subplots()
    left = [0.0] * len(names)
    for colour, (kind, words) in zip(KIND_COLOURS, KINDS.items(), strict=True):
        shares = [100 * (entry["scores"][f"failure {kind}"]["value"] or 0) for _, entry in names]
        if not any(shares):
            continue
        axes.barh(range(len(names)), shares, left=left, color=colour, label=words, edgecolor="white", linewidth=0.5)
        for place, (share, start) in enumerate(zip(shares, left, strict=True)):
            if share >= 4:
                axes.text(
                    start + share / 2,
                    place,
                    f"{share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if kind == RIGHT else "white",
                )
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(names)), [name for name, _ in names], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of rows; a row has the first kind that fits")
    bare(axes, "x")
    figure.legend(fontsize=8, frameon=False, ncols=3, loc="outside lower center")
    save(figure, path)


def plot_asking(path: Path, result: dict[str, Any]) -> None:
    """Over-asking against under-asking with lines of equal J; the lower left corner is right, the dashed line is no look."""
    figure = new_figure(5.6, 5.4)
    axes = figure.subplots()
    for tenth in range(0, 10, 2):
        j = tenth / 10
        # under-asking = 1 - recall = 1 - J - over-asking
        axes.plot([0, 1 - j], [1 - j, 0], color=GREY, linewidth=0.8, linestyle="--" if tenth == 0 else ":", zorder=1)
        axes.annotate(
            f"J {j:g}", ((1 - j) / 2, (1 - j) / 2), (2, 2), textcoords="offset points", fontsize=7, color="#888888"
        )
    for place, (name, entry) in enumerate(systems(result)):
        over, under = entry["scores"]["over_asking"], entry["scores"]["under_asking"]
        if over["value"] is None or under["value"] is None:
            continue
        own = name in result["checkpoints"]
        # A fixed point has no interval to draw.
        drawn = own or name == BLIND
        axes.errorbar(
            over["value"],
            under["value"],
            xerr=errors_of(over["value"], over["low"], over["high"]) if drawn else None,
            yerr=errors_of(under["value"], under["low"], under["high"]) if drawn else None,
            fmt="o" if own else MARKERS[name],
            color=COLOURS[place % len(COLOURS)] if own else "black",
            capsize=3,
            markersize=6,
            label=name,
            zorder=3,
        )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("over-asking: clear rows asked back")
    axes.set_ylabel("under-asking: ambiguous rows not asked back")
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def plot_parts(path: Path, result: dict[str, Any]) -> None:
    """Recall of asking by what the rows are; where a value has no ambiguous rows, nothing; with fewer than FEW cases grey."""
    checkpoints = result["checkpoints"]
    parts = {
        part: [value for value, rates in values.items() if rates["ask_recall"]["n"]]
        for part, values in next(iter(checkpoints.values()))["parts"].items()
    }
    parts = {part: values for part, values in parts.items() if values}
    if not parts:
        return
    columns = min(4, len(parts))
    lines = -(-len(parts) // columns)
    figure = new_figure(3.4 * columns, 2.7 * lines + 0.4)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(parts) :]:
        axes.set_axis_off()
    for axes, (part, values) in zip(panels, parts.items(), strict=False):
        for place, entry in enumerate(checkpoints.values()):
            width = 0.8 / len(checkpoints)
            for x, value in enumerate(values):
                rate = entry["parts"][part][value]["ask_recall"]
                few = rate["n"] < FEW
                axes.bar(
                    x + width * (place + 0.5) - 0.4, rate["value"] or 0, width, color=GREY if few else COLOURS[place % len(COLOURS)],
                    yerr=errors_of(rate["value"] or 0, rate["low"], rate["high"]), error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
                    hatch="//" if few else None, edgecolor="white",
                )  # fmt: skip
        ns = [next(iter(checkpoints.values()))["parts"][part][value]["ask_recall"]["n"] for value in values]
        axes.set_xticks(
            range(len(values)), [f"{value}\nn {n:,}" for value, n in zip(values, ns, strict=True)], fontsize=7
        )
        axes.set_ylim(0, 1.02)
        axes.set_title(part, fontsize=9, loc="left")
        bare(axes, "y")
    handles = [_patch(COLOURS[place % len(COLOURS)], name) for place, name in enumerate(checkpoints)] + [
        _patch(GREY, f"n < {FEW}")
    ]
    figure.legend(handles=handles, fontsize=8, frameon=False, ncols=len(handles), loc="outside lower center")
    figure.suptitle("ambiguous rows that are asked back, 95 % intervals", fontsize=10)
    save(figure, path)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def plot_lengths(path: Path, result: dict[str, Any]) -> None:
    """Strategy by the length of the reply, in bins of about as many: by rule, and dashed by the judge. A judge that likes long replies shows."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for place, (name, entry) in enumerate(result["checkpoints"].items()):
        colour = COLOURS[place % len(COLOURS)]
        for rater, style in (("strategy", "-"), ("judge", "--")):
            parts = [part for part in entry["lengths"] if part[rater]["n"]]
            if not parts:
                continue
            words, rates = [part["words"] for part in parts], [part[rater] for part in parts]
            ends = [errors_of(rate["value"], rate["low"], rate["high"]) for rate in rates]
            errors = [[low for (low,), _ in ends], [high for _, (high,) in ends]]
            label = name if rater == "strategy" else f"{name}, judge"
            axes.errorbar(
                words,
                [rate["value"] for rate in rates],
                errors,
                fmt=f"o{style}",
                color=colour,
                capsize=3,
                markersize=4,
                label=label,
            )
            few = [(x, rate["value"]) for x, rate in zip(words, rates, strict=True) if rate["n"] < FEW]
            axes.plot([x for x, _ in few], [y for _, y in few], "o", color=GREY, markersize=5, zorder=3)
    axes.set_ylim(0.9, 4.1)
    axes.set_xlabel(f"words of the reply (grey: n < {FEW})")
    axes.set_ylabel("strategy, 1 to 4")
    axes.legend(fontsize=8, frameon=False)
    bare(axes, "y")
    save(figure, path)


def plot_calibration(path: Path, result: dict[str, Any]) -> None:
    """Left: how often asking is right where the model asks so often. Right: the errors among the rows that it asks least about."""
    figure = new_figure(9.6, 4.4)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=0.8)
    for place, (name, entry) in enumerate(result["checkpoints"].items()):
        if (found := entry["calibration"]) is None:
            continue
        colour = COLOURS[place % len(COLOURS)]
        points = found["reliability"]
        left.plot([item["p"] for item in points], [item["y"] for item in points], "-", color=colour, linewidth=0.9, label=f"{name}, ECE {found['scores']['ECE_mass']['value']:.3f}")  # fmt: skip
        for item in points:
            left.plot(
                item["p"],
                item["y"],
                "o",
                color=GREY if item["n"] < FEW else colour,
                markersize=3 + 9 * (item["n"] / found["rows"]) ** 0.5,
            )
        curve = found["risk_coverage"]
        if curve:
            area = f"{found['AURC']:.3f}"
            right.plot([item["coverage"] for item in curve], [item["risk"] for item in curve], "o-", color=colour, markersize=3, linewidth=1, label=f"{name}, AURC {area}")  # fmt: skip
    left.set_xlabel("share of sampled replies that ask")
    left.set_ylabel("share of them that are ambiguous")
    left.set_title(f"calibration (dots by rows; grey: n < {FEW})", fontsize=9, loc="left")
    right.set_xlabel("coverage: rows it asks least about")
    right.set_ylabel("risk: wrong answers among them")
    right.set_title("risk and coverage", fontsize=9, loc="left")
    for axes in (left, right):
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def plot_choices(path: Path, result: dict[str, Any]) -> None:
    """Left: accuracy by the place of the right option. Right: how often each letter is said; a fourth would be fair."""
    entries = choice_entries(result)
    figure = new_figure(9.6, 3.9)
    panels = {
        "accuracy gold": ("accuracy by the place of the right option", LETTERS),
        "said": ("letter that is said", (*LETTERS, UNREAD)),
    }
    for axes, (score, (title, places)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for number, (name, entry) in enumerate(entries.items()):
            rates = [entry["scores"][f"{score} {place}"] for place in places]
            width = 0.8 / len(entries)
            ends = [errors_of(rate["value"] or 0, rate["low"], rate["high"]) for rate in rates]
            errors = [[low for (low,), _ in ends], [high for _, (high,) in ends]]
            colour = COLOURS[number % len(COLOURS)] if name in result["checkpoints"] else "#777777"
            shifted = [x + width * (number + 0.5) - 0.4 for x in range(len(rates))]
            axes.bar(shifted, [rate["value"] or 0 for rate in rates], width, yerr=errors, color=colour, label=name, error_kw={"elinewidth": 0.8, "ecolor": "#333333"})  # fmt: skip
        axes.axhline(0.25, color="black", linewidth=0.7, linestyle=":")
        axes.set_xticks(range(len(places)), places)
        axes.set_ylim(0, 1)
        axes.set_title(title, fontsize=9, loc="left")
        bare(axes, "y")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=len(labels), loc="outside lower center")
    save(figure, path)


def plot_agreement(path: Path, result: dict[str, Any]) -> None:
    """Kappa of each two raters: strategy (quadratic), factual, asked."""
    import numpy as np

    entries = result["agreement"]
    names = list(dict.fromkeys(name for entry in entries for name in (entry["first"], entry["second"])))
    figure = new_figure(3.4 * len(FIELDS) + 0.8, 1.9 + 0.7 * len(names))
    for axes, field in zip(figure.subplots(1, len(FIELDS)), FIELDS, strict=True):
        matrix = np.full((len(names), len(names)), np.nan)
        for entry in entries:
            rate = entry[field]["kappa"]
            if rate["value"] is None:
                continue
            for i, j in _both(names, entry):
                matrix[i, j] = rate["value"]
                few = rate["n"] < FEW
                colour = "#777777" if few else "white" if rate["value"] > 0.65 else "black"
                axes.text(
                    j, i, f"{rate['value']:.2f}\nn {rate['n']:,}", ha="center", va="center", fontsize=8, color=colour
                )
        axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(names)), names, fontsize=7, rotation=25, ha="right")
        axes.set_yticks(range(len(names)), names if field == FIELDS[0] else [""] * len(names), fontsize=7)
        axes.set_title(f"{field}: {'quadratic kappa' if field == 'strategy' else 'kappa'}", fontsize=9)
    save(figure, path)


def _both(names: Sequence[str], entry: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    first, second = names.index(entry["first"]), names.index(entry["second"])
    return (first, second), (second, first)


def plot_training(path: Path, result: dict[str, Any]) -> None:
    """The curves of each run on the reward, a line of panels a run; rings are batches at which an alarm sounds, crosses are canaries."""
    runs = result["training"]
    figure = new_figure(4.2 * len(TRAINING), 3.3 * len(runs) + 0.2)
    for panels, (name, run) in zip(figure.subplots(len(runs), len(TRAINING), squeeze=False), runs.items(), strict=True):
        for axes, (title, metrics) in zip(panels, TRAINING.items(), strict=True):
            for colour, (metric, (words, alarm)) in zip(COLOURS, metrics.items(), strict=False):
                points = run["curves"].get(metric, [])
                if not points:
                    continue
                style = "o-" if len(points) <= _SPARSE else "-"
                axes.plot(*zip(*points, strict=True), style, color=colour, markersize=3, linewidth=1, label=words)
                loud = {step for step, on in run["curves"].get(f"alarm/{alarm}", []) if on}
                if rung := [point for point in points if point[0] in loud]:
                    axes.plot(
                        *zip(*rung, strict=True), "o", color="black", fillstyle="none", markersize=8, label="alarm"
                    )
            if title == next(iter(TRAINING)) and run["canaries"]:
                best = [(probe["step"], max(probe["earned"].values())) for probe in run["canaries"]]
                axes.plot(*zip(*best, strict=True), "x", color="black", label="best canary reply")
            axes.set_title(f"{name}: {title}" if axes is panels[0] else title, fontsize=9, loc="left")
            axes.set_xlabel("step")
            low, high = axes.get_ylim()
            # Room for the legend above the curves.
            axes.set_ylim(min(0.0, low), max(0.1, high + 0.4 * (high - min(0.0, low))))
            bare(axes, "y")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)
    save(figure, path)
