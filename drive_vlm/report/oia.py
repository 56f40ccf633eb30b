"""The report of tools/oia_eval.py: scores next to those of the baselines, how often each label is true and said, and both as pictures."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.data.predictions import BLIND
from drive_vlm.evaluation.oia import KINDS, OVERALL, REASON_ORDER, SHARES
from drive_vlm.evaluation.oia_labels import ACTION_TEXTS, REASON_TEXTS
from drive_vlm.report.figures import COLOURS, bare, errors_of, new_figure, save
from drive_vlm.report.tables import change, console, interval, table

if TYPE_CHECKING:
    from rich.text import Text

TITLES = {"F1_all": "F1_all", "mF1": "mF1", "micro_F1": "micro-F1", "accuracy": "accuracy", "exact": "exact"}
NONE = "(none)"
# Labels in the order of the tables and pictures, and where a group of reasons begins.
ORDER = {"action": ACTION_TEXTS, "reason": tuple(REASON_TEXTS[index] for index in REASON_ORDER)}
REASON_GROUPS = {"forward": 3, "stop": 6, "left": 6, "right": 6}
ANSWERS = ("JSON", "JSON in text", "text", "unread", "action unknown", "no action", "reason unknown", "no reason")
# Baselines of the picture; the others stand in the tables.
DRAWN = {"majority set": "s", "prior": "^", "random": "x", BLIND: "D"}


def print_tables(result: dict[str, Any]) -> None:
    """Print `result`, which is what tools/oia_eval.py writes with --json."""
    shown = console(150)
    of = f"{result['rows']:,} rows of {result['rows'] + result['rows_without_prediction']:,}, {result['videos']:,} videos"
    systems = list(_systems(result))
    columns = {kind: {TITLES[name]: (kind, name) for name in OVERALL} for kind in KINDS}
    columns["reason"]["pair F1"] = ("pair", "F1_all")
    columns["F1 of each action"] = {text: ("action", f"F1 {text}") for text in ACTION_TEXTS}
    for title, names in columns.items():
        rows: list[Sequence[str | Text] | None] = [
            [name, *(_cell(entry["scores"][kind][score]) for kind, score in names.values())] if entry else None
            for name, entry in systems
        ]
        title = f"{title}s" if title in KINDS else title
        shown.print(table(f"{title}: {of}, 95 % interval over videos", ("", *names), rows, whole=True))
    shown.print(_label_table(result))
    shown.print(_answer_table(result))
    for line in _notes(result):
        shown.print(line)
    for entry in result["comparisons"]:
        shown.print(_change_table(entry))


def _systems(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(name, its entry with "scores"): checkpoints, each with its nearest labels below it; None; baselines."""
    for name, entry in result["checkpoints"].items():
        yield name, entry
        if entry["nearest"]:
            yield f"{name}, nearest labels", entry["nearest"]
    yield "", None
    yield from result["baselines"].items()


def _cell(entry: dict[str, Any]) -> str:
    return f"{entry['value']:.3f}{interval(entry)}".replace(" ", "\n", 1)


def _label_table(result: dict[str, Any]) -> Any:
    """The seed paper's Figure 4 in numbers: rows in which a label is true and said, and its F1."""
    heads = ["label", "true"]
    rows: list[list[str] | None] = []
    for name in result["checkpoints"]:
        heads += [f"{name}: said", "F1"]
    for kind, labels in ORDER.items():
        for label in (*labels, NONE):
            cells = [label, _count(result["true"][kind][label], result["rows"])]
            for entry in result["checkpoints"].values():
                f1 = "" if label == NONE else f"{entry['scores'][kind][f'F1 {label}']['value']:.3f}"
                cells += [_count(entry["said"][kind][label], result["rows"]), f1]
            rows.append(cells)
        rows.append(None)
    return table("how often each label is true and said (none: no label, or all out of vocabulary)", heads, rows)


def _count(count: int, rows: int) -> str:
    return f"{count:,} ({count / rows:.1%})"


def _answer_table(result: dict[str, Any]) -> Any:
    """How answers are written, and what of them is no label; in shares of all answers."""
    rows = [
        [
            name,
            *(
                f"{entry['answers'][key]['value']:.1%}{interval(entry['answers'][key], '.1%')}".replace(" ", "\n", 1)
                for key in SHARES
            ),
        ]
        for name, entry in result["checkpoints"].items()
    ]
    return table("answers by form, and out of vocabulary", ("", *ANSWERS), rows, whole=True)


def _notes(result: dict[str, Any]) -> Iterator[str]:
    """What is out of vocabulary, cut or left out, and where the baselines come from, in words."""
    for name, entry in result["checkpoints"].items():
        for kind, unknown in entry["unknown"].items():
            if unknown["different"]:
                # As JSON: a text may hold line ends and control characters.
                texts = ", ".join(
                    f"{json.dumps(text[:60], ensure_ascii=False)} {count:,}" for text, count in unknown["commonest"]
                )
                yield f"{name}: {unknown['different']:,} {kind} texts are out of vocabulary and count for nothing; the commonest: {texts}"
        if entry["cut"]:
            yield f"{name}: {entry['cut']:,} of {result['rows']:,} answers were cut at the limit of new tokens"
        if entry["ids_left_out"]:
            yield f"{name}: {entry['ids_left_out']:,} ids left out, missing in another file"
    if result["rows_without_prediction"]:
        yield f"{result['rows_without_prediction']:,} rows of --data have no prediction and are left out"
    source = result["baselines_know"] or "the evaluated rows themselves, for want of --train"
    yield f"majority, commonest labels, always and prior know the labels of {source}"


