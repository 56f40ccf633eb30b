"""Speed of what surrounds training: opening a JSONL file, rendering synthetic scenes, scoring texts with the physics reward.

jsonl: seconds and peak memory to open a file of --rows rows and read its last (or --row), next to json.loads of every line into
a list. Each step runs in a fresh process: index, open again and read (ours), read all (the peer). Imports do not count in the
seconds; they do in the peak memory.
synthetic: pictures a second of --size pixels, drawn, rendered and described by --workers processes. Starting them does not count.
reward: texts a second, parsed and scored in each of --processes, and scored alone. The texts are made up from sentences of a
drive, --words words each, no two alike, so that no memo helps. Loading spaCy does not count, starting its processes does.
"""

import json
import os
import random
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
python tools/bench/bench_data.py synthetic --scenes 4000 --size 448
python tools/bench/bench_data.py reward --spacy_model en_core_web_md --texts 500 --processes 1 4
"""
NUMBERS = {
    "rows": (1_000_000, 1, "jsonl: rows of the file"),
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
    "synthetic": (measure_synthetic, show_synthetic),
    "reward": (measure_reward, show_reward),
}


if __name__ == "__main__":
    measure.run_bench(
        make_parser(),
        lambda args, work: CASES[args.case][0](args, work),
        lambda result, args: CASES[args.case][1](result),
        child=lambda words: print(json.dumps(read_row(words[0], Path(words[1]), int(words[2])))),
    )
