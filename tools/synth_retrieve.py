"""Step 4 of synthesis: names of boxes and regions by their nearest neighbours in a data base of named crops.

A region gets a name where --agree of its --k neighbours have it, the nearest of them scores --threshold or more, and --margin more
than any other name; else it is unknown, which is a corner case worth a row by itself. A detector's box keeps its label, with what the
neighbours say of it; with --boxes check it becomes unknown where a name of the data base passes that is not its own.

The threshold belongs to a data base and its embedder: --calibrate takes lines of synth_embed.py whose boxes have true labels, of scenes
that are not in the data base, and writes the lowest one that reaches --precision to DATABASE/calibration.json, where it is found.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synth_steps import show_step

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.launch.stop import listening

if TYPE_CHECKING:
    from drive_vlm.builders.synthesis.retrieve import Rule

EXAMPLES = """
python tools/synth_retrieve.py --calibrate held_out_embed.jsonl --database database --precision .95
python tools/synth_retrieve.py --data embed.jsonl --database database --out retrieve.jsonl
python tools/synth_retrieve.py --data embed.jsonl --database part0 part1 --threshold .8 --search faiss --out retrieve.jsonl --shard 0/8
python tools/synth_retrieve.py --merge retrieve.shard-*-of-08.jsonl --out retrieve.jsonl
"""


def make_parser() -> CommandParser:
    from drive_vlm.builders.synthesis.step import step_flags

    parser = CommandParser(prog="python tools/synth_retrieve.py", description=__doc__, examples=EXAMPLES)
    step_flags(parser, batch_size=64, need_out=False)
    add, flag = parser.add_argument, parser.flag
    add("--database", nargs="+", default=[], help="folders of tools/synth_database.py; several are searched as one")
    add("--calibrate", help="lines of synth_embed.py with true labels: find the threshold, and do nothing else")
    flag("--precision", 0.95, "share of right names that the threshold must reach (--calibrate)", most=1)
    add(
        "--threshold",
        type=float,
        help="least similarity of a name's nearest crop (default: of the data base's calibration)",
    )
    flag("--k", 5, "neighbours that are asked")
    flag("--agree", 3, "neighbours that must have the name")
    flag("--margin", 0.0, "how much nearer the name must be than any other", most=2)
    flag(
        "--boxes",
        ("keep", "check"),
        "a detector's box that the neighbours call otherwise: keep its label, or take it as unknown",
    )
    flag(
        "--search",
        ("exact", "faiss"),
        "the product of all vectors, or faiss's Flat index (extra `retrieval`); hits are the same",
    )
    return parser


def counts(line: dict[str, Any]) -> dict[str, int]:
    sources = [item["by"] for item in line["objects"]]
    names = {"objects by detector": sources.count("detector"), "objects by retrieval": sources.count("retrieval")}
    return names | {"unknown": len(line["unknown"])}


def rule_of(args: Any, calibrated: float | None) -> "Rule":
    from drive_vlm.builders.synthesis.retrieve import Rule

    threshold = args.threshold if args.threshold is not None else calibrated
    if threshold is None:
        raise ValueError(
            f"no threshold: {args.database[0]} has no calibration.json. Give --threshold, or find it with --calibrate on crops with true "
            "labels of scenes that are not in the data base."
        )
    if args.agree > args.k:
        raise ValueError(f"--agree {args.agree} of --k {args.k} neighbours cannot be. Give a smaller number.")
    return Rule(args.k, args.agree, threshold, args.margin, args.boxes)


def calibrated(args: Any) -> float | None:
    """The threshold in the data base's calibration. Raises ValueError where it was found for another rule."""
    from drive_vlm.store.cache import read_json
    from drive_vlm.store.keyed_lines import check_same

    path = Path(args.database[0]) / "calibration.json"
    if args.threshold is not None or not path.is_file():
        return None
    found = read_json(path)
    rule = {name: getattr(args, name) for name in ("k", "agree", "margin", "database")}
    then = {name: found.get(name) for name in rule}
    check_same(f"{path} was found for another rule", then, rule, "Calibrate again, or give --threshold.")
    return float(found["threshold"])


