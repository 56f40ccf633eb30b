"""Look at training rows before a run: what can be used and what not, lengths, labels, padding, leaks between splits.

Prints the audit (bad rows by reason, with file:line), a histogram of lengths in tokens, rows as the model sees them with
the learned words in colour (between ⟦ and ⟧ where there is no colour), and how much of a batch is padding with and
without packing. Needs the model's processor, never its weights. Exit code 1 when a row id, a group (scene or video) or a
picture (its path or its bytes, with --deep also its looks) stands in --data and in --eval_data, and when no row can be used. --against
compares with evaluation files in their official form, by scene token, key frame, picture name and bytes.
"""

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import IGNORE_INDEX, CommandParser, DataConfig, run_tool
from drive_vlm.launch.stop import listening, until_stopped

if TYPE_CHECKING:
    from drive_vlm.builders.splits import Leak
    from drive_vlm.data.samples import Sample

EXAMPLES = """
python tools/check_data.py --data train.jsonl --model OpenGVLab/InternVL3-1B-hf
python tools/check_data.py --data train.jsonl --eval_data val.jsonl --model runs/tiny --decode --plot runs/lengths.png
python tools/check_data.py --data data/drivelm/train.jsonl --against drivebench-test-final.json --against_root . --model runs/tiny
python tools/check_data.py --data meta.json --model runs/tiny --max_length 8192 --preview 10 --json runs/check.json
"""
BAR, EXAMPLES_SHOWN = 50, 3
MISSING = ("image_missing", "video_missing", "path_outside_root")


def make_parser() -> CommandParser:
    default = {item.name: item.default for item in dataclasses.fields(DataConfig)}
    parser = CommandParser(prog="python tools/check_data.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add(
        "--data",
        nargs="+",
        required=True,
        help="training rows: .jsonl, .json, .parquet or the folder of a data set (docs/data.md)",
    )
    add("--eval_data", nargs="+", default=[], help="evaluation rows, which must share nothing with --data")
    add(
        "--against",
        nargs="+",
        default=[],
        metavar="FILE",
        help="evaluation files that training must share no scene, key frame or picture with: rows, or the official JSON of DriveLM, DriveBench or "
        "RoboSense track 1",
    )
    add("--against_root", help="folder that the pictures of --against start from (default: each file's own)")
    add("--model", required=True, help="model directory or hub id; only its processor is loaded")
    add("--image_root", help="folder that picture paths start from (default: the data file's own folder)")
    flag("--links", ("follow", "refuse"), "symbolic links that leave the image root: follow, or refuse their rows")
    flag("--max_length", default["max_length"], "tokens of a row at most, and of a pack")
    add("--max_tiles", type=int, help="tiles a row may use for its pictures (default: the processor's max_patches)")
    add("--min_pixels", type=int, help="pixels that a smaller picture is scaled up to (Qwen-VL)")
    add("--max_pixels", type=int, help="pixels that a larger picture or frame is scaled down to (Qwen-VL)")
    flag("--num_frames", default["num_frames"], "frames taken from a video, evenly spread")
    flag("--batch_size", 8, "rows of an unpacked batch, for the share of padding")
    flag("--decode", False, "decode every picture and video in full, to find truncated files")
    flag("--deep", False, "decode both splits and look for near-identical pictures, encoded or scaled in another way")
    flag("--workers", os.cpu_count() or 1, "threads that decode")
    flag("--preview", 3, "rows to show as the model sees them", least=0)
    add("--plot", type=Path, help="write the histogram of lengths to this PNG")
    add("--json", type=Path, help="write everything that was found to this file")
    return parser


def check_split(sources: Sequence[Any], encoder: Any, args: Any) -> tuple[dict[str, Any], Any]:
    """(what --json holds of these files, RowTable of their usable rows)."""
    from rich.console import Console
    from rich.progress import track

    from drive_vlm.builders.checks import decode_all, duplicate_ids, histogram, padding_shares, scaled_pictures
    from drive_vlm.data.table import audit_bad_rows, build_table

    def progress(blocks: Any, total: int | None = None, what: str = "measuring rows") -> Any:
        shown = track(blocks, what, total, console=Console(stderr=True), transient=True)
        return until_stopped(shown, "What was measured is in the cache: give the same command again.")

    table = build_table(sources, encoder, "skip", args.max_length, progress=progress, allow_empty=True)
    result = table.audit() | {
        "duplicate_ids": duplicate_ids(sources),
        "histogram": [{"from": low, "to": high, "rows": count} for low, high, count in histogram(table.length)],
        "padding": padding_shares(table.length, args.max_length, args.batch_size),
    }
    limits = encoder.vision.tiling.limits if encoder.vision else None
    if limits:
        result["scaled"] = {"limits": limits, **scaled_pictures(table, limits)}
    if args.decode:
        files, bad = decode_all(table, args.num_frames, args.workers, partial(progress, what="decoding"))
        result["decoded"] = {"files": files, "bad": audit_bad_rows(bad)}
    return result, table


