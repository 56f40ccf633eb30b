"""Build a synthetic driving data set: pictures, clips, questions, captions and exact ground truth, split by scene.

Everything is a pure function of the arguments: a second run with the same arguments writes the same bytes. Writes
  images/000012.jpg        one picture a scene
  {split}.jsonl            question rows: id, image, conversations, group, category, template
  captions_{split}.jsonl   caption rows, one a scene: caption_short, caption_long, and a conversation that asks for one
                           of the two (template says which; even scenes short, odd scenes long)
  dialogs_{split}.jsonl    one row a scene: all its questions as the turns of one conversation, in random order
  clips/000003.mp4         or clips/000003/00.jpg ... with --clip_format frames
  clips_{split}.jsonl      video rows: one asks for the caption, the others for what changes
  clips/order-000003.mp4   with --order_clips: twins that hold the same frames in opposite orders (000002 and 000003 ...)
  order_{split}.jsonl      questions about them, which nobody can answer from shuffled frames; answers exactly balanced
  split_entry_{split}.jsonl   with --split_entry: two rows a clip, columns mode (detailed | concise) and truth_classes
  raw_captions_{split}.jsonl  and one row a clip with a caption of no granularity, also as the column caption
  scenes.jsonl             full ground truth: objects with boxes, light, actions int[4], reason int[21]; clips by frame
  build.json               the arguments; meta.json, the InternVL meta form (name -> root, annotation, repeat_time,
                           length), is written last and so marks a complete build; `root` "." is the folder it lies in
Rows of one scene, clip or pair of twins share `group` and so one split.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.builders import synthetic
from drive_vlm.builders.splits import assign_split, parse_fractions
from drive_vlm.builders.synthetic.files import Summary, save_image, save_video, write_files
from drive_vlm.builders.synthetic.rows import (
    caption_row,
    clip_rows,
    dialog_row,
    order_rows,
    question_row,
    raw_caption_row,
    split_entry_rows,
    truth_of,
)
from drive_vlm.config import CommandParser, plain, run_tool
from drive_vlm.store.cache import write_json

EXAMPLES = """
python tools/build_synthetic.py --out data/synthetic --scenes 2000
python tools/build_synthetic.py --out data/clips --scenes 0 --clips 200 --num_frames 16 --clip_format mp4
python tools/build_synthetic.py --out data/videos --scenes 0 --clips 400 --order_clips 200 --num_frames 16 --split_entry
python tools/build_synthetic.py --out data/small --scenes 500 --size 96 --splits train:0.7 test:0.3
"""


@dataclasses.dataclass(frozen=True)
class Build:
    """The arguments of one build, as every worker needs them."""

    out: Path
    seed: int
    size: int
    questions_per_scene: int
    templates: list[str]
    num_frames: int
    clip_format: str
    image_format: str
    jpeg_quality: int
    split_entry: bool
    fractions: dict[str, float]


def make_parser() -> CommandParser:
    """The command line of this tool."""
    parser = CommandParser(
        prog="python tools/build_synthetic.py", description="Build a synthetic driving data set.", examples=EXAMPLES
    )
    add, flag = parser.add_argument, parser.flag
    add("--out", type=Path, required=True, help="folder to write; an earlier build there is replaced")
    flag("--scenes", 1000, "number of pictures")
    flag("--clips", 0, "number of clips")
    flag("--order_clips", 0, "clips that differ only in the order of their frames")
    flag("--split_entry", False, "write a detailed, a concise and a raw text of each clip")
    flag("--num_frames", 8, "frames in each clip")
    flag("--clip_format", ("mp4", "frames"), "one video file, or a folder of pictures")
    flag("--seed", 0, "seed of the world, the choice of questions and the splits")
    flag("--size", 224, "width and height in pixels")
    add(
        "--templates",
        nargs="+",
        choices=synthetic.TEMPLATES,
        default=list(synthetic.TEMPLATES),
        metavar="NAME",
        help="question templates to ask (default: all); one of " + ", ".join(synthetic.TEMPLATES),
    )
    flag("--questions_per_scene", 6, "templates drawn for each scene")
    add("--splits", nargs="+", default=["train:0.8", "val:0.1", "test:0.1"], help="name:share words; shares sum to 1")
    flag("--image_format", ("jpg", "png"), "file format of the pictures")
    flag("--jpeg_quality", 90, "JPEG quality, 1 to 95")
    flag("--workers", os.cpu_count() or 1, "processes that render")
    return parser


def build_scene(build: Build, index: int) -> dict[str, Any]:
    """Write picture `index`; return its split, its truth and its rows."""
    scene = synthetic.make_scene(build.seed, index, (build.size, build.size))
    image = f"images/{index:06d}.{build.image_format}"
    save_image(build.out / image, synthetic.render(scene), build.jpeg_quality)
    found = [question for question in synthetic.questions(scene) if question.template in build.templates]
    rng = np.random.default_rng([build.seed, index, 7])
    chosen = sorted(rng.permutation(len(found))[: build.questions_per_scene].tolist())
    media = {"image": image}
    rows = [question_row(scene.group, media, found[i]) for i in chosen]
    caption = caption_row(scene, media, "caption_short" if index % 2 == 0 else "caption_long", rng)
    dialog = dialog_row(scene.group, media, [found[i] for i in rng.permutation(len(found))])
    return {
        "split": split_of(build, scene.group),
        "truth": [{**truth_of(scene), "image": image}],
        "rows": {"": rows, "captions_": [caption], "dialogs_": [dialog]},
    }


def build_clip(build: Build, index: int) -> dict[str, Any]:
    """Write clip `index`; return its split, its truth frame by frame and its rows."""
    scenes = synthetic.make_clip(build.seed, index, build.num_frames, (build.size, build.size))
    media = {"video": write_clip(build, f"clips/{index:06d}", scenes)}
    rows = clip_rows(scenes, media, np.random.default_rng([build.seed, index, 8]))
    return clip_result(build, scenes, media, {"clips_": rows})


def build_order_clip(build: Build, index: int) -> dict[str, Any]:
    """Write order clip `index`; return what `build_clip` does."""
    scenes = synthetic.make_order_clip(build.seed, index, build.num_frames, (build.size, build.size))
    media = {"video": write_clip(build, f"clips/order-{index:06d}", scenes)}
    return clip_result(build, scenes, media, {"order_": order_rows(scenes, media)})


def clip_result(
    build: Build, scenes: list[synthetic.Scene], media: dict[str, str], rows: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Split, truth frame by frame, and `rows` with the clip's texts where --split_entry asks for them."""
    if build.split_entry:
        texts = {"split_entry_": split_entry_rows(scenes, media), "raw_captions_": [raw_caption_row(scenes, media)]}
        rows = rows | texts
    truth = [{**truth_of(scene), **media} for scene in scenes]
    return {"split": split_of(build, scenes[0].group), "truth": truth, "rows": rows}


