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
  oia_{split}.jsonl        with --oia: one row a scene in BDD-OIA's form, its actions and reasons as text, columns actions and
                           reason; oia_json_{split}.jsonl has them as JSON with a description; oia_clips_ and oia_clips_json_
                           are about the last frame of a clip
  scenes.jsonl             full ground truth: objects with boxes, light, actions int[4], reason int[21]; clips by frame
  build.json               the arguments; meta.json, the InternVL meta form (name -> root, annotation, repeat_time,
                           length), is written last and so marks a complete build; `root` "." is the folder it lies in
Rows of one scene, clip or pair of twins share `group` and so one split.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.builders.splits import assign_split, parse_fractions
from drive_vlm.builders.synthetic.clip import FRAME_SECONDS, make_clip, make_order_clip
from drive_vlm.builders.synthetic.files import save_image, save_video, write_files
from drive_vlm.builders.synthetic.render import render
from drive_vlm.builders.synthetic.rows import (
    caption_row,
    clip_rows,
    dialog_row,
    oia_rows,
    order_rows,
    question_row,
    raw_caption_row,
    split_entry_rows,
    truth_of,
)
from drive_vlm.builders.synthetic.sample import make_scene
from drive_vlm.builders.synthetic.scene import Scene
from drive_vlm.builders.synthetic.words import TEMPLATES, questions
from drive_vlm.config import CommandParser, add_dataclass, field, plain, run_tool
from drive_vlm.report.tables import print_table
from drive_vlm.store.cache import write_json

EXAMPLES = """
python tools/build_synthetic.py --out data/synthetic --scenes 2000
python tools/build_synthetic.py --out data/clips --scenes 0 --clips 200 --num_frames 16 --clip_format mp4
python tools/build_synthetic.py --out data/videos --scenes 0 --clips 400 --order_clips 200 --num_frames 16 --split_entry
python tools/build_synthetic.py --out data/oia --scenes 3000 --oia --size 64 --image_format png --splits train:0.8 test:0.2
python tools/build_synthetic.py --out data/small --scenes 500 --size 96 --splits train:0.7 test:0.3
"""


@dataclass(frozen=True)
class Build:
    """The arguments of one build, as every worker needs them."""

    out: Path = field(help="folder to write; an earlier build there is replaced")
    scenes: int = field(1000, help="number of pictures", least=0)
    clips: int = field(0, help="number of clips", least=0)
    order_clips: int = field(0, help="clips that differ only in the order of their frames", least=0)
    split_entry: bool = field(False, help="write a detailed, a concise and a raw text of each clip")
    oia: bool = field(False, help="write rows in BDD-OIA's form: actions and reasons of each scene and clip")
    num_frames: int = field(8, help="frames in each clip", least=2)
    clip_format: str = field("mp4", help="one video file, or a folder of pictures", choices=("mp4", "frames"))
    seed: int = field(0, help="seed of the world, the choice of questions and the splits", least=0)
    size: int = field(224, help="width and height in pixels", least=32)
    templates: list[str] = field([], help=f"question templates to ask (default: all), of: {', '.join(TEMPLATES)}")
    questions_per_scene: int = field(6, help="templates drawn for each scene", least=0)
    splits: list[str] = field(["train:0.8", "val:0.1", "test:0.1"], help="name:share words; shares sum to 1")
    image_format: str = field("jpg", help="file format of the pictures", choices=("jpg", "png"))
    jpeg_quality: int = field(90, help="JPEG quality", least=1, most=95)
    workers: int = field(os.cpu_count() or 1, help="processes that render", least=1)

    @property
    def fractions(self) -> dict[str, float]:
        return parse_fractions(self.splits, "--splits")

    def split_of(self, group: str) -> str:
        """The split that holds every row of `group`."""
        return assign_split(group, self.fractions, self.seed)


def make_parser() -> CommandParser:
    """The command line of this tool."""
    text = "Build a synthetic driving data set."
    parser = CommandParser(prog="python tools/build_synthetic.py", description=text, examples=EXAMPLES)
    add_dataclass(parser, Build)
    return parser


def build_scene(build: Build, index: int) -> dict[str, Any]:
    """Write picture `index`; return its split, its truth and its rows."""
    scene = make_scene(build.seed, index, (build.size, build.size))
    image = f"images/{index:06d}.{build.image_format}"
    save_image(build.out / image, render(scene), build.jpeg_quality)
    found = [question for question in questions(scene) if question.template in (build.templates or TEMPLATES)]
    rng = np.random.default_rng([build.seed, index, 7])
    chosen = sorted(rng.permutation(len(found))[: build.questions_per_scene].tolist())
    media = {"image": image}
    rows = [question_row(scene.group, media, found[i]) for i in chosen]
    caption = caption_row(scene, media, "caption_short" if index % 2 == 0 else "caption_long", rng)
    dialog = dialog_row(scene.group, media, [found[i] for i in rng.permutation(len(found))])
    oia = {f"oia_{kind}": rows for kind, rows in oia_rows(scene, media).items()} if build.oia else {}
    return {
        "split": build.split_of(scene.group),
        "truth": [{**truth_of(scene), "image": image}],
        "rows": {"": rows, "captions_": [caption], "dialogs_": [dialog], **oia},
    }


