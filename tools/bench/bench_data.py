"""Speed of what surrounds training: data files, pictures, rendering synthetic scenes, the physics reward.

jsonl: seconds and peak memory to open a file of --rows rows and read its last (or --row), next to json.loads of every line into
a list. Each step runs in a fresh process: index, open again and read (ours), read all (the peer). Imports do not count in the
seconds; they do in the peak memory.
lengths: the tokens of --rows rows measured for the first time, as every training does before its first step: questions about
pictures of 64 px with a tiny InternVL's tokenizer; and of a tenth of the rows, since memory should not grow with them.
pictures: from a JPEG of 1600 x 900 to nine normalised tiles of 448 px, as the data path does it (simplejpeg, uint8 through the
worker's pipe, normalised behind it), next to Pillow and the model's own processor, which normalises in the worker. CPU
milliseconds a row in one thread, of the rows in turns: in the loader, and with what is left for the device. Then rows a second with
no loader worker and with one, medians of --repeats. The other end computes, its normalising counted, for as long as a worker takes
for a row: then both are busy all the time and a worker is worth most, at best 2x. That time differs between the two, and with it rows a second.
synthetic: pictures a second of --size pixels, drawn, rendered and described by --workers processes. Starting them does not count.
reward: texts a second, parsed and scored in each of --processes, and scored alone. The texts are made up from sentences of a
drive, --words words each, no two alike, so that no memo helps. Loading spaCy does not count, starting its processes does.
"""

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measure

from drive_vlm.config import CommandParser
from drive_vlm.report.tables import print_table

if TYPE_CHECKING:
    from drive_vlm.rewards.text.driving_text import TextParser

EXAMPLES = """
python tools/bench/bench_data.py jsonl --json runs/bench_jsonl.json
python tools/bench/bench_data.py lengths
python tools/bench/bench_data.py pictures --pictures 40
python tools/bench/bench_data.py synthetic --scenes 4000 --size 448
python tools/bench/bench_data.py reward --spacy_model en_core_web_md --texts 500 --processes 1 4
"""
NUMBERS = {
    "rows": (1_000_000, 1, "jsonl, lengths: rows of the file"),
    "pictures": (40, 4, "pictures: rows, each of one picture"),
    "repeats": (3, 1, "pictures: runs without and with a loader worker"),
    "scenes": (1000, 1, "synthetic: pictures to render"),
    "size": (224, 1, "synthetic: width and height in pixels"),
    "workers": (os.cpu_count() or 1, 1, "synthetic: processes that render"),
    "texts": (2000, 1, "reward: texts to parse and score"),
    "words": (80, 1, "reward: words of a text"),
}
_SENTENCES = (
    "The ego vehicle drives along a wide urban road with {n} lanes in each direction.",
    "A {colour} {thing} is ahead, followed by a large {thing} that slowly turns left at the intersection.",
    "Then the traffic light changes to green and {n} pedestrians wait at the crosswalk.",
    "After that, a {colour} {thing} overtakes the ego vehicle on the right side, while a {thing} is parked near the curb.",
    "There are no {thing}s visible, and the sky is overcast with wet pavement reflecting the headlights.",
    "Finally, the ego vehicle stops behind a {colour} {thing} without any cyclists around it.",
    "Beside the {colour} {thing}, traffic cones and a stop sign mark the construction zone.",
)
_THINGS = ("car", "truck", "bus", "van", "motorcycle", "sedan", "bicycle", "taxi")
_COLOURS = ("red", "white", "black", "silver", "blue", "yellow", "dark")


def make_parser() -> CommandParser:
    parser = measure.bench_parser("bench_data", __doc__, EXAMPLES, NUMBERS)
    add = parser.add_argument
    add("case", choices=tuple(CASES), help="what to measure")
    add("--row", type=int, help="jsonl: row to read, from 0 (default: the last)")
    parser.flag("--processes", [1, 2], "reward: processes of spaCy to try", least=1)
    add("--spacy_model", default="en_core_web_sm", help="reward: spaCy pipeline: an installed name or its directory")
    return parser


# ---- jsonl


