"""Write what `tools/bench/bench_sft.py --peers ... --json FILE` measured into README.md and docs/results.md, which nobody edits by hand.

The tables stand between the comments `<!-- peers: begin -->` and `<!-- peers: end -->`.
"""

import argparse
from pathlib import Path
from typing import Any

from gpu_tables import ROOT, between, show, write_changed

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.store.cache import read_json

EXAMPLES = """
python tools/bench/peer_tables.py runs/bench_peers.json
python tools/bench/peer_tables.py runs/bench_peers.json --dry_run
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bench/peer_tables.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("file", type=Path, help="what tools/bench/bench_sft.py --peers ... --json has written")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    parser.flag("--dry_run", False, "say which files would change, and write none")
    return parser


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file of another kind, and for a measurement without a peer of its own environment."""
    found = read_json(path)
    if not isinstance(found, dict) or "against" not in found:
        raise ValueError(f"{path}: not a file of tools/bench/bench_sft.py --json")
    if not found["peer_versions"]:
        raise ValueError(f"{path} was measured without --peers: there is no best peer to name")
    return found


def readme_table(found: dict[str, Any]) -> str:
    """How much faster ours is than the best mode of each trainer, the best of all in bold. README is short."""
    load = max(found["load_average"][when][0] for when in ("before", "after"))
    where = f"a tiny InternVL on a CPU, load up to {load:.1f} on {found['machine']['cores']} cores; [all numbers](docs/results.md)"
    lines = [f"| `drive-vlm sft --packing` next to ({where}) | rows per CPU second | tokens/s |", "|---|---|---|"]
    for name in ("peer", *found["peer_versions"]):
        modes = [side for side in found["against"] if side.removesuffix("_packed") == name]
        side = min(modes, key=lambda side: found[side]["cpu_ms_per_row"])
        faster, title = found["against"][side], _title(found, side)
        title = f"**{title}, the best peer**" if side == found["best_peer"] else title
        lines.append(f"| {title} | {faster['cpu_ms_per_row']:.2f}x | {faster['tokens_per_second']:.2f}x |")
    return "\n".join(lines)


def results_table(found: dict[str, Any]) -> str:
    head = (
        "",
        "tokens/s",
        "CPU ms a row",
        "peak RSS MB",
        "CPU s of the whole run",
        "ours, tokens/s",
        "ours, rows per CPU second",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for side in found["titles"]:
        values = found[side]
        faster = found["against"].get(side)
        ratios = [f"{faster[name]:.2f}x" for name in ("tokens_per_second", "cpu_ms_per_row")] if faster else ["", ""]
        names = ("tokens_per_second", "cpu_ms_per_row", "peak_rss_mb", "run_cpu_seconds")
        cells = [_title(found, side), *(f"{values[name]:,.0f}" for name in names), *ratios]
        lines.append("| " + " | ".join(cells) + " |")
    checked, lengths = found["checked"], found["lengths"]
    lines += [
        "",
        f"{found['rows']:,} rows of {lengths['min']} to {lengths['max']} tokens. {_conditions(found)} Token ids and labels of {checked['rows']} rows are "
        f"the same on all sides, and so is the loss of step 1 ({checked['loss']:.4f}).",
    ]
    if path := found.get("picture_path"):
        lines += ["", *_picture_lines(path)]
    return "\n".join(lines)


def _title(found: dict[str, Any], side: str) -> str:
    """The title with the peer's version: "LLaMA-Factory 0.9.5, `--neat_packing`"."""
    peer, title = side.removesuffix("_packed"), found["titles"][side]
    versions = found["peer_versions"].get(peer)
    if versions is None:
        return f"{title} {found['versions']['trl']}, as it comes" if side == "peer" else f"`{title}`"
    name, _, mode = title.partition(" --")
    return f"{name} {next(iter(versions.values()))}, " + (f"`--{mode}`" if mode else "as it comes")


def _conditions(found: dict[str, Any]) -> str:
    settings = found["settings"]
    least, most = sorted(found["load_average"][when][0] for when in ("before", "after"))
    runs = f"Medians of {settings['repeats']} runs in turns" if settings["repeats"] > 1 else "One run each"
    return (
        f"{runs}, {settings['threads']} thread, {settings['workers']} loader worker, float32, frozen tower, a tiny "
        f"InternVL, load {least:.1f} to {most:.1f} on {found['machine']['cores']} cores."
    )


def _picture_lines(path: dict[str, Any]) -> list[str]:
    titles = {"ours": "drive-vlm", "llamafactory": "LLaMA-Factory", "swift": "ms-swift"}
    height, width = path["size"]
    lines = [
        f"| a row of one {width} x {height} JPEG of {path['jpeg_kb']:.0f} KB to nine tiles of 448 pixels | CPU ms | wall ms |",
        "|---|---|---|",
    ]
    return lines + [
        f"| {titles[side]} | {values['cpu_ms']:.1f} | {values['wall_ms']:.1f} |"
        for side, values in path["sides"].items()
    ]


def run(args: Any) -> dict[str, Any]:
    """The files that changed, or would."""
    found = read(args.file)
    new: dict[Path, str] = {}
    for path, table in ((Path("README.md"), readme_table(found)), (Path("docs/results.md"), results_table(found))):
        file = args.root / path
        new[file] = between(file.read_text(), table, file, "peers")
    return {"changed": write_changed(new, args.dry_run)}


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