def run(args: Any) -> dict[str, Any] | None:
    """Calibrate, retrieve, or merge shards; the audit."""
    from drive_vlm.builders.synthesis.database import Database
    from drive_vlm.builders.synthesis.retrieve import retrieving
    from drive_vlm.builders.synthesis.step import Step, merge_steps, run_step
    from drive_vlm.store.fingerprint import content_hash

    fields = ("objects", "unknown")
    if not args.out and not args.calibrate:
        raise ValueError("--out is needed: the step's lines.")
    if args.merge:
        return merge_steps(Step("retrieve", {}, {}, fields, counts), args.merge, Path(args.out))
    if not args.database:
        raise ValueError("--database is needed: a folder of tools/synth_database.py.")
    database = Database(args.database, args.search == "faiss")
    if args.calibrate:
        return calibrating(args, database)
    if not args.data:
        raise ValueError("--data is needed: the file of synth_embed.py.")
    for entry in args.data:
        check_queries(entry, database)
    rule = rule_of(args, calibrated(args))
    content = [
        {name: content_hash(folder / name) for name in ("vectors.npy", "names.jsonl")} for folder in database.folders
    ]
    settings = dataclasses.asdict(rule) | {"database": content}
    step = Step("retrieve", settings, {}, fields, counts, pixels=False)
    return run_step(step, args, lambda: retrieving(database, rule))


def check_queries(entry: str, database: Any) -> None:
    from drive_vlm.builders.synthesis.settings import read_settings

    known = read_settings(Path(entry))
    if known is None or known.step != "embed":
        raise ValueError(f"{entry}: not a file of synth_embed.py.")
    database.check_queries(known.models.get("embedder"), known.settings, entry)


def calibrating(args: Any, database: Any) -> dict[str, Any]:
    """Find the threshold, write it beside the data base, and give what is to be shown."""
    from drive_vlm.builders.synthesis.pictures import read_pictures
    from drive_vlm.builders.synthesis.records import field_of
    from drive_vlm.builders.synthesis.retrieve import calibrate, vectors_of, vote
    from drive_vlm.store.cache import write_json

    check_queries(args.calibrate, database)
    votes, truth = [], []
    groups = {entry.group for entry in database.entries} - {None}
    for picture in read_pictures([args.calibrate], args.image_root, refuse)[0]:
        if picture.group in groups:
            raise ValueError(
                f"{picture.where}: group {picture.group!r} is in the data base: its crops would find themselves. Calibrate on other scenes."
            )
        boxes = field_of(picture.line, "boxes", picture.where)
        items = [item for item in field_of(picture.line, "items", picture.where) if item.source == "box"]
        if items:
            votes += vote(database, vectors_of(picture, items), args.k)
            truth += [boxes[item.place].label for item in items]
    if not truth:
        raise ValueError(f"--calibrate {args.calibrate}: no box with a label and a vector in it.")
    rule = dataclasses.replace(rule_of(args, 0.0), threshold=0.0)
    found = calibrate(votes, truth, set(database.names), rule, args.precision)
    result = dataclasses.asdict(found) | {
        "precision": found.precision,
        "recall": found.recall,
        "database": args.database,
    }
    write_json(database.folders[0] / "calibration.json", result)
    return {"calibration": result}


def refuse(error: Exception) -> None:
    raise error


def show(result: dict[str, Any], args: Any) -> None:
    if "calibration" not in result:
        return show_step(result, args)
    found = result["calibration"]
    print(
        f"threshold {found['threshold']:.4f}: of {found['crops']:,} crops ({found['nameable']:,} with a name of the data base) "
        f"{found['accepted']:,} get a name, {found['right']:,} of them the right one (precision {found['precision']:.3f}, recall "
        f"{found['recall']:.3f})\nwrote {args.database[0]}/calibration.json"
    )


def main() -> None:
    with listening():
        run_tool(make_parser(), run, show)


if __name__ == "__main__":
    main()
