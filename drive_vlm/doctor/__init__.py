"""What this machine offers a run, and what would break one: a verdict a line, exit code 1 when something fails."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from drive_vlm.config import CommandParser
from drive_vlm.doctor import hardware, network, software, storage
from drive_vlm.doctor.finding import Finding, Setting

EXAMPLES = """
python -m drive_vlm doctor
python -m drive_vlm doctor --output_dir /scratch/runs --communication
python -m drive_vlm doctor --offline --json
"""
# In the order of the report.
CHECKS = [
    software.python, software.torch_build, software.torchvision_match, software.packages, software.deepspeed_ops,
    software.attention, hardware.gpus, hardware.peer_to_peer, hardware.processors, hardware.memory,
    hardware.shared_memory, hardware.limits, storage.output_directory, storage.caches, network.hub, network.leftovers,
    network.collectives, network.visible_gpus, network.python_path, network.ports, network.slurm, network.communication,
]  # fmt: skip


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm doctor`."""
    parser = CommandParser(prog="python -m drive_vlm doctor", description=__doc__, examples=EXAMPLES)
    parser.flag("--output_dir", "runs", "where runs would write: its disk and file system are tested")
    parser.flag("--offline", False, "do not try to reach the hub")
    parser.flag("--communication", False, "start two processes through torchrun and sum a tensor over them")
    parser.flag("--json", False, "print the findings as JSON")
    flags = parser.parse_args(list(words))
    found = list(examine(Setting(Path(flags.output_dir), flags.offline, flags.communication)))
    failed = any(item.verdict == "fail" for item in found)
    if flags.json:
        print(json.dumps({"passed": not failed, "findings": [dataclasses.asdict(item) for item in found]}, indent=2))
    else:
        print_findings(found)
    sys.exit(failed)


def examine(setting: Setting) -> Iterator[Finding]:
    """The findings of every check; a check that breaks is a finding itself."""
    for check in CHECKS:
        try:
            yield from check(setting)
        # Drivers and file systems fail in ways that nobody can list, and the other checks must go on.
        except Exception as error:
            seen = f"the check broke: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            yield Finding(check.__name__.replace("_", " "), "warn", seen, "Look at it by hand.")


def print_findings(found: Sequence[Finding]) -> None:
    """A line a finding; what to do below it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colors = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, show_header=False, padding=(0, 1))
    for no_wrap in (True, True, False):
        table.add_column(no_wrap=no_wrap)
    for item in found:
        text = escape(item.seen) + (f"\n[bold]→ {escape(item.todo)}[/bold]" if item.todo else "")
        table.add_row(f"[{colors[item.verdict]}]{item.verdict}[/]", item.check, text)
    console = Console(highlight=False, emoji=False)
    console.print(table)
    counts = {verdict: sum(item.verdict == verdict for item in found) for verdict in colors}
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
