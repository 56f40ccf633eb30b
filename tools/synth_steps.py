"""What the commands of the synthesis steps share: a part of tools/synth_*.py."""

from typing import Any

from drive_vlm.config import CommandParser
from drive_vlm.report.tables import print_table


def show_step(audit: dict[str, Any], args: Any) -> None:
    """Print the audit of a step: what `show` of its tool is."""
    rows = [("pictures", audit["pictures"]), ("lines", audit["lines"]), *audit["counts"].items()]
    if "made" in audit:
        rows.insert(2, ("made now", audit["made"]))
    rows += [(f"dropped: {reason}", count) for reason, count in audit["dropped"].items()]
    rows += [(f"bad: {reason}", count) for reason, count in audit["bad_rows"]["by_reason"].items()]
    rows += [(f"tokens: {kind}", count) for kind, count in audit["tokens"].items()]
    print_table(None, (audit["step"], "count"), [(name, f"{count:,}") for name, count in rows])
    for row in audit["bad_rows"]["rows"][:10]:
        print(f"  {row['where']}: {row['reason']}: {row['problem']}")
    cost = f", {audit['cost']:.4f} US dollars" if audit["cost"] else ""
    print(f"wrote {args.out}{cost}")


def embedder_flags(parser: CommandParser) -> None:
    """Which embedder, and how it sees an object: data base and queries must be alike in these."""
    add, flag = parser.add_argument, parser.flag
    add("--model", help="SigLIP, SigLIP 2, CLIP or DINOv2 of transformers: a directory, or a hub id")
    add("--clip_model", help="a model of open_clip, or a directory of tools/train_clip.py, in place of --model")
    add("--clip_pretrained", help="weights of --clip_model: a tag of open_clip, or a file")
    flag("--context", 0.1, "share of a box's sides that a crop shows beyond each of them")
    flag("--least_side", 8, "boxes with a side of fewer pixels are not embedded: they are counted", least=1)
    flag("--crops", 64, "crops that the embedder takes at a time")
    flag("--dtype", ("float32", "bfloat16", "float16"), "of the weights of --model")


def embedder_settings(args: Any) -> dict[str, Any]:
    """Of these flags, those that decide a vector."""
    return {"context": args.context, "least_side": args.least_side, "dtype": args.dtype}
