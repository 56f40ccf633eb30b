"""The report of tools/video_eval.py: tables with a row for each checkpoint and mode, the changes, and the picture."""

from pathlib import Path
from typing import Any

from drive_vlm.report.figures import COLOURS, bare, errors_of, new_figure, save
from drive_vlm.report.tables import console as console_of

OBJECTS = {"precision": "precision", "recall": "recall", "f1": "F1", "chair_i": "CHAIR_i", "chair_s": "CHAIR_s"}
TERMS = {
    "reward": "reward",
    "object": "R_obj",
    "temporal": "R_temp",
    "detail": "R_detail",
    "hallucination": "R_hall",
    "words": "words",
}
OVERLAP = {"Bleu_1": "BLEU-1", "Bleu_4": "BLEU-4", "ROUGE_L": "ROUGE-L", "CIDEr": "CIDEr"}
CLIP = {"text_text": "text - text", "text_frames": "text - frames"}


def print_tables(result: dict[str, Any]) -> None:
    """Print `result`, which is what tools/video_eval.py writes with --json."""
    console = console_of(150)
    modes = [mode for checkpoint in result["checkpoints"].values() for mode in checkpoint["modes"].values()]
    console.print(_table("objects against the detector", OBJECTS, result, "objects", "value"))
    if any(mode["truth"] for mode in modes):
        console.print(_table("objects against the exact classes", OBJECTS, result, "truth", "value"))
    console.print(_table("reward and its terms", TERMS, result, "terms", "mean"))
    console.print(_overlap_table(result))
    for name, checkpoint in result["checkpoints"].items():
        _print_counts(console, name, checkpoint)
    for entry in result["comparisons"]:
        console.print(_change_table(entry))


def _table(title: str, names: dict[str, str], result: dict[str, Any], part: str, value: str) -> Any:
    from rich.table import Table

    table = Table(title=f"{title}, 95 % interval", title_justify="left")
    for column in ("checkpoint", "mode"):
        table.add_column(column, overflow="fold")
    for column in ("n", *names.values()):
        table.add_column(column, justify="right")
    for name, checkpoint in result["checkpoints"].items():
        for mode, entry in checkpoint["modes"].items():
            table.add_row(
                name, mode, str(entry["n"]), *(_cell(entry[part][key], value) if entry[part] else "-" for key in names)
            )
    return table


def _overlap_table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    with_clip = any(
        mode["clip"] for checkpoint in result["checkpoints"].values() for mode in checkpoint["modes"].values()
    )
    title = "overlap with the reference" + (" and CLIP" if with_clip else "") + ", 95 % interval"
    table = Table("checkpoint", "mode", title=title, title_justify="left")
    for column in (*OVERLAP.values(), *(CLIP.values() if with_clip else ())):
        table.add_column(column, justify="right")
    for name, checkpoint in result["checkpoints"].items():
        for mode, entry in checkpoint["modes"].items():
            cells = [_cell(entry["text_overlap"][key], "value") for key in OVERLAP]
            table.add_row(name, mode, *cells, *(_cell(clip, "mean") for clip in (entry["clip"] or {}).values()))
    return table


def _cell(entry: dict[str, Any], value: str) -> str:
    number = entry[value]
    if number is None:
        return "-"
    digits = 1 if abs(number) >= 10 else 3
    if entry["low"] is None:
        return f"{number:.{digits}f}"
    gap = "\n" if value == "mean" else " "
    return f"{number:.{digits}f}{gap}[{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"


def _print_counts(console: Any, name: str, checkpoint: dict[str, Any]) -> None:
    obeyed = checkpoint["adherence"]
    if obeyed:
        text = f"{name}: concise / detailed words, median {_cell(obeyed['ratio'], 'value')}; concise is shorter in "
        text += f"{_cell(obeyed['shorter'], 'value')}, at most half in {_cell(obeyed['half'], 'value')} of {obeyed['pairs']} pairs"
        counted = [f"{obeyed[key]} {key}" for key in ("unpaired", "silent") if obeyed[key]]
        console.print(text + (f" ({', '.join(counted)})" if counted else ""), highlight=False)
    every = list(checkpoint["modes"].values())[-1]
    words = {"unverified": "texts claim no object", "empty": "texts are empty"}
    words["no_reference"] = "references have no word of time or no adjective: nothing to earn there"
    lines = [f"{every[key]} of {every['n']} {word}" for key, word in words.items() if every[key]]
    words = {
        "ids_left_out": "ids left out, missing in another file",
        "rows_without_detections": "rows left out, no detections",
    }
    lines += [f"{checkpoint[key]} {word}" for key, word in words.items() if checkpoint[key]]
    for line in lines:
        console.print(f"{name}: {line}", highlight=False)


