"""Texts about driving videos against what a detector saw: objects, hallucinations, time, detail, and lengths obeyed.

Each prediction row needs "video" as the detection cache names it; "mode" (detailed, concise) splits the scores. For each
mode: precision, recall and F1 of the object classes and CHAIR over all texts (drive_vlm/evaluation/video.py); the terms of
the physics reward and their sum, averaged over the texts (drive_vlm/rewards/physics.py); words; BLEU, ROUGE-L and CIDEr
against the reference (texts without one are scored by the rest); with --clip_model the cosine of text and reference and of text and frames. Where rows hold exact
classes (--truth_column) the object scores come against these as well. The lengths of the two modes are compared where the
ids of two texts about one video differ in their end alone, -detailed and -concise (with other ids: one pair a video).
Intervals are 95 %, from a bootstrap over videos (the row's "group", else its video). Several --predictions are
compared, each with the first, on the rows they share.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, add_dataclass, from_namespace, output_file, run_tool
from drive_vlm.report.tables import write_csv
from drive_vlm.rewards.physics import PhysicsConfig

if TYPE_CHECKING:
    import numpy as np

    from drive_vlm.clip.encoder import ClipEncoder
    from drive_vlm.data.predictions import Prediction
    from drive_vlm.evaluation.video import Scored
    from drive_vlm.rewards.detections import DetectionCache
    from drive_vlm.rewards.physics import PhysicsReward
    from drive_vlm.rewards.text.driving_text import TextParser

EXAMPLES = """
python tools/video_eval.py --predictions stage2.jsonl stage3.jsonl --physics_detections detections.jsonl --json scores.json
python tools/video_eval.py --predictions p.jsonl --physics_detections d.jsonl --csv scores.csv --plot scores.png
python tools/video_eval.py --predictions p.jsonl --physics_detections d.jsonl --image_root data/bdd --clip_model ViT-B-32
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/video_eval.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--predictions", nargs="+", required=True, help="JSONL files, one for each checkpoint")
    flag(
        "--on_missing",
        ("error", "skip"),
        "a video without detections: error stops, skip leaves its rows out and counts them",
    )
    flag("--truth_column", "truth_classes", "column with the exact classes of the video, where there is one")
    add("--clip_model", help="open_clip model, or a directory of tools/train_clip.py: CLIP scores as well")
    add("--clip_pretrained", help="tag of open_clip or local weights file")
    add("--image_root", help="folder that the rows' videos are relative to (for --clip_model)")
    flag("--num_frames", 8, "frames of a video that CLIP sees, evenly spread")
    flag("--device", "cpu", "device of CLIP: cpu, cuda, cuda:1 ...")
    add("--csv", type=output_file, help="write one line for each row and checkpoint")
    add("--plot", type=output_file, help="write the scores with their intervals to this PNG")
    add("--json", help="write every number to this file")
    flag("--seed", 0, "of the bootstrap")
    add_dataclass(parser, PhysicsConfig, "physics reward")
    return parser


def read_files(
    args: Any, cache: "DetectionCache"
) -> tuple[list[str], list[list["Prediction"]], dict[str, dict[str, int]]]:
    """(names, the rows that all files share and the cache knows, {file: {ids_left_out, rows_without_detections}})."""
    from drive_vlm.data.predictions import read_checkpoints
    from drive_vlm.evaluation.video import pair_keys

    names, files, left_out = read_checkpoints(args.predictions, need_reference=False)
    for items in files:
        for item in items:
            if not isinstance(item.row.get("video"), str) or not item.row["video"]:
                raise ValueError(
                    f'{item.where}: id {item.id!r} has no "video"; generate the file from rows with videos, or add it'
                )
    for first, *others in zip(*files, strict=True):
        for other in others:
            if any(other.row.get(key) != first.row.get(key) for key in ("video", "mode")):
                raise ValueError(f"{other.where}: id {other.id!r} has another video or mode than at {first.where}")
    for items in files:
        pair_keys(items)
    known = [item.row["video"] in cache for item in files[0]]
    if not all(known) and args.on_missing == "error":
        lost = files[0][known.index(False)]
        try:
            cache.classes(lost.row["video"])
        except ValueError as error:
            raise ValueError(
                f"{lost.where}: id {lost.id!r}: {error} ({known.count(False)} rows in all; --on_missing skip leaves them out)"
            ) from error
    if not any(known):
        raise ValueError(f"none of the {len(known)} rows' videos is in {', '.join(args.physics_detections)}")
    kept = [[item for item, there in zip(items, known, strict=True) if there] for items in files]
    counts = [{"ids_left_out": out, "rows_without_detections": known.count(False)} for out in left_out]
    return names, kept, dict(zip(args.predictions, counts, strict=True))


def score_file(
    items: list["Prediction"], truths: list[frozenset[str]] | None, reward: "PhysicsReward"
) -> list["Scored"]:
    from drive_vlm.evaluation.video import Scored, pair_keys
    from drive_vlm.rewards.physics import terms

    parsed = reward.parser.parse([text for item in items for text in (item.prediction, item.reference)])
    vocabulary, rest = reward.parser.vocabulary, (reward.weights, reward.critical)
    scored = []
    for index, (item, pair) in enumerate(zip(items, pair_keys(items), strict=True)):
        said, wanted = parsed[2 * index], parsed[2 * index + 1]
        found = terms(said, wanted, reward.cache.classes(item.row["video"]), vocabulary, *rest)
        exact = terms(said, wanted, truths[index], vocabulary, *rest) if truths else None
        scored.append(Scored(item, pair, found, exact))
    return scored


