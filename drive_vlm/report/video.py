"""The report of tools/video_eval.py: tables with a row for each checkpoint and mode, the changes, and the picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.report.figures import COLOURS, bare, errors_of, new_figure, save
from drive_vlm.report.tables import change, console, interval, table

if TYPE_CHECKING:
    from rich.text import Text

OBJECTS = {"precision": "precision", "recall": "recall", "f1": "F1", "chair_i": "CHAIR_i", "chair_s": "CHAIR_s"}
REWARD_TERMS = {
    "reward": "reward",
    "object": "R_obj",
    "temporal": "R_temp",
    "detail": "R_detail",
    "hallucination": "R_hall",
}
TERMS = {**REWARD_TERMS, "words": "words"}
OVERLAP = {"Bleu_1": "BLEU-1", "Bleu_4": "BLEU-4", "ROUGE_L": "ROUGE-L", "CIDEr": "CIDEr"}
CLIP = {"text_text": "text - text", "text_frames": "text - frames"}


# Title -> where a score of an entry stands: part, names, the key of its number.
TABLES = {
    "objects against the detector": ("objects", OBJECTS, "value"),
    "objects against the exact classes": ("truth", OBJECTS, "value"),
    "reward and its terms": ("terms", TERMS, "mean"),
    "overlap with the reference": ("text_overlap", OVERLAP, "value"),
    "CLIP": ("clip", CLIP, "mean"),
}


def print_tables(result: dict[str, Any]) -> None:
    """Print `result`, which is what tools/video_eval.py writes with --json."""
    shown = console(150)
    entries = [
        (name, mode, entry)
        for name, checkpoint in result["checkpoints"].items()
        for mode, entry in checkpoint["modes"].items()
    ]
    for title, (part, names, value) in TABLES.items():
        if any(entry[part] for _, _, entry in entries):
            rows = [
                [name, mode, str(entry["n"])]
                + [_cell(entry[part][key], value) if entry[part] else "-" for key in names]
                for name, mode, entry in entries
            ]
            columns = ("checkpoint", "mode", "n", *names.values())
            shown.print(table(f"{title}, 95 % interval", columns, rows, left=2))
    for name, checkpoint in result["checkpoints"].items():
        for line in _counts(checkpoint):
            shown.print(f"{name}: {line}")
    for entry in result["comparisons"]:
        shown.print(_change_table(entry))


def _cell(entry: dict[str, Any] | None, value: str) -> str:
    number = entry[value] if entry else None
    if entry is None or number is None:
        return "-"
    form = ".1f" if abs(number) >= 10 else ".3f"
    # The interval of a mean goes below it.
    words = f"{number:{form}}{interval(entry, form)}"
    return words.replace(" ", "\n", 1) if value == "mean" else words


def _counts(checkpoint: dict[str, Any]) -> Iterator[str]:
    """How well the modes are obeyed, and how many texts and rows are special, in words."""
    if obeyed := checkpoint["adherence"]:
        ratio, shorter, half = (_cell(obeyed[key], "value") for key in ("ratio", "shorter", "half"))
        text = f"concise / detailed words, median {ratio}; concise is shorter in {shorter}, at most half in {half} of {obeyed['pairs']} pairs"
        counted = [f"{obeyed[key]} {key}" for key in ("unpaired", "silent") if obeyed[key]]
        yield text + (f" ({', '.join(counted)})" if counted else "")
    every = list(checkpoint["modes"].values())[-1]
    for key, words in {
        "unverified": "texts claim no object",
        "empty": "texts are empty",
        "without_reference": "texts have no reference: time, detail, reward and overlap are of the others",
        "no_reference": "references have no word of time or no adjective: nothing to earn there",
    }.items():
        if every[key]:
            yield f"{every[key]} of {every['n']} {words}"
    for key, words in {
        "ids_left_out": "ids left out, missing in another file",
        "rows_without_detections": "rows left out, no detections",
    }.items():
        if checkpoint[key]:
            yield f"{checkpoint[key]} {words}"


def _change_table(entry: dict[str, Any]) -> Any:
    """One row a score, one column a mode; a change whose interval leaves out 0 is bold."""
    modes = entry["modes"]
    rows: list[list[str | Text] | None] = []
    for part, names, value in TABLES.values():
        for key, name in names.items():
            changes = [(of_mode[part] or {}).get(key) for of_mode in modes.values()]
            if any(changes):
                label = f"{name}, exact" if part == "truth" else name
                # A change of a mean is a difference of means.
                rows.append([label, *(change(item, value.replace("mean", "difference")) for item in changes)])
        rows.append(None)
    return table(f"{entry['second']} - {entry['first']}", ("change of", *modes), rows)


def plot_scores(path: Path, result: dict[str, Any]) -> None:
    """Write a PNG from what tools/video_eval.py writes with --json: one row of panels a mode."""
    checkpoints = result["checkpoints"]
    first = next(iter(checkpoints.values()))["modes"]
    scores = [("objects", OBJECTS, "value", "objects, detector")]
    if any(checkpoint["modes"][mode]["truth"] for checkpoint in checkpoints.values() for mode in first):
        scores.append(("truth", OBJECTS, "value", "objects, exact classes"))
    scores.append(("terms", REWARD_TERMS, "mean", "reward and terms"))
    figure = new_figure(4.6 * len(scores), 2.6 * len(first) + 0.8)
    panels = figure.subplots(len(first), len(scores), squeeze=False)
    for row, mode in zip(panels, first, strict=True):
        for axes, (part, names, value, title) in zip(row, scores, strict=True):
            for place, (label, checkpoint) in enumerate(checkpoints.items()):
                # Rows without exact classes have no "truth".
                if not checkpoint["modes"][mode][part]:
                    continue
                shift = 0.7 * ((place + 0.5) / len(checkpoints) - 0.5)
                entries = [checkpoint["modes"][mode][part][name] for name in names]
                _draw(axes, entries, value, shift, label, COLOURS[place % len(COLOURS)])
            axes.set_xticks(range(len(names)), names.values(), fontsize=8)
            axes.set_ylim(-0.03, 1.05)
            axes.set_title(f"{title}: {mode}", fontsize=9)
            bare(axes, "y")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=len(labels), loc="outside lower center")
    save(figure, path)


def _draw(axes: Any, entries: list[dict[str, Any]], value: str, shift: float, label: str, colour: str) -> None:
    """Points with error bars; an undefined score leaves its place empty."""
    places = [place for place, entry in enumerate(entries) if entry and entry[value] is not None]
    values = [entries[place][value] for place in places]
    bars = [errors_of(entries[place][value], entries[place]["low"], entries[place]["high"]) for place in places]
    errors = [[low for (low,), _ in bars], [high for _, (high,) in bars]]
    shifted = [place + shift for place in places]
    axes.errorbar(shifted, values, errors, fmt="o", color=colour, markersize=4, capsize=3, label=label)
