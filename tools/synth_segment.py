"""Step 2 of synthesis: masks of regions that no box of the detector names, by SAM or SAM2 of transformers.

Points on a grid are asked for (--points_per_side; 16 in place of SAM's 32, which cost four times as much and find little more in
driving scenes: a choice from published times, not measured here). Masks below .1 % or above 50 % of the picture's area are dropped,
and those whose box overlaps a named box by half: they are counted. Masks are written as COCO run lengths, never as bitmaps. Reads the
file of synth_detect.py, or pictures alone: nothing has a name then.
"""

from pathlib import Path
from typing import Any

from synth_steps import show_step

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.launch.stop import listening

EXAMPLES = """
python tools/synth_segment.py --data detect.jsonl --model facebook/sam2.1-hiera-small --out segment.jsonl
python tools/synth_segment.py --data detect.jsonl --model facebook/sam-vit-base --points_per_side 24 --out segment.jsonl --shard 0/8
torchrun --nproc_per_node 8 tools/synth_segment.py --data detect.jsonl --model facebook/sam2.1-hiera-small --out segment.jsonl
python tools/synth_segment.py --merge segment.shard-*-of-08.jsonl --out segment.jsonl
"""


def make_parser() -> CommandParser:
    from drive_vlm.builders.synthesis.step import step_flags

    parser = CommandParser(prog="python tools/synth_segment.py", description=__doc__, examples=EXAMPLES)
    step_flags(parser, batch_size=4)
    flag = parser.flag
    parser.add_argument("--model", help="SAM, SAM2, SAM-HQ or EdgeTAM: a directory, or a hub id")
    flag("--points_per_side", 16, "points on a side of the grid")
    flag("--points_per_batch", 64, "points that the mask decoder takes at a time")
    flag("--pred_iou_thresh", 0.88, "least quality of a mask by the model's own estimate", most=1)
    flag("--stability_score_thresh", 0.95, "least stability of a mask against the threshold of its pixels", most=1)
    flag("--least_area", 0.001, "share of the picture's area below which a mask is dropped", most=1)
    flag("--most_area", 0.5, "share of the picture's area above which a mask is dropped: road, sky", most=1)
    flag("--named_overlap", 0.5, "a region whose box overlaps (IoU) a named box by so much has a name already", most=1)
    flag("--dtype", ("float32", "bfloat16", "float16"), "of the weights")
    return parser


def counts(line: dict[str, Any]) -> dict[str, int]:
    return {"regions": len(line["regions"]), "pictures without a region": int(not line["regions"])}


def run(args: Any) -> dict[str, Any] | None:
    """Segment, or merge shards; the audit."""
    from drive_vlm.builders.synthesis.step import Make, Step, merge_steps, run_step
    from drive_vlm.store.fingerprint import model_fingerprint

    fields = ("size", "regions")
    if args.merge:
        return merge_steps(Step("segment", {}, {}, fields, counts), args.merge, Path(args.out))
    if not args.model:
        raise ValueError("--model is needed: a SAM or SAM2, as a directory or a hub id.")
    names = (
        "points_per_side",
        "pred_iou_thresh",
        "stability_score_thresh",
        "least_area",
        "most_area",
        "named_overlap",
        "dtype",
    )
    settings = {name: getattr(args, name) for name in names}

    def open_make() -> Make:
        from drive_vlm.builders.synthesis.segment import Limits, open_segmenter, segmenting

        thresholds = args.pred_iou_thresh, args.stability_score_thresh
        segment = open_segmenter(args.model, args.points_per_side, args.points_per_batch, *thresholds, args.dtype)
        return segmenting(segment, Limits(args.least_area, args.most_area, args.named_overlap))

    step = Step("segment", settings, {"segmenter": model_fingerprint(args.model)}, fields, counts)
    return run_step(step, args, open_make)


def main() -> None:
    with listening():
        run_tool(make_parser(), run, show_step)


if __name__ == "__main__":
    main()