def leaks_against(train: Sequence[Any], samples: list["Sample"], args: Any) -> list["Leak"]:
    """What --data shares with each file of --against: scene, key frame, picture name or bytes. The files need not be usable rows."""
    from drive_vlm.builders.checks import leak_keys
    from drive_vlm.builders.evaluation_files import evaluation_rows, leak_row, pictures_of
    from drive_vlm.builders.same_pictures import same_files
    from drive_vlm.builders.splits import find_leaks

    leaks = []
    for name in args.against:
        rows = list(evaluation_rows(Path(name)))
        leaks += find_leaks({"train": leak_keys(train), name: map(leak_row, rows)})
        same = same_files(samples, pictures_of(rows, Path(name), args.against_root))
        leaks += [dataclasses.replace(leak, splits=("train", name)) for leak in same]
    return leaks


def picture_leaks(train: list["Sample"], held_out: list["Sample"], args: Any) -> list["Leak"]:
    """Leaks of pictures under different names, of the samples of --data and --eval_data."""
    from rich.console import Console
    from rich.progress import track

    from drive_vlm.builders.same_pictures import look_alikes, same_files

    leaks = same_files(train, held_out)
    if args.deep:
        show = partial(track, description="comparing pictures", console=Console(stderr=True), transient=True)
        leaks += look_alikes(train, held_out, args.num_frames, args.workers, show)
    return leaks


# ---- what is shown