def write_clip(build: Build, name: str, scenes: list[synthetic.Scene]) -> str:
    """Write the clip's frames as one video or as a folder of pictures; return its path below the output folder."""
    frames = [synthetic.render(scene) for scene in scenes]
    if build.clip_format == "mp4":
        save_video(build.out / f"{name}.mp4", frames, 1 / synthetic.FRAME_SECONDS)
        return f"{name}.mp4"
    for number, frame in enumerate(frames):
        save_image(build.out / f"{name}/{number:02d}.{build.image_format}", frame, build.jpeg_quality)
    return name


def split_of(build: Build, group: str) -> str:
    """The split that holds every row of `group`."""
    return assign_split(group, build.fractions, build.seed)


def results(build: Build, counts: dict[str, int], workers: int) -> Iterator[dict[str, Any]]:
    """What the builders return, in order of index whatever the number of workers, with a progress bar."""
    from rich.progress import track

    builders = {"scenes": build_scene, "clips": build_clip, "order_clips": build_order_clip}
    jobs = [(builders[name], range(count)) for name, count in counts.items()]
    total = sum(counts.values())
    if workers <= 1:
        yield from track((job(build, index) for job, indices in jobs for index in indices), "rendering", total=total)
        return
    with ProcessPoolExecutor(workers) as pool:
        parts = [pool.map(partial(job, build), indices, chunksize=16) for job, indices in jobs]
        yield from track((result for part in parts for result in part), "rendering", total=total)


def check(args: Any) -> Build:
    """The arguments as a Build. Raises ValueError for what cannot be built."""
    limits = {
        "scenes": 0,
        "clips": 0,
        "order_clips": 0,
        "num_frames": 2,
        "size": 32,
        "questions_per_scene": 0,
        "workers": 1,
        "jpeg_quality": 1,
    }
    for name, least in limits.items():
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, got {args.seed}")
    if args.scenes + args.clips + args.order_clips == 0:
        raise ValueError("nothing to build: give --scenes, --clips or --order_clips a number above 0")
    if args.order_clips % 2:
        raise ValueError(f"--order_clips {args.order_clips}: they come in twins; give an even number")
    if args.clips + args.order_clips and args.clip_format == "mp4" and args.size % 2:
        raise ValueError(f"--size {args.size}: mp4 needs an even size; or take --clip_format frames")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file; name a folder")
    shared = {item.name: getattr(args, item.name) for item in dataclasses.fields(Build) if item.name != "fractions"}
    return Build(**shared, fractions=parse_fractions(args.splits, "--splits"))


def prepare(build: Build, counts: dict[str, int]) -> None:
    """Empty the output folder of an earlier build, so that no stale picture or split outlives its arguments.

    build.json holds the arguments and marks the folder as this tool's. Raises ValueError for any other folder.
    """
    build.out.mkdir(parents=True, exist_ok=True)
    if any(build.out.iterdir()) and not (build.out / "build.json").exists():
        raise ValueError(f"--out {build.out} is not empty and not this tool's (no build.json); name a new folder")
    (build.out / "meta.json").unlink(missing_ok=True)
    for path in build.out.glob("*.jsonl*"):
        path.unlink()
    for folder in ("images", "clips"):
        shutil.rmtree(build.out / folder, ignore_errors=True)
    arguments = {**plain(build), **counts}
    write_json(build.out / "build.json", {name: value for name, value in arguments.items() if name != "out"})


def run(args: Any) -> Summary:
    """Render, write and count everything; raises ValueError for what cannot be built."""
    build = check(args)
    counts = {name: getattr(args, name) for name in ("scenes", "clips", "order_clips")}
    prepare(build, counts)
    return write_files(build.out, results(build, counts, args.workers))


if __name__ == "__main__":
    run_tool(make_parser(), run, lambda summary, args: summary.show())
