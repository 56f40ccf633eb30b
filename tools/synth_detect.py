"""Step 1 of synthesis: boxes with names on pictures, by a detector that is asked for a list of labels.

--model takes a GroundingDINO, MM-GroundingDINO or OWLv2 of transformers (directory or hub id), and a SAM3, whose boxes have masks.
Labels are asked for in groups; only texts that are a label of the list are kept, all others are counted (unknown_labels). Other
sources: --yolo runs ultralytics weights (optional extra under AGPL-3.0), --detection_cache reads what tools/cache_detections.py has
written. Several boxes of one object become one. Thresholds are those of the models' authors, not measured here.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synth_steps import show_step

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.launch.stop import listening

if TYPE_CHECKING:
    from drive_vlm.builders.synthesis.pictures import Picture
    from drive_vlm.builders.synthesis.step import Made, Make
    from drive_vlm.data.samples import BadRow

EXAMPLES = """
python tools/synth_detect.py --data pictures/ --model IDEA-Research/grounding-dino-base --out detect.jsonl
python tools/synth_detect.py --data rows.jsonl --model google/owlv2-base-patch16-ensemble --labels labels.txt --out detect.jsonl --shard 3/16
torchrun --nproc_per_node 8 tools/synth_detect.py --data pictures/ --model facebook/sam3 --labels car cone --out detect.jsonl
python tools/synth_detect.py --data pictures/ --yolo yolov8n.pt --out detect.jsonl
python tools/synth_detect.py --data rows.jsonl --detection_cache detections.jsonl --out detect.jsonl
python tools/synth_detect.py --merge detect.shard-*-of-16.jsonl --out detect.jsonl
"""
# Of the models' own examples: GroundingDINO .25, OWLv2 .1, SAM3 .3.
THRESHOLD = {"owlv2": 0.1, "sam3": 0.3}
USUAL = 0.25


def make_parser() -> CommandParser:
    from drive_vlm.builders.synthesis.step import step_flags

    parser = CommandParser(prog="python tools/synth_detect.py", description=__doc__, examples=EXAMPLES)
    step_flags(parser, batch_size=4)
    add, flag = parser.add_argument, parser.flag
    add("--model", help="detector of transformers: a directory, or a hub id")
    add(
        "--yolo",
        metavar="WEIGHTS",
        help="weights of ultralytics YOLO, a local .pt file: a pickle, load only what you trust",
    )
    add("--sha256", help="refuse --yolo weights with another SHA-256")
    add("--detection_cache", help="a cache that tools/cache_detections.py has written, in place of a detector")
    add(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="what to look for: words, or a file with one a line (default: a list for driving; of --yolo and --detection_cache: all their classes)",
    )
    flag("--group", 20, "labels in one question to GroundingDINO and OWLv2; at most 20", most=20)
    add(
        "--threshold", type=float, help="least score of a box (default: GroundingDINO .25, OWLv2 .1, SAM3 .3, YOLO .25)"
    )
    flag("--text_threshold", 0.25, "least score of a word that joins the label of a box (GroundingDINO)", most=1)
    flag("--mask_threshold", 0.5, "least score of a pixel of a mask (SAM3)", most=1)
    flag("--same_label", 0.7, "boxes of one label that overlap (IoU) by more are one object", most=1)
    flag(
        "--any_label",
        0.85,
        "boxes of two labels that overlap (IoU) by more are one object, named by the surer one",
        most=1,
    )
    flag("--imgsz", 640, "longer side of a picture for --yolo, in pixels", least=32)
    flag("--dtype", ("float32", "bfloat16", "float16"), "of the weights of --model")
    return parser


def counts(line: dict[str, Any]) -> dict[str, int]:
    found = Counter(f"boxes of {box['label']}" for box in line["boxes"])
    unknown = sum(line["unknown_labels"].values())
    return (
        {"boxes": len(line["boxes"]), "pictures without a box": int(not line["boxes"])}
        | {"unknown labels": unknown}
        | found
    )


def overlap(args: Any) -> tuple[float, float]:
    return args.same_label, args.any_label


def source(args: Any, labels: list[str]) -> "tuple[dict[str, Any], Any, Any]":
    """(settings, what names the model, a function that opens the make of the step) of the source that the flags name."""
    named = [name for name in ("model", "yolo", "detection_cache") if getattr(args, name)]
    if len(named) != 1:
        raise ValueError("give one of --model, --yolo and --detection_cache: where boxes come from.")
    if args.detection_cache:
        return of_cache(args, labels)
    return of_yolo(args, labels) if args.yolo else of_model(args, labels)


def of_model(args: Any, labels: list[str]) -> "tuple[dict[str, Any], Any, Any]":
    import transformers as hf

    from drive_vlm.builders.synthesis.detect import looking
    from drive_vlm.builders.synthesis.detectors import Thresholds, open_detector
    from drive_vlm.builders.synthesis.devices import open_model
    from drive_vlm.store.fingerprint import model_fingerprint

    kind = open_model(hf.AutoConfig, args.model).model_type
    box = THRESHOLD.get(kind, USUAL) if args.threshold is None else args.threshold
    thresholds = Thresholds(box, args.text_threshold, args.mask_threshold)
    settings = {"threshold": box, "group": args.group, "dtype": args.dtype}
    settings |= {"mask_threshold": args.mask_threshold} if kind == "sam3" else {"text_threshold": args.text_threshold}

    def open_make() -> "Make":
        return looking(open_detector(args.model, labels, args.group, thresholds, args.dtype), *overlap(args))

    return settings, model_fingerprint(args.model), open_make


def of_yolo(args: Any, labels: list[str]) -> "tuple[dict[str, Any], Any, Any]":
    from yolo_detector import open_detector

    from drive_vlm.builders.synthesis.detect import looking, named_boxes
    from drive_vlm.builders.synthesis.detectors import Found

    conf = USUAL if args.threshold is None else args.threshold
    name, detect = open_detector(Path(args.yolo), args.sha256, args.imgsz, conf, args.batch_size)
    label = f"{Path(args.yolo).stem}"

    def looked(pictures: Sequence[Any]) -> list[Found]:
        return [named_boxes(objects, labels, label) for objects in detect(list(pictures))]

    model = {"name": name.weights, "sha256": name.sha256, "version": name.version}
    return {"threshold": conf, "imgsz": args.imgsz}, model, lambda: looking(looked, *overlap(args))


def of_cache(args: Any, labels: list[str]) -> "tuple[dict[str, Any], Any, Any]":
    from drive_vlm.builders.synthesis.detect import merged, named_boxes
    from drive_vlm.data.samples import BadRow
    from drive_vlm.rewards.detections import DetectionCache

    cache = DetectionCache.load(args.detection_cache)
    if cache.detector is None:
        raise ValueError(f"--detection_cache {args.detection_cache}: it holds no line.")
    least = 0.0 if args.threshold is None else args.threshold
    by = Path(cache.detector.weights).stem

    def make(pictures: "Sequence[Picture]") -> "Iterator[Made | BadRow]":
        for picture in pictures:
            try:
                entry, shown = cache.entry(picture.image), picture.load()
            except BadRow as error:
                yield error
                continue
            except ValueError as error:
                yield BadRow(
                    "no_detections", picture.where, str(error), "Add it to the cache, or use --on_bad_row skip"
                )
                continue
            frame = entry.frames[0]
            if frame.sha256 != hashlib.sha256(shown.tobytes()).hexdigest():
                problem = f"{picture.path} is not the picture that {args.detection_cache} tells of"
                yield BadRow("picture_changed", picture.where, problem, "Run tools/cache_detections.py again")
                continue
            objects = [item for item in frame.objects if item.score >= least]
            yield merged(named_boxes(objects, labels, by), shown.size, *overlap(args))

    detector = cache.detector
    model = {"name": detector.weights, "sha256": detector.sha256, "version": detector.version}
    cached = {"imgsz": detector.imgsz, "conf": detector.conf}
    return {"threshold": least, "cache": cached}, model, lambda: make


def run(args: Any) -> dict[str, Any] | None:
    """Detect, or merge shards; the audit."""
    from drive_vlm.builders.synthesis.labels import DRIVING, read_labels
    from drive_vlm.builders.synthesis.step import Step, merge_steps, run_step

    fields = ("size", "boxes", "unknown_labels")
    if args.merge:
        return merge_steps(Step("detect", {}, {}, fields, counts), args.merge, Path(args.out))
    default = list(DRIVING) if args.model else []
    labels = read_labels(args.labels) if args.labels else default
    own, model, open_make = source(args, labels)
    settings = own | {"labels": labels, "same_label": args.same_label, "any_label": args.any_label}
    return run_step(Step("detect", settings, {"detector": model}, fields, counts), args, open_make)


def main() -> None:
    with listening():
        run_tool(make_parser(), run, show_step)


if __name__ == "__main__":
    main()
