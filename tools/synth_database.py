"""The visual-text data base of synthesis: crops that somebody has named, as vectors, for synth_retrieve.py.

--data takes folders whose pictures lie in folders by name (traffic_cone/1.jpg is a traffic cone), and lines with boxes and labels, such
as those of synth_detect.py or {"image", "group", "boxes": [{"box", "label", "score", "by"}], "licence"}. Build it from training scenes
alone: with --against, crops of evaluation pictures are found by their group, by their picture's bytes and by their embedding, and
stop the build. Finished crops are kept when the command is run again.
"""

import argparse
from pathlib import Path
from typing import Any

from synth_steps import embedder_flags, embedder_settings

from drive_vlm.config import CommandParser, output_folder, run_tool
from drive_vlm.launch.stop import listening
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/synth_database.py --data named/ --model google/siglip2-base-patch16-224 --licence CC-BY-4.0 --out database
python tools/synth_database.py --data boxes.jsonl --image_root data/ --clip_model ViT-B-32 --against val.jsonl test.jsonl --out database
python tools/synth_database.py --data named/ --model DIR --against val.jsonl --against_root data/val --on_leak skip --out database
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/synth_database.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--data", nargs="+", required=True, help="folders of pictures by name, and lines with boxes and labels")
    add("--out", required=True, type=output_folder, help="the data base, a folder")
    add("--image_root", help="folder that the picture paths of --data start from")
    flag("--licence", "not stated", "of the pictures whose line says none; it is kept with each name")
    add(
        "--against",
        nargs="+",
        default=[],
        help="rows, lines or folders of evaluation: nothing of them may be in the data base",
    )
    add("--against_root", help="folder that the picture paths of --against start from")
    flag("--alike", 0.97, "crops of this similarity show one thing; not measured, look at what it finds", most=1)
    flag("--on_leak", ("error", "skip"), "a crop of an evaluation picture: stop, or leave it out and count it")
    flag("--on_bad_row", ("error", "skip"), "a picture that cannot be used: stop, or leave it out and count it")
    flag("--batch_size", 8, "pictures that are worked on at a time")
    add("--json", help="write the counts here")
    embedder_flags(parser)
    return parser


def run(args: Any) -> dict[str, Any] | None:
    """Embed, look for leaks, write; what --json holds, None on other ranks."""
    from drive_vlm.builders.synthesis.database import find_leaks, leak_counts, write_database
    from drive_vlm.builders.synthesis.embedders import embedder_fingerprint
    from drive_vlm.store.keyed_lines import write_lines

    embedder = embedder_fingerprint(args.model, args.clip_model, args.clip_pretrained)
    out = Path(args.out)
    crops, held_out = out / "crops.jsonl", out / "held_out.jsonl"
    audit = embed(args, embedder, args.data, args.image_root, crops, whole=False)
    if args.against:
        embed(args, embedder, args.against, args.against_root, held_out, whole=True)
    if audit is None:
        return None
    leaks = find_leaks(crops, held_out, args.alike) if args.against else []
    counts = leak_counts(leaks)
    if leaks and args.on_leak == "error":
        words = ", ".join(f"{count} by {kind}" for kind, count in counts.items())
        raise ValueError(
            f"{len(leaks):,} of the crops are of evaluation pictures ({words}), e.g. {leaks[0]}: retrieval would copy their labels. Take "
            "them out of --data, or give --on_leak skip."
        )
    write_lines(
        out / "leaks.jsonl",
        ({"kind": leak.kind, "image": leak.image, "held_out": leak.held_out, "score": leak.score} for leak in leaks),
    )
    views = embedder_settings(args)
    settings = write_database(out, crops, embedder, views, {leak.vector for leak in leaks})
    checked = counts if args.against else None
    return {"rows": settings.rows, "names": settings.names, "leaks_left_out": checked, "audit": audit}


def embed(args: Any, embedder: Any, data: list[str], root: str | None, out: Path, whole: bool) -> dict[str, Any] | None:
    """The step's file `out` of the pictures `data`."""
    from drive_vlm.builders.synthesis.database import naming
    from drive_vlm.builders.synthesis.embed import PACKED, Views, store_vectors
    from drive_vlm.builders.synthesis.embedders import open_embedder
    from drive_vlm.builders.synthesis.step import Make, Step, run_step

    def open_make() -> Make:
        embedder = open_embedder(args.model, args.clip_model, args.clip_pretrained, args.crops, args.dtype)
        return naming(embedder, Views(args.context, args.least_side), args.licence, whole)

    def counts(line: dict[str, Any]) -> dict[str, int]:
        return {"crops": len(line["items"])}

    settings = embedder_settings(args) | {"licence": args.licence, "whole": whole}
    fields = ("items", PACKED, "content", "licence")
    step = Step("database", settings, {"embedder": embedder}, fields, counts, store=store_vectors)
    flags = {"data": data, "image_root": root, "out": out, "group_by_folder": False, "limit": None, "shard": None}
    return run_step(step, argparse.Namespace(**vars(args) | flags), open_make)


def show(result: dict[str, Any], args: Any) -> None:
    rows = [("crops", f"{result['rows']:,}"), ("names", f"{result['names']:,}")]
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in result["audit"]["dropped"].items()]
    rows += [(f"leaks by {kind}, left out", f"{count:,}") for kind, count in (result["leaks_left_out"] or {}).items()]
    print_table(None, ("data base", "count"), rows)
    if result["leaks_left_out"] is None:
        print("not checked against evaluation pictures: give --against")
    for row in result["audit"]["bad_rows"]["rows"][:10]:
        print(f"  {row['where']}: {row['reason']}: {row['problem']}")
    print(f"wrote {args.out}")


def main() -> None:
    with listening():
        run_tool(make_parser(), run, show)


if __name__ == "__main__":
    main()
