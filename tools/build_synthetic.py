"""Build a synthetic driving data set: pictures, clips, questions, captions and exact ground truth, split by scene.

Everything is a pure function of the arguments: a second run with the same arguments writes the same bytes. Writes
  images/000012.jpg        one picture a scene
  {split}.jsonl            question rows: id, image, conversations, group, category, template
  captions_{split}.jsonl   caption rows, one a scene: caption_short, caption_long, and a conversation that asks for one
                           of the two (template says which; even scenes short, odd scenes long)
  dialogs_{split}.jsonl    one row a scene: all its questions as the turns of one conversation, in random order
  clips/000003.mp4         or clips/000003/00.jpg ... with --clip_format frames
  clips_{split}.jsonl      video rows: one asks for the caption, the others for what changes
  scenes.jsonl             full ground truth: objects with boxes, light, actions int[4], reason int[21]; clips by frame
  build.json               the arguments; meta.json, the InternVL meta form (name -> root, annotation, repeat_time,
                           length), is written last and so marks a complete build; `root` "." is the folder it lies in
Rows of one scene or clip share `group` and so one split.
"""

import dataclasses
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from drive_vlm.config import CommandParser, plain
from drive_vlm.data import synthetic
from drive_vlm.data.splits import assign_split, parse_fractions
from drive_vlm.data.synthetic_rows import caption_row, clip_rows, dialog_row, question_row, truth_of
from drive_vlm.launch.cache import write_atomically

EXAMPLES = """
python tools/build_synthetic.py --out data/synthetic --scenes 2000
python tools/build_synthetic.py --out data/clips --scenes 0 --clips 200 --num_frames 16 --clip_format mp4
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
    fractions: dict[str, float]


def make_parser() -> CommandParser:
    """The command line of this tool."""
    parser = CommandParser(description="Build a synthetic driving data set.", examples=EXAMPLES)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; an earlier build there is replaced")
    parser.add_argument("--scenes", type=int, default=1000, help="number of pictures")
    parser.add_argument("--clips", type=int, default=0, help="number of clips")
    parser.add_argument("--num_frames", type=int, default=8, help="frames in each clip")
    parser.add_argument(
        "--clip_format", choices=("mp4", "frames"), default="mp4", help="one video file, or a folder of pictures"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the world, the choice of questions and the splits")
    parser.add_argument("--size", type=int, default=224, help="width and height in pixels")
    parser.add_argument(
        "--templates",
        nargs="+",
        choices=synthetic.TEMPLATES,
        default=list(synthetic.TEMPLATES),
        metavar="NAME",
        help="question templates to ask (default: all); one of " + ", ".join(synthetic.TEMPLATES),
    )
    parser.add_argument("--questions_per_scene", type=int, default=6, help="templates drawn for each scene")
    parser.add_argument(
        "--splits", nargs="+", default=["train:0.8", "val:0.1", "test:0.1"], help="name:share words; shares sum to 1"
    )
    parser.add_argument("--image_format", choices=("jpg", "png"), default="jpg", help="file format of the pictures")
    parser.add_argument("--jpeg_quality", type=int, default=90, help="JPEG quality, 1 to 95")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    return parser


def build_scene(build: Build, index: int) -> dict[str, Any]:
    """Write picture `index`; return its split, its truth and its rows."""
    scene = synthetic.make_scene(build.seed, index, (build.size, build.size))
    image = f"images/{index:06d}.{build.image_format}"
    save_image(build, image, synthetic.render(scene))
    found = [question for question in synthetic.questions(scene) if question.template in build.templates]
    rng = np.random.default_rng([build.seed, index, 7])
    chosen = sorted(rng.permutation(len(found))[: build.questions_per_scene].tolist())
    media = {"image": image}
    rows = [question_row(scene.group, media, found[i]) for i in chosen]
    caption = caption_row(scene, media, "caption_short" if index % 2 == 0 else "caption_long", rng)
    truth = [{**truth_of(scene), "image": image}]
    return {
        "split": split_of(build, scene.group),
        "truth": truth,
        "questions": rows,
        "captions": [caption],
        "dialogs": [dialog_row(scene.group, media, [found[i] for i in rng.permutation(len(found))])],
        "clips": [],
    }


def build_clip(build: Build, index: int) -> dict[str, Any]:
    """Write clip `index`; return its split, its truth frame by frame and its rows."""
    scenes = synthetic.make_clip(build.seed, index, build.num_frames, (build.size, build.size))
    frames = [synthetic.render(scene) for scene in scenes]
    group = scenes[0].group
    if build.clip_format == "mp4":
        video = f"clips/{index:06d}.mp4"
        save_video(build.out / video, frames, 1 / synthetic.FRAME_SECONDS)
    else:
        video = f"clips/{index:06d}"
        for number, frame in enumerate(frames):
            save_image(build, f"{video}/{number:02d}.{build.image_format}", frame)
    media = {"video": video}
    rows = clip_rows(scenes, media, np.random.default_rng([build.seed, index, 8]))
    truth = [{**truth_of(scene), "video": video} for scene in scenes]
    return {
        "split": split_of(build, group),
        "truth": truth,
        "questions": [],
        "captions": [],
        "dialogs": [],
        "clips": rows,
    }


def split_of(build: Build, group: str) -> str:
    """The split that holds every row of `group`."""
    return assign_split(group, build.fractions, build.seed)


def save_image(build: Build, name: str, pixels: np.ndarray) -> None:
    """Write uint8[H, W, 3] to `name` under the output folder."""
    path = build.out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": build.jpeg_quality} if build.image_format == "jpg" else {"compress_level": 1}
    Image.fromarray(pixels).save(path, **options)


def save_video(path: Path, frames: list[np.ndarray], rate: float) -> None:
    """Encode frames uint8[T][H, W, 3] as MPEG-4 at `rate` frames a second. Needs PyAV (`pip install av`)."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=round(rate))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 24 * width * height
        stream.gop_size = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def results(build: Build, scenes: int, clips: int, workers: int) -> Iterator[dict[str, Any]]:
    """What build_scene and build_clip return, in order of index whatever the number of workers, with a progress bar."""
    from rich.progress import track

    jobs = ((build_scene, scenes), (build_clip, clips))
    if workers <= 1:
        stream = (job(build, index) for job, count in jobs for index in range(count))
        yield from track(stream, "rendering", total=scenes + clips)
        return
    with ProcessPoolExecutor(workers) as pool:
        parts = (pool.map(partial(job, build), range(count), chunksize=16) for job, count in jobs)
        yield from track((result for part in parts for result in part), "rendering", total=scenes + clips)


