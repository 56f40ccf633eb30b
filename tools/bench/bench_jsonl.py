"""Time and memory to open a JSONL of a million rows and read one of its last, beside reading every line into a list.

The file is written, then each step runs in a fresh process: index it, open it again and read the row (ours), and
json.loads of all lines into a list (the peer). Imports are not counted in the seconds; they are in the peak RSS.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser

EXAMPLES = """
python tools/bench/bench_jsonl.py --json runs/bench_jsonl.json
python tools/bench/bench_jsonl.py --rows 100000
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bench/bench_jsonl.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the file")
    parser.add_argument("--row", type=int, default=None, help="row to read, from 0 (default: the last)")
    parser.add_argument("--json", type=Path, default=None, help="write the measurement to this file")
    parser.add_argument(
        "--part", choices=("ours", "peer"), default=None, help="one part only; the tool starts these itself"
    )
    parser.add_argument("--file", type=Path, default=None, help="the file of that part")
    return parser


def make_row(i: int) -> dict[str, Any]:
    """A DriveLM-style row of about 250 bytes."""
    turns = [
        {
            "from": "human",
            "value": f"<image>\nWhat is the moving status of object {i % 977} in front of the ego vehicle?",
        },
        {
            "from": "gpt",
            "value": "Going ahead." if i % 3 else "It is turning left at the crossing, behind a white van.",
        },
    ]
    return {"id": f"row-{i}", "image": f"images/{i // 6:07d}.jpg", "conversations": turns, "group": f"scene-{i // 600}"}


def read_row(part: str, path: Path, row: int) -> dict[str, Any]:
    """{"seconds", "peak_rss_mb", "id"} of opening `path` and reading `row`, in this process."""
    from drive_vlm.launch.manifest import peak_resident_bytes

    if part == "ours":
        from drive_vlm.data.jsonl import JsonlFile

        started = time.perf_counter()
        found = JsonlFile(path)[row]
    else:
        started = time.perf_counter()
        with open(path, encoding="utf-8") as file:
            found = [json.loads(line) for line in file][row]
    seconds = time.perf_counter() - started
    peak = peak_resident_bytes() / 2**20
    return {"seconds": seconds, "peak_rss_mb": peak, "id": found["id"]}


def measure(rows: int, row: int) -> dict[str, Any]:
    """Write the file, run each part in a fresh process (ours twice: the first builds the index); what --json holds."""
    from drive_vlm.launch.manifest import machine, versions

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "rows.jsonl"
        with open(path, "w") as file:
            file.writelines(json.dumps(make_row(i)) + "\n" for i in range(rows))
        megabytes = path.stat().st_size / 1e6
        env = os.environ | {"DRIVE_VLM_CACHE": temporary}
        results = []
        for part in ("ours", "ours", "peer"):
            command = [sys.executable, __file__, "--part", part, "--file", str(path), "--row", str(row)]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
            assert results[-1].pop("id") == make_row(row)["id"], f"{part} read another row"
    indexing, ours, peer = results
    return {
        "ours": ours | {"indexing": indexing},
        "peer": peer,
        "ratio": {name: peer[name] / ours[name] for name in ("seconds", "peak_rss_mb")},
        "rows": rows,
        "row": row,
        "file_mb": megabytes,
        "machine": machine(),
        "versions": versions(),
    }


def print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"open {result['rows']:,} rows ({result['file_mb']:.0f} MB) and read row {result['row']:,}"
    table = Table("", "seconds", "peak RSS MB", title=title, title_justify="left")
    parts = (
        ("drive-vlm, first time (indexing)", result["ours"]["indexing"]),
        ("drive-vlm, indexed", result["ours"]),
        ("json.loads of every line", result["peer"]),
    )
    for name, part in parts:
        table.add_row(name, f"{part['seconds']:.4f}", f"{part['peak_rss_mb']:.0f}")
    Console(width=100).print(table)


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    if args.part:
        print(json.dumps(read_row(args.part, args.file, args.row)))
        return
    row = args.rows - 1 if args.row is None else args.row
    if not 0 <= row < args.rows:
        parser.error(f"--row {row} is not in a file of --rows {args.rows}")
    result = measure(args.rows, row)
    print_table(result)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