def _change_table(entry: dict[str, Any]) -> Any:
    """One row a score, one column a mode; a change whose interval leaves out 0 is bold."""
    from rich.table import Table

    modes = entry["modes"]
    table = Table(title=f"{entry['second']} - {entry['first']}", title_justify="left")
    table.add_column("change of")
    for mode in modes:
        table.add_column(mode, justify="right")
    for part, names, value in (
        ("objects", OBJECTS, "value"),
        ("truth", OBJECTS, "value"),
        ("terms", TERMS, "difference"),
        ("text_overlap", OVERLAP, "value"),
        ("clip", CLIP, "difference"),
    ):
        for key, name in names.items():
            entries = [(change[part] or {}).get(key) for change in modes.values()]
            if any(entries):
                label = f"{name}, exact" if part == "truth" else name
                table.add_row(label, *("-" if item is None else _change(item, value) for item in entries))
        table.add_section()
    return table


def _change(entry: dict[str, Any], value: str) -> str:
    number, low, high = entry[value], entry["low"], entry["high"]
    if number is None or low is None:
        return "-" if number is None else f"{number:+.3f}"
    text = f"{number:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"[bold]{text}[/bold]" if low > 0 or high < 0 else text


def plot_scores(path: Path, result: dict[str, Any]) -> None:
    """Write a PNG from what tools/video_eval.py writes with --json: one row of panels a mode."""
    checkpoints = result["checkpoints"]
    first = next(iter(checkpoints.values()))["modes"]
    scores = [("objects", OBJECTS, "value")]
    if any(checkpoint["modes"][mode]["truth"] for checkpoint in checkpoints.values() for mode in first):
        scores.append(("truth", OBJECTS, "value"))
    scores.append(("terms", {key: name for key, name in TERMS.items() if key != "words"}, "mean"))
    titles = {"objects": "objects, detector", "truth": "objects, exact classes", "terms": "reward and terms"}
    figure = new_figure(4.6 * len(scores), 2.6 * len(first) + 0.8)
    panels = figure.subplots(len(first), len(scores), squeeze=False)
    for row, mode in zip(panels, first, strict=True):
        for axes, (part, names, value) in zip(row, scores, strict=True):
            for place, (label, checkpoint) in enumerate(checkpoints.items()):
                # Rows without exact classes have no "truth".
                if not checkpoint["modes"][mode][part]:
                    continue
                shift = 0.7 * ((place + 0.5) / len(checkpoints) - 0.5)
                entries = [checkpoint["modes"][mode][part][name] for name in names]
                _draw(axes, entries, value, shift, label, COLOURS[place % len(COLOURS)])
            axes.set_xticks(range(len(names)), names.values(), fontsize=8)
            axes.set_ylim(-0.03, 1.05)
            axes.set_title(f"{titles[part]}: {mode}", fontsize=9)
            bare(axes, "y")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=len(labels), loc="outside lower center")
    save(figure, path)


def _draw(axes: Any, entries: list[dict[str, Any]], value: str, shift: float, label: str, colour: str) -> None:
    """Points with error bars; an undefined score leaves its place empty."""
    places = [place for place, entry in enumerate(entries) if entry[value] is not None]
    values = [entries[place][value] for place in places]
    bars = [errors_of(entries[place][value], entries[place]["low"], entries[place]["high"]) for place in places]
    errors = [[low for (low,), _ in bars], [high for _, (high,) in bars]]
    shifted = [place + shift for place in places]
    axes.errorbar(shifted, values, errors, fmt="o", color=colour, markersize=4, capsize=3, label=label)