def preview_text(
    ids: Sequence[int], labels: Sequence[int], tokenizer: Any, image_id: int | None, marks: bool = False
) -> Any:
    """A rich Text of one encoded row: learned tokens in green, runs of picture tokens as <256 image tokens>, the rest dim."""
    from rich.text import Text

    text = Text()
    kinds = [
        "image" if i == image_id else "dim" if label == IGNORE_INDEX else "bold green"
        for i, label in zip(ids, labels, strict=True)
    ]
    start = 0
    while start < len(ids):
        end = start + 1
        while end < len(ids) and kinds[end] == kinds[start]:
            end += 1
        if kinds[start] == "image":
            text.append(f"<{end - start} image tokens>", "cyan")
        else:
            words = tokenizer.decode(
                list(ids[start:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            learned = marks and kinds[start] == "bold green"
            text.append(f"⟦{words}⟧" if learned else words, kinds[start])
        start = end
    return text


def show_preview(console: Any, table: Any, encoder: Any, count: int) -> None:
    """`count` rows from all over the data, as the model sees them."""
    from drive_vlm.data.samples import BadRow

    count = min(count, len(table))
    for i in (k * len(table) // count for k in range(count)):
        sample = table.sample(i)
        console.rule(f"{sample.where}  id {sample.id}  {table.length[i]} tokens", align="left")
        try:
            row = encoder.encode(sample, table.sources[table.source[i]].max_tiles)
        except BadRow as error:
            console.print(str(error), style="red")
            continue
        marks = console.color_system is None
        console.print(
            preview_text(row["input_ids"].tolist(), row["labels"].tolist(), encoder.tokenizer, encoder.image_id, marks)
        )


def show_bad_rows(console: Any, title: str, bad: dict[str, Any]) -> None:
    """Counts by reason, and the first rows of each; one line each, to be copied."""
    if bad["total"]:
        console.print(f"{title}: {bad['total']:,}", style="red")
    for reason, count in sorted(bad["by_reason"].items(), key=lambda item: -item[1]):
        console.print(f"  {reason}: {count:,}")
        for row in [row for row in bad["rows"] if row["reason"] == reason][:EXAMPLES_SHOWN]:
            console.print(f"    {row['where']}: {row['problem']}")


def show_split(console: Any, name: str, result: dict[str, Any]) -> None:
    """Audit, histogram and padding of one split."""
    from rich.table import Table

    tokens = result["tokens"]
    console.print(
        f"{name}: {result['rows_used']:,} rows used of {result['rows_read']:,} read, {tokens['total']:,} tokens",
        style="bold",
    )
    files = Table("file", "rows", "repeat_time", "used", "image root")
    for file in result["files"]:
        files.add_row(
            file["path"], f"{file['rows']:,}", f"{file['repeat_time']:g}", f"{file['used']:,}", file["image_root"]
        )
    console.print(files)
    show_bad_rows(console, "bad rows", result["bad_rows"])
    missing = sum(result["bad_rows"]["by_reason"].get(reason, 0) for reason in MISSING)
    if missing:
        roots = ", ".join(dict.fromkeys(file["image_root"] for file in result["files"]))
        console.print(
            f'{missing:,} rows name files that are not below {roots}: is --image_root, or "root" in a meta JSON, the right folder?',
            style="red",
        )
    if "decoded" in result:
        console.print(
            f"decoded {result['decoded']['files']:,} files, {result['decoded']['bad']['total']:,} of them bad"
        )
        show_bad_rows(console, "files that cannot be decoded", result["decoded"]["bad"])
    if scaled := result.get("scaled"):
        least, most = scaled["limits"]
        console.print(
            f"pictures: {scaled['pictures']:,}; {scaled['down']:,} of more than {most:,} pixels are scaled down, {scaled['up']:,} of fewer "
            f"than {least:,} are scaled up (--max_pixels, --min_pixels)"
        )
    twice = result["duplicate_ids"]
    if twice:
        examples = "; ".join(f"{row['id']!r} at {row['first']} and {row['again']}" for row in twice[:EXAMPLES_SHOWN])
        console.print(f"warning: {len(twice):,} rows repeat an id of their own file: {examples}", style="yellow")
    if result["histogram"]:
        console.print(
            f"tokens a row: {tokens['min']:.0f} to {tokens['max']:.0f}, median {tokens['median']:.0f}, 95 % below {tokens['p95']:.0f}"
        )
        most = max(part["rows"] for part in result["histogram"])
        for part in result["histogram"]:
            bar = "█" * round(BAR * part["rows"] / most)
            console.print(f"{part['from']:>7}-{part['to']:<7}{part['rows']:>9,} {bar}")
        for form, share in result["padding"].items():
            console.print(f"padding {form}: {share['padding_share']:.1%} in {share['sequences']:,} sequences an epoch")


def save_plot(path: Path, tables: dict[str, Any], max_length: int) -> None:
    """Histograms of all splits as one PNG."""
    from drive_vlm.report.figures import new_figure, save

    figure = new_figure(7, 4)
    axes = figure.subplots()
    labels = [f"{name} ({len(table):,} rows)" for name, table in tables.items()]
    axes.hist([table.length for table in tables.values()], bins=40, label=labels)
    axes.set(xlabel="tokens a row", ylabel="rows", title=f"row lengths, max_length {max_length}")
    axes.legend()
    save(figure, path)


def check(args: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """(what --json holds, tables by split, encoder). Raises ValueError for files and models that cannot be read."""
    from drive_vlm.builders.checks import leak_keys
    from drive_vlm.builders.splits import find_leaks
    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.models import load_processor

    if min(args.max_length, args.batch_size, args.num_frames, args.workers) < 1 or args.preview < 0:
        raise ValueError(
            "--max_length, --batch_size, --num_frames and --workers must be at least 1, --preview 0 or more"
        )
    paths = {"train": args.data, "eval": args.eval_data}
    sources = {name: open_sources(files, args.image_root, args.links) for name, files in paths.items() if files}
    parts = load_processor(
        ModelConfig(args.model, max_tiles=args.max_tiles, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
    )
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision, args.num_frames)
    splits, tables = {}, {}
    for name, files in sources.items():
        splits[name], tables[name] = check_split(files, encoder, args)
    leaks = []
    if len(sources) > 1:
        leaks = find_leaks({name: leak_keys(files) for name, files in sources.items()})
        train, held_out = ([sample for sample, _ in tables[name].media()] for name in ("train", "eval"))
        leaks += picture_leaks(train, held_out, args)
    if args.against:
        leaks += leaks_against(sources["train"], [sample for sample, _ in tables["train"].media()], args)
    return {"splits": splits, "leaks": [dataclasses.asdict(leak) for leak in leaks]}, tables, encoder


def run(args: Any) -> dict[str, Any]:
    """Check, print and plot; returns what --json holds."""
    from rich.console import Console

    result, tables, encoder = check(args)
    console = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
    for name, split in result["splits"].items():
        show_split(console, name, split)
    if args.preview:
        show_preview(console, tables["train"], encoder, args.preview)
    if args.plot:
        save_plot(args.plot, tables, args.max_length)
    return result


def verdict(result: dict[str, Any], args: Any) -> str | None:
    """Why the data cannot be trained on as it is, for exit code 1."""
    empty = [name for name, split in result["splits"].items() if not split["rows_used"]]
    if empty:
        files = ", ".join(file["path"] for name in empty for file in result["splits"][name]["files"])
        return f"no usable row in {' and '.join(empty)} ({files}): see the reasons above"
    counts = Counter((leak["kind"], *leak["splits"]) for leak in result["leaks"])
    for (kind, *splits), count in counts.items():
        alike = [leak["value"] for leak in result["leaks"] if (leak["kind"], *leak["splits"]) == (kind, *splits)]
        places = " and ".join(f"in {split}" for split in splits)
        text = f"leak: {count:,} values of {kind} are {places}, such as {', '.join(alike[:EXAMPLES_SHOWN])}"
        print(text, file=sys.stderr)
    if result["leaks"]:
        return "the splits share rows, scenes or pictures: split by group (tools/build_*.py do), or take the shared rows out of one file"
    return None


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, verdict)