class Summary:
    """Rows and groups by file, answers by template: what is printed at the end."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.groups: Counter[str] = Counter()
        self.answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def add(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Count the rows of one scene or clip in the file `name`."""
        self.rows[name] += len(rows)
        self.groups[name] += 1
        for row in rows:
            if "template" in row and row["category"] not in ("caption", "dialog"):
                self.answers[row["category"], row["template"]][row["conversations"][1]["value"]] += 1

    def show(self) -> None:
        """Rows by file, then each template's majority answer: what a model that sees nothing could reach."""
        from rich.console import Console
        from rich.table import Table

        sizes = Table("file", "rows", "scenes or clips", title="rows")
        for name, count in sorted(self.rows.items()):
            sizes.add_row(name, f"{count:,}", f"{self.groups[name]:,}")
        balance = Table("category", "template", "rows", "answers", "majority", "share", title="balance of the answers")
        for (category, template), counts in sorted(self.answers.items()):
            (answer, most), total = counts.most_common(1)[0], counts.total()
            balance.add_row(category, template, f"{total:,}", str(len(counts)), answer, f"{most / total:.2f}")
        Console().print(sizes, balance, sep="\n")


def write_files(build: Build, found: Iterator[dict[str, Any]]) -> Summary:
    """Stream the rows into *.part files, then rename them all; meta.json comes last, so it marks a complete build."""
    summary = Summary()
    with ExitStack() as stack:
        files: dict[str, TextIO] = {}
        for result in found:
            parts = {"scenes.jsonl": result["truth"]}
            for kind, prefix in (
                ("questions", ""),
                ("captions", "captions_"),
                ("dialogs", "dialogs_"),
                ("clips", "clips_"),
            ):
                parts[f"{prefix}{result['split']}.jsonl"] = result[kind]
            for name, rows in parts.items():
                if rows and name not in files:
                    files[name] = stack.enter_context((build.out / f"{name}.part").open("w"))
                if rows:
                    files[name].writelines(json.dumps(row) + "\n" for row in rows)
                    summary.add(name, rows)
    meta = {}
    for name in sorted(files):
        (build.out / f"{name}.part").replace(build.out / name)
        if name != "scenes.jsonl":
            entry = {"root": ".", "annotation": name, "repeat_time": 1, "length": summary.rows[name]}
            meta[f"synthetic_{name.removesuffix('.jsonl')}"] = entry
    write_json(build.out / "meta.json", meta)
    return summary


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that `path` holds either the old or the new content, never a part."""
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=1).encode() + b"\n"))


def check(args: Any) -> Build:
    """The arguments as a Build. Raises ValueError for what cannot be built."""
    limits = {
        "scenes": 0,
        "clips": 0,
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
    if args.scenes + args.clips == 0:
        raise ValueError("nothing to build: give --scenes or --clips a number above 0")
    if args.clips and args.clip_format == "mp4" and args.size % 2:
        raise ValueError(f"--size {args.size}: mp4 needs an even size; or take --clip_format frames")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file; name a folder")
    shared = {item.name: getattr(args, item.name) for item in dataclasses.fields(Build) if item.name != "fractions"}
    return Build(**shared, fractions=parse_fractions(args.splits, "--splits"))


def prepare(build: Build, scenes: int, clips: int) -> None:
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
    arguments = {**plain(build), "scenes": scenes, "clips": clips}
    write_json(build.out / "build.json", {name: value for name, value in arguments.items() if name != "out"})


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    try:
        build = check(args)
        prepare(build, args.scenes, args.clips)
    except ValueError as error:
        parser.error(str(error))
    write_files(build, results(build, args.scenes, args.clips, args.workers)).show()


if __name__ == "__main__":
    main()
