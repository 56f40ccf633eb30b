"""Steps 1 and 2 of synthesis from the exact truth of a synthetic data set: boxes with the faults of a detector, and regions.

It stands in for a detector and a segmenter where neither can run, and says so: the models are "scene truth" with the hash of
scenes.jsonl, the shares are in the settings. --misses 0 --false_hits 0 --empty 0 is the truth itself.
"""

from pathlib import Path
from typing import Any

from synth_steps import show_step

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.launch.stop import listening

EXAMPLES = """
python tools/synth_truth.py --data data/synthetic/pictures_pool.jsonl --truth data/synthetic/scenes.jsonl --out truth.jsonl
python tools/synth_truth.py --data data/synthetic/images --image_root data/synthetic --truth data/synthetic/scenes.jsonl --misses 0 --false_hits 0 --out truth.jsonl
"""


def make_parser() -> CommandParser:
    from drive_vlm.builders.synthesis.step import step_flags

    parser = CommandParser(prog="python tools/synth_truth.py", description=__doc__, examples=EXAMPLES)
    step_flags(parser, batch_size=64)
    add, flag = parser.add_argument, parser.flag
    add(
        "--truth",
        type=Path,
        required=True,
        help="scenes.jsonl of tools/build_synthetic.py, whose folder is the image root",
    )
    flag("--misses", 0.1, "share of the objects that have no box", 0, 1)
    flag("--false_hits", 0.05, "share of the names absent from a picture that have a box in it", 0, 1)
    flag("--empty", 2, "regions of a picture where nothing is", least=0)
    flag("--seed", 0, "of misses, false hits and scores", least=0)
    return parser


def run(args: Any) -> dict[str, Any] | None:
    """The audit of the step. Raises ValueError."""
    from drive_vlm.builders.synthesis.step import Step, merge_steps, run_step
    from drive_vlm.builders.synthesis.truth import finding, read_scenes
    from drive_vlm.store.fingerprint import content_hash

    shares = {name: getattr(args, name) for name in ("misses", "false_hits", "empty", "seed")}
    source = {"name": "scene truth", "sha256": content_hash(args.truth) if args.truth.is_file() else None}
    fields = ("size", "boxes", "unknown_labels", "regions")

    def counts(line: dict[str, Any]) -> dict[str, int]:
        return {"boxes": len(line["boxes"]), "regions": len(line["regions"])}

    step = Step("truth", shares, {"detector": source, "segmenter": source}, fields, counts)
    if args.merge:
        return merge_steps(step, args.merge, Path(args.out))
    scenes = read_scenes(args.truth)
    args.image_root = args.image_root or str(args.truth.parent)
    return run_step(step, args, lambda: finding(scenes, args.misses, args.false_hits, args.empty, args.seed))


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show_step)
