"""What tools/compare_stages.py prints: texts and reward terms of each checkpoint, a table a video and mode."""

from typing import Any

from drive_vlm.report.stages_page import NO_REFERENCE, TERMS, VERDICTS, label_counts, marked_parts, told_of

_STYLES = {"hit": "bold blue", "false": "bold red underline", "denied": "strike", "again": "dim", "unseen": "dim"}


def print_comparison(result: dict[str, Any]) -> None:
    """Print `result`, which is what the tool writes with --json."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if Console().is_terminal else 150)
    for entry in result["videos"]:
        console.print(Text(f"\n{entry['group']} ({entry['video']})", style="bold"))
        seen = ", ".join(f"{label} {count}/{entry['looked_at']}" for label, count in entry["seen"].items())
        console.print(Text(f"detected in n of {entry['looked_at']} frames: {seen or 'nothing'}"))
        for frame in entry["frames"]:
            changed = " (not the picture that was looked at)" if frame["changed"] else ""
            console.print(Text(f"  frame {frame['index']}: {label_counts(frame['objects'])}{changed}", style="dim"))
        for text in entry["texts"]:
            console.print(_table(text))
    legend = Text("\n")
    for key, told in VERDICTS.items():
        legend.append(told, _STYLES[key]).append("   ")
    console.print(legend)
    console.print(Text(f"detector: {result['detector']}; {NO_REFERENCE}", style="dim"))


def _table(text: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    title = ": ".join(filter(None, (text["mode"], text["question"])))
    table = Table(title=Text(title), title_justify="left", show_lines=True)
    table.add_column("checkpoint", min_width=9, overflow="fold")
    table.add_column("text", ratio=1)
    for name in ("reward", *TERMS.values()):
        table.add_column(name, justify="right")
    table.add_row("reference", _marked(text["reference"]), *[""] * 5)
    for name, answer in text["answers"].items():
        terms = answer["terms"]
        cells = ["n/a" if key in terms["no_reference"] else f"{terms[key]:.3f}" for key in ("reward", *TERMS)]
        table.add_row(Text(name), _marked(answer).append(f"\n{told_of(terms)}", "dim"), *cells)
    return table


def _marked(marked: dict[str, Any]) -> Any:
    from rich.text import Text

    line = Text()
    for part, mention in marked_parts(marked):
        line.append(part, _STYLES[mention["verdict"]] if mention else "")
    return line if marked["text"].strip() else Text("(empty)", style="dim italic")