def _change_table(entry: dict[str, Any]) -> Any:
    """One row a score, one column a kind; then the forms. A change whose interval leaves out 0 is bold."""
    moved = entry["scores"]
    kinds = ("action", "reason", "pair")
    rows: list[Sequence[str | Text] | None] = []
    rows += [[TITLES[name], *(change(moved[kind].get(name)) for kind in kinds)] for name in OVERALL]
    rows.append(None)
    rows += [[f"F1 {text}", change(moved["action"][f"F1 {text}"]), "", ""] for text in ACTION_TEXTS]
    rows.append(None)
    shares = zip(ANSWERS, SHARES, strict=True)
    rows += [[f"share: {title}", change(entry["answers"][key]), "", ""] for title, key in shares]
    return table(f"{entry['second']} - {entry['first']}", ("change of", "actions", "reasons", "pairs"), rows)


# --- pictures


def plot_distribution(path: Path, result: dict[str, Any]) -> None:
    """Write a PNG as the seed paper's Figure 4: the share of rows in which each label is true, and is said by each checkpoint."""
    figure = new_figure(13, 8.5)
    panels = figure.subplots(2, 1)
    for axes, (kind, labels) in zip(panels, ORDER.items(), strict=True):
        names = (*labels, NONE)
        series = {"true": result["true"]} | {name: entry["said"] for name, entry in result["checkpoints"].items()}
        for place, (name, counts) in enumerate(series.items()):
            heights = [100 * counts[kind][label] / result["rows"] for label in names]
            _bars(axes, heights, None, place, len(series), name, "#666666" if place == 0 else _colour(place - 1))
        _name_places(axes, kind, names)
        axes.set_ylabel("% of rows")
        axes.set_title(f"{kind}s: true and said", fontsize=10, loc="left")
    _finish(figure, panels[0], f"{result['rows']:,} rows; none: no label, or all out of vocabulary", path)


def plot_scores(path: Path, result: dict[str, Any]) -> None:
    """Write a PNG as the seed paper's Figure 5: F1 over rows and over classes, of each action and of each reason; marks are baselines."""
    figure = new_figure(13, 8.5)
    panels = figure.subplot_mosaic([["overall", "action"], ["reason", "reason"]])
    overall = {
        "action\nF1_all": ("action", "F1_all"),
        "action\nmF1": ("action", "mF1"),
        "reason\nF1_all": ("reason", "F1_all"),
        "reason\nmF1": ("reason", "mF1"),
        "pair\nF1_all": ("pair", "F1_all"),
    }
    scores = {"overall": overall} | {kind: {label: (kind, f"F1 {label}") for label in ORDER[kind]} for kind in KINDS}
    checkpoints, baselines = result["checkpoints"], result["baselines"]
    for panel, names in scores.items():
        axes = panels[panel]
        for place, (name, entry) in enumerate(checkpoints.items()):
            found = [entry["scores"][kind][score] for kind, score in names.values()]
            heights = [item["value"] for item in found]
            bars = [errors_of(item["value"], item["low"], item["high"]) for item in found]
            errors = [[low for (low,), _ in bars], [high for _, (high,) in bars]]
            _bars(axes, heights, errors, place, len(checkpoints), name, _colour(place))
        for name, marker in DRAWN.items():
            if name in baselines:
                values = [baselines[name]["scores"][kind][score]["value"] for kind, score in names.values()]
                axes.plot(range(len(values)), values, marker, color="black", markersize=4, label=name, fillstyle="none")
        _name_places(axes, panel, tuple(names))
        axes.set_ylim(0, 1)
        axes.set_title(
            {"overall": "F1", "action": "F1 of each action", "reason": "F1 of each reason"}[panel],
            fontsize=10,
            loc="left",
        )
    _finish(
        figure, panels["overall"], f"{result['rows']:,} rows, 95 % intervals over {result['videos']:,} videos", path
    )


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _bars(axes: Any, heights: list[float], errors: Any, place: int, of: int, label: str, colour: str) -> None:
    """One of `of` bars at each place."""
    width = 0.8 / of
    shifted = [x + width * (place + 0.5) - 0.4 for x in range(len(heights))]
    axes.bar(
        shifted,
        heights,
        width,
        yerr=errors,
        color=colour,
        label=label,
        error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
    )


def _name_places(axes: Any, kind: str, names: Sequence[str]) -> None:
    """Labels below the bars; lines between the groups of reasons, whose names stand above them."""
    slanted = kind == "reason"
    axes.set_xticks(
        range(len(names)), names, fontsize=8, rotation=35 if slanted else 0, ha="right" if slanted else "center"
    )
    axes.set_xlim(-0.6, len(names) - 0.4)
    bare(axes, "y")
    begin = 0
    for name, size in REASON_GROUPS.items() if slanted else ():
        axes.text(
            begin + (size - 1) / 2, 0.99, name, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=8
        )
        begin += size
        if begin < len(names):
            axes.axvline(begin - 0.5, color="grey", linewidth=0.6, linestyle=":")


def _finish(figure: Any, axes: Any, title: str, path: Path) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=len(labels), loc="outside lower center")
    figure.suptitle(title, fontsize=10)
    save(figure, path)
