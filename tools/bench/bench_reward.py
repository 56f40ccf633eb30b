"""Texts/s of the physics reward: parsing and scoring detailed texts in one and in several processes, and scoring alone.

Beside the texts a second there are those a second of processor time, which other work on the machine hardly changes.

The texts are made up from sentences of a drive, about --words words each, no two alike, so that no memo helps.
"""

import json
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser

if TYPE_CHECKING:
    from drive_vlm.rewards.text.driving_text import TextParser

EXAMPLES = """
python tools/bench/bench_reward.py --json runs/bench_reward.json
python tools/bench/bench_reward.py --spacy en_core_web_md --texts 500 --processes 1 4
"""
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
    parser = CommandParser(prog="python tools/bench/bench_reward.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--texts", type=int, default=2000, help="texts to parse and score")
    parser.add_argument("--words", type=int, default=80, help="words of a text")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="processes of spaCy to try")
    parser.add_argument("--spacy", default="en_core_web_sm", help="spaCy pipeline: an installed name or its directory")
    parser.add_argument("--json", type=Path, help="write the measurement to this file")
    return parser


def make_texts(count: int, words: int, seed: int = 0) -> list[str]:
    """`count` different texts of `words` words or a few more."""
    draw = random.Random(seed)
    texts = []
    for number in range(count):
        sentences = [f"Clip {number} was filmed at noon."]
        while sum(len(sentence.split()) for sentence in sentences) < words:
            wording = draw.choice(_SENTENCES)
            sentences.append(
                wording.format(n=draw.randint(2, 9), thing=draw.choice(_THINGS), colour=draw.choice(_COLOURS))
            )
        texts.append(" ".join(sentences))
    return texts


def measure(args: Any) -> dict[str, Any]:
    """What --json holds. Loading spaCy is not counted, starting its processes is."""
    from drive_vlm.launch.manifest import machine, versions
    from drive_vlm.rewards.text.driving_text import TextParser

    texts = make_texts(args.texts, args.words)
    parsing, cpu = {}, {}
    for processes in args.processes:
        parser = TextParser(args.spacy, processes=processes)
        parser.parse(["A car warms the pipeline up."])
        started, used = time.perf_counter(), _processor_seconds()
        _score(parser, texts, len(texts))
        parsing[str(processes)] = len(texts) / (time.perf_counter() - started)
        cpu[str(processes)] = len(texts) / (_processor_seconds() - used)
    started = time.perf_counter()
    _score(parser, texts, 20_000)
    scoring = 20_000 / (time.perf_counter() - started)
    return {
        "parse_and_score_texts_per_s": parsing,
        "parse_and_score_texts_per_cpu_s": cpu,
        "score_texts_per_s": scoring,
        "texts": len(texts),
        "words_per_text": sum(len(text.split()) for text in texts) / len(texts),
        "spacy": args.spacy,
        "machine": machine(),
        "versions": versions(),
    }


def _processor_seconds() -> float:
    """Of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _score(parser: "TextParser", texts: list[str], count: int) -> None:
    """Score `count` texts against the text before, as the reward does: a lookup of parsed texts, then the terms."""
    from drive_vlm.rewards.physics import terms

    parsed = parser.parse([texts[i % len(texts)] for i in range(count)])
    detected = frozenset({"car", "truck", "person", "traffic light"})
    for i, text in enumerate(parsed):
        terms(text, parsed[i - 1], detected, parser.vocabulary)


def print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"physics reward, {result['texts']:,} texts of {result['words_per_text']:.0f} words"
    table = Table("", "texts/s", "texts/s of processor time", title=title, title_justify="left")
    for processes, rate in result["parse_and_score_texts_per_s"].items():
        cpu = result["parse_and_score_texts_per_cpu_s"][processes]
        table.add_row(
            f"parse and score, {processes} process{'es' if processes != '1' else ''}", f"{rate:,.0f}", f"{cpu:,.0f}"
        )
    table.add_row("score parsed texts", f"{result['score_texts_per_s']:,.0f}")
    Console(width=100).print(table)


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    if args.texts < 1 or args.words < 1 or min(args.processes) < 1:
        parser.error("--texts, --words and --processes must be at least 1")
    try:
        result = measure(args)
    except ValueError as error:
        parser.error(str(error))
    print_table(result)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
