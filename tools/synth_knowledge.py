"""What objects are and what they mean for a driver -> one knowledge file, in which tools/synth_describe.py looks up names.

Three kinds of sources; --kind says which:
  entries        JSON lines {title, aliases, text, url, licence, retrieved}; tools/prompts/synthesis/road_objects.jsonl is one
  wikipedia      a file of the data set wikimedia/wikipedia, rows {id, url, title, text}: .parquet or .jsonl
  introductions  one JSON object {title: {title, extract}}, as offline packages hold Wikipedia's introductions
The licence and the address of each text stay with it: Wikipedia's texts are under CC BY-SA 4.0, and so is what is made of them.
--redirects gives further names of pages. The file is SQLite with full-text search (FTS5), which Python brings along.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drive_vlm.builders.synthesis.knowledge import (
    Entry,
    Knowledge,
    read_entries,
    read_introductions,
    read_wikipedia,
    with_redirects,
    write_knowledge,
)
from drive_vlm.config import CommandParser, output_file, run_tool
from drive_vlm.store.cache import read_json
from drive_vlm.store.lock import sole_writer

EXAMPLES = """
python tools/synth_knowledge.py --data tools/prompts/synthesis/road_objects.jsonl --out knowledge.sqlite
python tools/synth_knowledge.py --data train-00000-of-00041.parquet --kind wikipedia --retrieved 2023-11-01 --out knowledge.sqlite
python tools/synth_knowledge.py --out knowledge.sqlite --look_up "traffic cone" excavator
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/synth_knowledge.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add(
        "--data", nargs="+", default=[], help="files of one --kind; of two entries with one title the later one is kept"
    )
    add("--out", type=output_file, required=True, help="the knowledge file, which is replaced")
    flag("--kind", ("entries", "wikipedia", "introductions"), "what --data holds")
    add("--redirects", type=Path, help="JSON object {name: title}: further names of pages")
    flag("--retrieved", "", "day of the texts, noted with each that does not say its own")
    flag("--url", "https://en.wikipedia.org/wiki/", "address that titles of --kind introductions are put behind")
    add(
        "--look_up",
        nargs="+",
        default=[],
        metavar="NAME",
        help="show what the file says of these names; without --data only this",
    )
    flag("--sentences", 2, "sentences of a text that --look_up shows, at most; those with years are left out")
    add("--json", help="write counts, and what was looked up, to this file")
    return parser


def entries(args: Any) -> Iterator[Entry]:
    for name in args.data:
        path = Path(name)
        if args.kind == "wikipedia":
            yield from read_wikipedia(path, args.retrieved)
        elif args.kind == "introductions":
            yield from read_introductions(path, args.url, args.retrieved)
        else:
            yield from read_entries(path)


def run(args: Any) -> dict[str, Any]:
    """Write the file where there is --data, then look up; counts and descriptions. Raises ValueError."""
    result: dict[str, Any] = {}
    if args.data:
        redirects = read_json(args.redirects) if args.redirects else {}
        with sole_writer(args.out):
            result = write_knowledge(args.out, with_redirects(entries(args), redirects, str(args.redirects)), args.data)
    elif not args.look_up:
        raise ValueError("--data is needed to make a file, or --look_up to ask the file --out.")
    knowledge = Knowledge(args.out, args.sentences)
    return result | {"looked_up": {name: knowledge.lookup(name) for name in args.look_up}}


def show(result: dict[str, Any], args: Any) -> None:
    if "entries" in result:
        print(f"{args.out}: {result['entries']:,} entries, {result['replaced']:,} of an equal title were replaced")
    for name, (found, how) in result["looked_up"].items():
        said = (
            f"{found.text} ({found.title}, {how}; {found.licence}{f', {found.url}' if found.url else ''})"
            if found
            else f"nothing: {how}"
        )
        print(f"{name}: {said}")


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