def build_clip(build: Build, index: int) -> dict[str, Any]:
    """Write clip `index`; return its split, its truth frame by frame and its rows."""
    scenes = make_clip(build.seed, index, build.num_frames, (build.size, build.size))
    media = {"video": write_clip(build, f"clips/{index:06d}", scenes)}
    rows = clip_rows(scenes, media, np.random.default_rng([build.seed, index, 8]))
    oia = {f"oia_clips_{kind}": found for kind, found in oia_rows(scenes[-1], media).items()} if build.oia else {}
    return clip_result(build, scenes, media, {"clips_": rows, **oia})


def build_order_clip(build: Build, index: int) -> dict[str, Any]:
    """Write order clip `index`; return what `build_clip` does."""
    scenes = make_order_clip(build.seed, index, build.num_frames, (build.size, build.size))
    media = {"video": write_clip(build, f"clips/order-{index:06d}", scenes)}
    return clip_result(build, scenes, media, {"order_": order_rows(scenes, media)})


def clip_result(
    build: Build, scenes: list[Scene], media: dict[str, str], rows: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Split, truth frame by frame, and `rows` with the clip's texts where --split_entry asks for them."""
    if build.split_entry:
        texts = {"split_entry_": split_entry_rows(scenes, media), "raw_captions_": [raw_caption_row(scenes, media)]}
        rows = rows | texts
    truth = [{**truth_of(scene), **media} for scene in scenes]
    return {"split": build.split_of(scenes[0].group), "truth": truth, "rows": rows}


def write_clip(build: Build, name: str, scenes: list[Scene]) -> str:
    """Write the clip's frames as one video or as a folder of pictures; return its path below the output folder."""
    frames = [render(scene) for scene in scenes]
    if build.clip_format == "mp4":
        save_video(build.out / f"{name}.mp4", frames, 1 / FRAME_SECONDS)
        return f"{name}.mp4"
    for number, frame in enumerate(frames):
        save_image(build.out / f"{name}/{number:02d}.{build.image_format}", frame, build.jpeg_quality)
    return name


def results(build: Build) -> Iterator[dict[str, Any]]:
    """What the builders return, in order of index whatever the number of workers, with a progress bar."""
    from rich.progress import track

    jobs = [(build_scene, build.scenes), (build_clip, build.clips), (build_order_clip, build.order_clips)]
    with ProcessPoolExecutor(build.workers) as pool:
        parts = [pool.map(partial(job, build), range(count), chunksize=16) for job, count in jobs]
        total = sum(count for _, count in jobs)
        yield from track((result for part in parts for result in part), "rendering", total=total)


def check(build: Build) -> None:
    """Raises ValueError for what cannot be built, before anything is written."""
    if build.scenes + build.clips + build.order_clips == 0:
        raise ValueError("nothing to build: give --scenes, --clips or --order_clips a number above 0")
    if unknown := set(build.templates) - set(TEMPLATES):
        raise ValueError(f"--templates {' '.join(unknown)}: not known; one of {', '.join(TEMPLATES)}")
    if build.order_clips % 2:
        raise ValueError(f"--order_clips {build.order_clips}: they come in twins; give an even number")
    if build.clips + build.order_clips and build.clip_format == "mp4" and build.size % 2:
        raise ValueError(f"--size {build.size}: mp4 needs an even size; or take --clip_format frames")
    if build.out.exists() and not build.out.is_dir():
        raise ValueError(f"--out {build.out} is a file; name a folder")
    assert build.fractions, "parse_fractions refuses shares that do not sum to 1"


def prepare(build: Build) -> None:
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
    arguments = {name: value for name, value in plain(build).items() if name not in ("out", "splits", "workers")}
    write_json(build.out / "build.json", arguments | {"fractions": build.fractions})


def run(build: Build) -> dict[str, Any]:
    """Render, write and count everything; raises ValueError for what cannot be built."""
    check(build)
    prepare(build)
    return write_files(build.out, results(build))


def show(found: dict[str, Any], build: Build) -> None:
    """Rows by file, then each template's majority answer: what a model that sees nothing could reach."""
    rows = [[name, f"{count:,}", f"{found['groups'][name]:,}"] for name, count in sorted(found["rows"].items())]
    print_table("rows", ("file", "rows", "scenes or clips"), rows)
    balance = []
    for (category, template), counts in sorted(found["answers"].items()):
        (answer, most), total = counts.most_common(1)[0], counts.total()
        balance.append([category, template, answer, f"{total:,}", str(len(counts)), f"{most / total:.2f}"])
    columns = ("category", "template", "majority", "rows", "answers", "share")
    print_table("balance of the answers", columns, balance, left=3)


if __name__ == "__main__":
    run_tool(make_parser(), run, show, Build)