def truths_of(items: list["Prediction"], column: str, parser: "TextParser") -> list[frozenset[str]] | None:
    """The exact classes of each row; None where no row holds any."""
    with_truth = sum(column in item.row for item in items)
    if 0 < with_truth < len(items):
        lost = next(item for item in items if column not in item.row)
        raise ValueError(f"{lost.where}: id {lost.id!r} has no {column!r}, {with_truth} other rows have it")
    return [truth_classes(item, column, parser) for item in items] if with_truth else None


def truth_classes(item: "Prediction", column: str, parser: "TextParser") -> frozenset[str]:
    value, where = item.row[column], f"{item.where}: id {item.id!r}"
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{where}: {column!r} must be a list of class names, got {json.dumps(value)}")
    parser.vocabulary.check_labels(value, f"{where}: {column!r}")
    return frozenset(value)


def load_clip(items: list["Prediction"], args: Any) -> "ClipEncoder | None":
    """The encoder of --clip_model. Raises BadRow for a row whose video cannot be read below --image_root."""
    from drive_vlm.clip.encoder import ClipEncoder
    from drive_vlm.data.videos import video_below

    if not args.clip_model:
        return None
    for video, item in {item.row["video"]: item for item in reversed(items)}.items():
        video_below(args.image_root, video, f"{item.where}: id {item.id!r}")
    return ClipEncoder.load(args.clip_model, args.clip_pretrained, args.device)


def clip_of_files(
    encoder: "ClipEncoder | None", files: list[list["Prediction"]], args: Any
) -> list[dict[str, "np.ndarray"]]:
    """{text_text, text_frames: float[N]} of each file, {} without an encoder. The files go through CLIP together."""
    from drive_vlm.clip.score import clip_frame_scores

    if encoder is None:
        return [{} for _ in files]
    scores = clip_frame_scores(encoder, [item for items in files for item in items], args.image_root, args.num_frames)
    size = len(files[0])
    parts = [slice(start, start + size) for start in range(0, size * len(files), size)]
    return [{"text_text": scores.text_text[part], "text_frames": scores.text_image[part]} for part in parts]


def check(args: Any) -> None:
    """Raises ValueError for flags that make no sense."""
    for name, least in {"num_frames": 1, "seed": 0}.items():
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if args.clip_model and not args.image_root:
        raise ValueError("--clip_model needs --image_root, the folder that the rows' videos are relative to")


def run(args: Any) -> dict[str, Any]:
    """Read, score, compare, write CSV and plot; returns what --json holds."""
    from drive_vlm.evaluation.video import TERMS, Part, adherence, by_mode, compare_mode, score_mode
    from drive_vlm.rewards.physics import PhysicsReward

    check(args)
    reward = PhysicsReward(from_namespace(PhysicsConfig, args))
    names, files, counts = read_files(args, reward.cache)
    encoder = load_clip(files[0], args)
    truths = [truths_of(items, args.truth_column, reward.parser) for items in files]
    scored = [score_file(items, truth, reward) for items, truth in zip(files, truths, strict=True)]
    clips = clip_of_files(encoder, files, args)
    members = by_mode(scored[0])
    parts = [
        {
            m: Part([rows[i] for i in at], {name: values[at] for name, values in clip.items()})
            for m, at in members.items()
        }
        for rows, clip in zip(scored, clips, strict=True)
    ]

    result: dict[str, Any] = {
        "detector": asdict(reward.cache.detector) if reward.cache.detector else None,
        "checkpoints": {},
        "weights": asdict(reward.weights),
        "hallucination": args.physics_hallucination,
        "comparisons": [],
    }
    for file, (name, path) in enumerate(zip(names, args.predictions, strict=True)):
        result["checkpoints"][name] = {
            "file": path,
            **counts[path],
            "modes": {mode: score_mode(part, args.seed) for mode, part in parts[file].items()},
            "adherence": adherence(scored[file], args.seed),
        }
    for file, name in enumerate(names[1:], 1):
        modes = {mode: compare_mode(part, parts[file][mode], args.seed) for mode, part in parts[0].items()}
        result["comparisons"].append({"first": names[0], "second": name, "modes": modes})
    if args.csv:
        columns = (*TERMS, "precision", "recall", "claims", "verified", "unverified")
        head = ("id", "video", "mode", "checkpoint", *columns, "false_claims", "missed", *clips[0])
        rows = csv_rows(names, scored, clips, columns)
        write_csv(args.csv, (*head, "prediction", "reference"), rows)
    if args.plot:
        from drive_vlm.report.video import plot_scores

        plot_scores(args.plot, result)
    return result


def csv_rows(
    names: list[str], scored: list[list["Scored"]], clips: list[dict[str, Any]], columns: Sequence[str]
) -> Iterator[list[Any]]:
    from drive_vlm.evaluation.video import OF_REFERENCE

    for name, rows, clip in zip(names, scored, clips, strict=True):
        for index, row in enumerate(rows):
            unsaid = () if row.item.reference.strip() else (*OF_REFERENCE, "text_text")
            numbers = {column: getattr(row.terms, column) for column in columns}
            cells = [
                "" if name in unsaid else f"{number:.6f}" if isinstance(number, float) else int(number)
                for name, number in numbers.items()
            ]
            cells += ["|".join(row.terms.false_claims), "|".join(row.terms.missed)]
            cells += ["" if name in unsaid else f"{values[index]:.6f}" for name, values in clip.items()]
            yield [row.item.id, row.video, row.mode, name, *cells, row.item.prediction, row.item.reference]


def main() -> None:
    from drive_vlm.report.video import print_tables

    run_tool(make_parser(), run, lambda result, args: print_tables(result))


if __name__ == "__main__":
    main()
