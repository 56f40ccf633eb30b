"""What this machine offers a run, and what would break one: a verdict a line, exit code 1 when something fails."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from drive_vlm.config import CommandParser
from drive_vlm.doctor.finding import PROBE_ERRORS, Check, Finding, Setting, warn

EXAMPLES = """
python -m drive_vlm doctor
python -m drive_vlm doctor --output_dir /scratch/runs --communication
python -m drive_vlm doctor --offline --json
"""


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm doctor`."""
    parser = CommandParser(prog="python -m drive_vlm doctor", description=__doc__, examples=EXAMPLES)
    parser.add_argument(
        "--output_dir", default="runs", help="where runs would write: its disk and file system are tested"
    )
    parser.add_argument("--offline", action="store_true", help="do not try to reach the hub")
    parser.add_argument(
        "--communication", action="store_true", help="start two processes through torchrun and sum a tensor over them"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    flags = parser.parse_args(list(words))
    setting = Setting(Path(flags.output_dir), flags.offline, flags.communication)
    found = list(examine(setting))
    if flags.json:
        passed = all(item.verdict != "fail" for item in found)
        print(json.dumps({"passed": passed, "findings": [dataclasses.asdict(item) for item in found]}, indent=2))
    else:
        print_findings(found)
    sys.exit(any(item.verdict == "fail" for item in found))


def checks() -> list[Check]:
    """Every check, in the order of the report."""
    from drive_vlm.doctor import hardware, network, software, storage

    return [
        software.python, software.torch_build, software.torchvision_match, software.packages, software.deepspeed_ops,
        software.attention, hardware.gpus, hardware.peer_to_peer, hardware.processors, hardware.memory,
        hardware.shared_memory, hardware.limits, storage.output_directory, storage.caches, network.hub, network.leftovers,
        network.collectives, network.visible_gpus, network.python_path, network.ports, network.slurm, network.communication,
    ]  # fmt: skip


def examine(setting: Setting) -> Iterator[Finding]:
    """The findings of every check; a check that breaks is a finding itself."""
    for check in checks():
        try:
            yield from check(setting)
        except PROBE_ERRORS as error:
            name = check.__name__.replace("_", " ")
            yield warn(name, f"the check broke: {type(error).__name__}: {_first_line(error)}", "Look at it by hand.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def print_findings(found: Sequence[Finding]) -> None:
    """A line a finding; what to do below it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colors = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for item in found:
        text = escape(item.seen) + (f"\n[bold]→ {escape(item.todo)}[/bold]" if item.todo else "")
        table.add_row(f"[{colors[item.verdict]}]{item.verdict}[/]", item.check, text)
    console = Console(highlight=False, emoji=False)
    console.print(table)
    counts = {verdict: sum(item.verdict == verdict for item in found) for verdict in colors}
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