def make_row(i: int) -> dict[str, Any]:
    """A DriveLM-style row of about 250 bytes."""
    asked = f"<image>\nWhat is the moving status of object {i % 977} in front of the ego vehicle?"
    answer = "Going ahead." if i % 3 else "It is turning left at the crossing, behind a white van."
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": f"row-{i}", "image": f"images/{i // 6:07d}.jpg", "conversations": turns, "group": f"scene-{i // 600}"}


def read_row(part: str, path: Path, row: int) -> dict[str, Any]:
    """{"seconds", "peak_rss_mb", "id"} of opening `path` and reading `row`, in this process."""
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.launch.manifest import peak_resident_bytes

    started = time.perf_counter()
    if part == "ours":
        found = JsonlFile(path)[row]
    else:
        with open(path, encoding="utf-8") as file:
            found = [json.loads(line) for line in file][row]
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_rss_mb": peak_resident_bytes() / 2**20, "id": found["id"]}


def measure_jsonl(args: Any, work: Path) -> dict[str, Any]:
    """Write the file, run each part in a fresh process; ours twice, for the first builds the index."""
    path, row = work / "rows.jsonl", args.rows - 1 if args.row is None else args.row
    if not 0 <= row < args.rows:
        raise ValueError(f"--row {row} is not in a file of --rows {args.rows}")
    with open(path, "w") as file:
        file.writelines(json.dumps(make_row(i)) + "\n" for i in range(args.rows))
    results = []
    for part in ("ours", "ours", "peer"):
        log = work / "part.json"
        measure.start([sys.executable, __file__, "--child", part, path, row], log, measure.environment(work))
        results.append(measure.json_lines(log)[0])
        assert results[-1].pop("id") == make_row(row)["id"], f"{part} read another row"
    indexing, ours, peer = results
    ratio = {name: peer[name] / ours[name] for name in ("seconds", "peak_rss_mb")}
    facts = {"rows": args.rows, "row": row, "file_mb": path.stat().st_size / 1e6}
    return {"ours": ours | {"indexing": indexing}, "peer": peer, "ratio": ratio} | facts


def show_jsonl(result: dict[str, Any]) -> None:
    title = f"open {result['rows']:,} rows ({result['file_mb']:.0f} MB) and read row {result['row']:,}"
    parts = {
        "drive-vlm, first time (indexing)": result["ours"]["indexing"],
        "drive-vlm, indexed": result["ours"],
        "json.loads of every line": result["peer"],
    }
    rows = [[name, f"{part['seconds']:.4f}", f"{part['peak_rss_mb']:.0f}"] for name, part in parts.items()]
    print_table(title, ("", "seconds", "peak RSS MB"), rows)


# ---- lengths


def write_questions(data: Path, path: Path, count: int) -> Path:
    """`count` rows of the synthetic world's questions, no two alike: each has a number of its own in its question."""
    rows = measure.json_lines(data / "train.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            row = rows[i % len(rows)]
            first, *rest = row["conversations"]
            asked = {**first, "value": f"{first['value']} (row {i})"}
            row = {**row, "id": f"{row['id']}-{i}", "image": str(data / row["image"]), "conversations": [asked, *rest]}
            file.write(json.dumps(row) + "\n")
    return path


def measure_rows(model: Path, path: Path) -> dict[str, Any]:
    """{"rows", "measuring_s", "tokens"} of a data file that nobody measured before, in this process and those that it starts."""
    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_processor

    parts = load_processor(ModelConfig(model=str(model)))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    started = time.perf_counter()
    table = build_table(open_sources([str(path)], None), encoder)
    return {"rows": len(table), "measuring_s": time.perf_counter() - started, "tokens": int(table.length.sum())}


def measure_lengths(args: Any, work: Path) -> dict[str, Any]:
    """A tenth of the rows, then all, each in a fresh process with a cache of its own."""
    data = measure.build_synthetic(work, scenes=400, size=64)
    model = measure.build_tiny(work, "model", data / "captions_train.jsonl")
    sizes = {}
    for count in (max(1, args.rows // 10), args.rows):
        path, log = write_questions(data, work / f"rows_{count}.jsonl", count), work / f"lengths_{count}.log"
        used = measure.start(
            [sys.executable, __file__, "--child", "lengths", model, path], log, measure.environment(work)
        )
        sizes[str(count)] = used | measure.json_lines(log)[-1]
    return {"sizes": sizes, "cores": len(os.sched_getaffinity(0))}


def show_lengths(result: dict[str, Any]) -> None:
    rows = [
        [
            f"{int(count):,}",
            f"{part['measuring_s']:.1f}",
            f"{part['cpu_seconds']:.1f}",
            f"{part['peak_rss_mb']:.0f}",
            f"{part['tokens']:,}",
        ]
        for count, part in result["sizes"].items()
    ]
    columns = ("rows", "seconds", "CPU s with the imports", "peak RSS of a process, MB", "tokens")
    print_table(f"the first measuring of rows on {result['cores']} cores", columns, rows)


def child(words: list[str]) -> None:
    if words[0] == "lengths":
        print(json.dumps(measure_rows(Path(words[1]), Path(words[2]))))
    else:
        print(json.dumps(read_row(words[0], Path(words[1]), int(words[2]))))


# ---- pictures


def write_pictures(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs of 1600 x 900: soft shapes with a camera's grain, about 300 KB each."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    draw, paths = np.random.default_rng(0), []
    for i in range(count):
        shapes = Image.fromarray(draw.integers(0, 255, (18, 32, 3), np.uint8)).resize(
            (1600, 900), Image.Resampling.BICUBIC
        )
        grain = draw.normal(0, 6, (900, 1600, 1))
        pixels = (np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{i:04d}.jpg")
        Image.fromarray(pixels).save(paths[-1], "JPEG", quality=90)
    return paths


class Rows:
    """Vision tensors of a picture each: ours, or as the processor makes them."""

    def __init__(self, vision: Any, paths: list[Path], ours: bool) -> None:
        self.vision, self.paths, self.ours = vision, paths, ours

    def collate(self, batch: list[Any]) -> Any:
        """A batch of one row; the peer's is handed on as the processor returned it."""
        return self.vision.collate_vision([{"pixel_values": batch[0]}])["pixel_values"] if self.ours else batch[0]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        if self.ours:
            from drive_vlm.data.vision import load_levels

            return self.vision.load_pixels([load_levels(str(self.paths[i]), "row")], None, False)[0]["pixel_values"]
        from PIL import Image

        cut = {"crop_to_patches": True, "min_patches": 1, "max_patches": self.vision.tiling.max_tiles}
        with Image.open(self.paths[i]) as picture:
            return self.vision.processor.image_processor(images=[picture], return_tensors="pt", **cut)["pixel_values"]


def rows_a_second(rows: Rows, workers: int, compute: float) -> float:
    """Through a DataLoader whose other end normalises a row and computes on until it has used `compute` seconds of CPU for it."""
    import torch
    from torch.utils.data import DataLoader, Subset

    some: Any = Subset(rows, [i % len(rows) for i in range(3 * len(rows) + 8)])  # type: ignore[arg-type]
    square, started, count = torch.ones(256, 256), 0.0, 0
    # The first rows hide the start of the worker.
    for i, pixels in enumerate(DataLoader(some, num_workers=workers, collate_fn=rows.collate)):
        if i == 8:
            started = time.perf_counter()
        until = time.process_time() + compute
        if compute:
            rows.vision.decimals({"pixel_values": pixels})
        while time.process_time() < until:
            square @ square
        count += i >= 8
    return (count - 1) / (time.perf_counter() - started)


def measure_pictures(args: Any, work: Path) -> dict[str, Any]:
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_processor

    torch.set_num_threads(1)
    data = measure.build_synthetic(work, scenes=40, size=64)
    model = measure.build_tiny(work, "model", data / "captions_train.jsonl", image_size=448, max_tiles=12)
    vision: Any = load_processor(ModelConfig(model=str(model))).vision
    paths = write_pictures(work / "pictures", args.pictures)
    sides = {"ours": Rows(vision, paths, True), "peer": Rows(vision, paths, False)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for i in range(len(paths)):
        tiles = []
        for name, rows in sides.items():
            started = time.process_time()
            pixels = rows[i]
            loaded = time.process_time()
            tiles.append(vision.decimals({"pixel_values": pixels}))
            seconds[name].append((loaded - started, time.process_time() - started))
        assert torch.equal(*tiles), f"{paths[i]}: the pixels differ"
    result: dict[str, Any] = {}
    medians = {
        name: [1000 * statistics.median(part) for part in zip(*found, strict=True)] for name, found in seconds.items()
    }
    for name, rows in sides.items():
        # What a worker delivers to an idle other end. One that computes for as long gains most from it: both are busy all the time.
        pixels, compute = rows[0], 1 / rows_a_second(rows, 1, 0.0)
        runs = [[rows_a_second(rows, workers, compute) for workers in (0, 1)] for _ in range(args.repeats)]
        rates = dict(enumerate(map(statistics.median, zip(*runs, strict=True))))
        result[name] = {
            "loader_ms_a_row": medians[name][0],
            "cpu_ms_a_row": medians[name][1],
            "pipe_mb_a_row": pixels.numel() * pixels.element_size() / 1e6,
            "computed_ms_a_row": 1000 * compute,
            "rows_per_s": rates,
            "one_worker": rates[1] / rates[0],
        }
    ratio = {name: result["peer"][name] / result["ours"][name] for name in ("loader_ms_a_row", "cpu_ms_a_row")}
    return {**result, "ratio": ratio, "tiles": len(sides["ours"][0])}


def show_pictures(result: dict[str, Any]) -> None:
    rows = [
        [
            name,
            f"{part['loader_ms_a_row']:.1f}",
            f"{part['cpu_ms_a_row']:.1f}",
            f"{part['pipe_mb_a_row']:.1f}",
            f"{part['computed_ms_a_row']:.1f}",
            *(f"{rate:.1f}" for rate in part["rows_per_s"].values()),
            f"{part['one_worker']:.2f}x",
        ]
        for name, part in (("drive-vlm", result["ours"]), ("Pillow and the processor", result["peer"]))
    ]
    loader, whole = result["ratio"].values()
    title = f"a JPEG of 1600 x 900 to {result['tiles']} equal tiles: {loader:.2f}x rows a CPU second in the loader, {whole:.2f}x in all"
    columns = (
        "",
        "CPU ms in the loader",
        "with the device's part",
        "MB through the pipe",
        "ms computed a row",
        "rows/s, no worker",
        "one worker",
        "one over none",
    )
    print_table(title, columns, rows)


# ---- synthetic


def render_one(size: int, index: int) -> int:
    """Draw, render and describe one scene, as a build does; its number of pixels."""
    from drive_vlm.builders.synthetic.render import render
    from drive_vlm.builders.synthetic.sample import make_scene
    from drive_vlm.builders.synthetic.words import questions

    scene = make_scene(0, index, (size, size))
    questions(scene)
    return render(scene).size


def measure_synthetic(args: Any, work: Path) -> dict[str, Any]:
    with ProcessPoolExecutor(args.workers) as pool:
        list(pool.map(partial(render_one, args.size), range(4 * args.workers)))
        started = time.perf_counter()
        list(pool.map(partial(render_one, args.size), range(args.scenes), chunksize=16))
        return {"ours": args.scenes / (time.perf_counter() - started), "unit": "images/s"}


def show_synthetic(result: dict[str, Any]) -> None:
    size, workers, scenes = (result["settings"][name] for name in ("size", "workers", "scenes"))
    print(f"{result['ours']:.0f} images/s at {size} x {size} on {workers} processes ({scenes} scenes)")


# ---- reward


def make_texts(count: int, words: int, seed: int = 0) -> list[str]:
    """`count` different texts of `words` words or a few more."""
    draw = random.Random(seed)
    texts = []
    for number in range(count):
        sentences = [f"Clip {number} was filmed at noon."]
        while sum(len(sentence.split()) for sentence in sentences) < words:
            words_drawn = {"thing": draw.choice(_THINGS), "colour": draw.choice(_COLOURS), "n": draw.randint(2, 9)}
            sentences.append(draw.choice(_SENTENCES).format(**words_drawn))
        texts.append(" ".join(sentences))
    return texts


def measure_reward(args: Any, work: Path) -> dict[str, Any]:
    from drive_vlm.rewards.text.driving_text import TextParser

    texts = make_texts(args.texts, args.words)
    parsing = {}
    for processes in args.processes:
        parser = TextParser(args.spacy_model, processes=processes)
        parser.parse(["A car warms the pipeline up."])
        started = time.perf_counter()
        _score(parser, texts, len(texts))
        parsing[str(processes)] = len(texts) / (time.perf_counter() - started)
    started = time.perf_counter()
    _score(parser, texts, 20_000)
    return {
        "parse_and_score_texts_per_s": parsing,
        "score_texts_per_s": 20_000 / (time.perf_counter() - started),
        "texts": len(texts),
        "words_per_text": sum(len(text.split()) for text in texts) / len(texts),
    }


def _score(parser: "TextParser", texts: list[str], count: int) -> None:
    """Score `count` texts against the text before, as the reward does: a lookup of parsed texts, then the terms."""
    from drive_vlm.rewards.physics import terms

    parsed = parser.parse([texts[i % len(texts)] for i in range(count)])
    detected = frozenset({"car", "truck", "person", "traffic light"})
    for i, text in enumerate(parsed):
        terms(text, parsed[i - 1], detected, parser.vocabulary)


def show_reward(result: dict[str, Any]) -> None:
    rates = {f"parse and score, {n} process(es)": rate for n, rate in result["parse_and_score_texts_per_s"].items()}
    rates["score parsed texts"] = result["score_texts_per_s"]
    title = f"physics reward, {result['texts']:,} texts of {result['words_per_text']:.0f} words"
    print_table(title, ("", "texts/s"), [[name, f"{rate:,.0f}"] for name, rate in rates.items()])


CASES: dict[str, tuple[Callable[[Any, Path], dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
    "jsonl": (measure_jsonl, show_jsonl),
    "lengths": (measure_lengths, show_lengths),
    "pictures": (measure_pictures, show_pictures),
    "synthetic": (measure_synthetic, show_synthetic),
    "reward": (measure_reward, show_reward),
}


if __name__ == "__main__":
    measure.run_bench(
        make_parser(),
        lambda args, work: CASES[args.case][0](args, work),
        lambda result, args: CASES[args.case][1](result),
        child=child,
    )
