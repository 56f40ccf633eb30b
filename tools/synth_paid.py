"""How the tools of steps in which a model writes show their work: audits, previews, estimates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synth_steps import show_step

from drive_vlm.builders.synthesis.cost import Estimate
from drive_vlm.report.tables import print_table

UNKNOWN = "not measured"


def show_paid(result: dict[str, Any], args: Any) -> None:
    """Print what run_paid returned."""
    if "estimate" in result:
        show_estimates([Estimate(**result["estimate"])])
        return
    show_step(result, args)
    for text in result.get("preview", ()):
        print(f"--- {text}")
    if args.preview:
        print(
            f"preview: the same command without --preview {args.preview} makes the other lines; with --estimate it says what they take"
        )


def show_estimates(estimates: Sequence[Estimate]) -> None:
    """A table with a row a step, and where the numbers come from."""

    def number(value: float | None, form: str = ",.0f", unknown: str = UNKNOWN) -> str:
        return unknown if value is None else format(value, form)

    rows = [
        (
            item.step, number(item.pictures), number(item.calls), number(item.prompt_tokens), number(item.reply_tokens),
            number(item.cost, ",.4f", "unknown"), number(item.gpu_hours, ",.2f"), number(_megabytes(item), ",.1f"),
        )
        for item in estimates
    ]  # fmt: skip
    head = ("step", "pictures", "calls", "prompt tokens", "reply tokens", "cost", "GPU hours", "disk, MB")
    print_table("what it takes (nobody was asked)", head, rows)
    for item in estimates:
        if item.basis:
            print(f"{item.step}: from {item.basis}")
    if any(item.cost is None for item in estimates):
        print(
            "cost unknown: give --price_in and --price_out, for a million tokens; where tokens are not measured, run --preview 10"
        )


def _megabytes(item: Estimate) -> float | None:
    return None if item.disk_bytes is None else item.disk_bytes / 1e6


def read_names(path: Path | None) -> list[str]:
    """The lines of the file. Raises ValueError for one that cannot be read or is empty."""
    if path is None:
        return []
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--names {path}: cannot be read ({error})") from error
    if not names:
        raise ValueError(f"--names {path}: holds no name; give a name a line, or leave --names out")
    return names
