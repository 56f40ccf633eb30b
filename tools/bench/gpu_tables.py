"""Write what tools/bench/gpu.sh measured into docs/results.md, docs/plan.md and the heads of the recipes, which nobody edits by hand.

The tables stand between the comments `<!-- gpu: begin -->` and `<!-- gpu: end -->`. A recipe whose run was measured gets a line
"# Measured" behind "# Result". Figures of toy sizes are refused. The newest file of a device replaces what it measured before.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.store.cache import read_json, write_atomically

EXAMPLES = """
python tools/bench/gpu_tables.py gpu.json
python tools/bench/gpu_tables.py h200.json rtx4090.json --dry_run
"""
ROOT = Path(__file__).resolve().parents[2]
# The case that runs a recipe's own flags, or its sizes.
RECIPES = {
    "internvl3_1b_sft.sh": ("b", "packed_16384"),
    "drive_vlm_stage1.sh": ("c", "stage1"),
    "drive_vlm_stage2.sh": ("c", "stage2"),
    "drive_vlm_stage3.sh": ("c", "stage3"),
}
# What a table shows of a case, and how.
COLUMNS = {
    "samples/s": ".1f", "tokens/s": ",.0f", "MFU": ".1%", "MFU without tower": ".1%", "peak GiB": ".1f", "sampled tokens/s": ",.0f",
    "copy GB/s": ",.0f", "matmul TFLOP/s": ",.0f", "save s": ".1f", "resume to first step s": ".1f", "apart": ".1e",
}  # fmt: skip


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bench/gpu_tables.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument(
        "files", nargs="+", type=Path, help="files that tools/bench/gpu.sh --out has written, one a device"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    parser.flag("--dry_run", False, "say which files would change, and write none")
    return parser


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file of another kind and for one of toy sizes."""
    found = read_json(path)
    if not isinstance(found, dict) or "parts" not in found:
        raise ValueError(f"{path}: not a file of tools/bench/gpu.sh")
    if found["toy"]:
        raise ValueError(
            f"{path} was measured at toy sizes on a CPU, which says nothing about a GPU. Measure on a GPU."
        )
    return found


def cases_of(found: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(part, case, entry) of all that are done."""
    return [
        (letter, name, case)
        for letter, part in found["parts"].items()
        for name, case in part["cases"].items()
        if case["state"] == "done"
    ]


def results_table(measured: list[dict[str, Any]]) -> str:
    lines = ["| device | part | case | measured |", "|---|---|---|---|"]
    for found in measured:
        for letter, name, case in cases_of(found):
            cells = [f"{key} {case['figures'][key]:{form}}" for key, form in COLUMNS.items() if key in case["figures"]]
            lines.append(f"| {found['device']} | {found['parts'][letter]['title']} | {name} | {', '.join(cells)} |")
    return "\n".join(lines)


def plan_table(measured: list[dict[str, Any]]) -> str:
    lines = ["| device | case | predicted GiB | measured GiB | error |", "|---|---|---|---|---|"]
    for found in measured:
        for letter, name, case in cases_of(found):
            if "planned GiB" in (figures := case["figures"]):
                row = f"{figures['planned GiB']:.1f} | {figures['peak GiB']:.1f} | {figures['plan error']:+.1%}"
                lines.append(f"| {found['device']} | {letter} {name} | {row} |")
    return "\n".join(lines)


def between(text: str, table: str, path: Path, name: str = "gpu") -> str:
    """`text` with `table` between the two comments of `name`. Raises ValueError where they are not there once each."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path}: {begin} and {end} must each stand in it once")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def with_measured(text: str, lines: list[str]) -> str:
    """A recipe with the lines "# Measured" behind its "# Result", which may take several lines."""
    text = re.sub(r"^# Measured .*\n", "", text, flags=re.M)
    return re.sub(
        r"^(# Result .*\n(?:#  .*\n)*)", lambda match: match.group(1) + "".join(lines), text, count=1, flags=re.M
    )


def recipe_lines(name: str, measured: list[dict[str, Any]]) -> list[str]:
    letter, case = RECIPES[name]
    lines = []
    for found in measured:
        figures = {(a, b): entry["figures"] for a, b, entry in cases_of(found)}.get((letter, case))
        if figures:
            shown = ", ".join(
                f"{figures[key]:{COLUMNS[key]}} {key}"
                for key in ("samples/s", "tokens/s", "peak GiB")
                if key in figures
            )
            lines.append(
                f"# Measured    {shown}: {found['device']}, random weights (tools/bench/gpu.sh, {letter} {case})\n"
            )
    return lines


def run(args: Any) -> dict[str, Any]:
    """The files that changed, or would."""
    measured = [read(path) for path in args.files]
    new: dict[Path, str] = {}
    for name, table in (("results.md", results_table(measured)), ("plan.md", plan_table(measured))):
        path = args.root / "docs" / name
        new[path] = between(path.read_text(), table, path)
    for name in RECIPES:
        if lines := recipe_lines(name, measured):
            path = args.root / "recipes" / name
            new[path] = with_measured(path.read_text(), lines)
    return {"changed": write_changed(new, args.dry_run)}


def write_changed(new: Mapping[Path, str], dry_run: bool) -> list[str]:
    """Write the files whose text is another one, with the rights that they have; their paths, also where nothing is written."""
    changed = [path for path, text in new.items() if path.read_text() != text]
    for path in changed if not dry_run else ():
        mode = path.stat().st_mode
        write_atomically(path, lambda file, path=path: file.write(new[path].encode()))
        path.chmod(mode)
    return [str(path) for path in changed]


def show(result: dict[str, Any], args: Any) -> None:
    for path in result["changed"]:
        print(f"{path}: {'would change' if args.dry_run else 'written'}")
    if not result["changed"]:
        print("every table says this already")


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
