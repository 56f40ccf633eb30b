"""Boxes with attributes -> questions that fit several things in a picture, each next to one that fits exactly one.

An ambiguous row ("What color is the truck?" where there are two, of different colors) is answered by a question back that names the
candidates; its twin ("What color is the truck on the left?") by the color. Levels: 0 one thing, or the same answer for all;
1 several, of which one stands out; 2 two or three; 3 four or more. Rows of levels 2 and 3 are ambiguous.
No text gives the label away: each stands as often in ambiguous as in clear rows, and a classifier that reads the question alone must
not know it (at most 55 % balanced accuracy on unseen groups), else nothing is written. A teacher on any OpenAI-compatible server may
put questions into other words, behind three checks, or write them as ClarifyVLM does (--pipeline). Writes to OUT
  SPLIT.jsonl            rows with candidates, names, answers, clarification, four choices (docs/clarify.md)
  dialogues_SPLIT.jsonl  the ambiguous rows, with a simulated reply to the clarification and the answer
  *.meta.json            each of these files as a source for --data, with its folder of pictures
  audit.json             what was read, found, left out and why; the leak check
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drive_vlm.builders.ambiguity.build import DETECTIONS, SOURCES, AmbiguityBuild, Reader, build
from drive_vlm.builders.ambiguity.instances import Picture
from drive_vlm.builders.ambiguity.sources import labelled, sized
from drive_vlm.config import CommandParser, add_dataclass, run_tool
from drive_vlm.data.samples import BadRow
from drive_vlm.launch import stop
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/build_ambiguity.py --source synthetic --data data/synthetic/scenes.jsonl --out data/clarify
python tools/build_ambiguity.py --source drivelm --data v1_1_train_nus.json --image_root data/nuscenes --out data/clarify_drivelm --on_missing skip
python tools/build_ambiguity.py --source bdd100k --data bdd100k_labels_images_train.json --image_root data/bdd100k/images/100k/train --out data/clarify_bdd --types missing_referent deictic
python tools/build_ambiguity.py --source detections --data detections.jsonl --image_root data/bdd100k/images --out data/clarify_boxes --attributes side
python tools/build_ambiguity.py --source synthetic --data data/synthetic/scenes.jsonl --out data/clarify_words --teacher Qwen/Qwen3-32B --base_url http://localhost:8000/v1
python tools/build_ambiguity.py --source clarifyvlm_boxes --data train_ambig_annotations.jsonl --image_root flickr30k --out data/flickr --pipeline clarifyvlm --teacher gpt-5-mini --base_url https://api.openai.com/v1 --on_leak warn
"""
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_ambiguity.py", description=__doc__, examples=EXAMPLES)
    add_dataclass(parser, AmbiguityBuild, "flags")
    return parser


def read_detections(file: Path, images: Path) -> Iterator[Picture | BadRow]:
    """The single pictures of a detection cache; each is its own group."""
    from drive_vlm.rewards.detections import DetectionCache

    for entry in DetectionCache.load(file):
        where = f"{file}: {entry.video}"
        if Path(entry.video).suffix.lower() not in _PICTURES or len(entry.frames) != 1:
            problem = f"{len(entry.frames)} frames of a video, not one picture"
            yield BadRow("not_a_picture", where, problem, "--on_bad_row skip leaves it out and counts it")
            continue
        things = [labelled(thing.label, thing.box, {}, thing.score) for thing in entry.frames[0].objects]
        name = Path(entry.video).with_suffix("").as_posix().replace("/", "_")
        yield sized(name, name, entry.video, images, where, things)


READERS: dict[str, Reader] = {**SOURCES, DETECTIONS: read_detections}


def run(config: AmbiguityBuild) -> dict[str, Any]:
    return build(config, READERS, Path(__file__).parent / "prompts")


def show(audit: dict[str, Any], config: AmbiguityBuild) -> str | None:
    """Rows by split, what was left out, the leak check; the exit status, which says when splits leak."""
    columns = ("rows", "ambiguous", "clear", *(f"level {level}" for level in range(4)))
    rows = []
    for split, counts in audit["splits"].items():
        label, level, kind = (counts.get(name, {}) for name in ("ambiguous", "level", "type"))
        numbers = (sum(label.values()), label.get("ambiguous", 0), label.get("clear", 0))
        rows.append(
            [split, *map(str, numbers), *(str(level.get(str(i), 0)) for i in range(4)), str(kind.get("twin", 0))]
        )
    print_table(f"ambiguity rows ({config.source}, --balance {config.balance})", ("split", *columns, "twins"), rows)
    for part in ("instances", "questions"):
        for reason, count in sorted(audit.get(part, {}).get("left_out", {}).items()):
            print(f"{part} left out: {count:,} {reason}")
    for reason, count in audit["bad_rows"]["by_reason"].items():
        print(f"pictures left out: {count:,} {reason}")
    if teacher := audit.get("teacher"):
        made = (
            f"{teacher['rephrased']:,} rows rephrased"
            if "rephrased" in teacher
            else f"{teacher['written']:,} rows written"
        )
        rejected = ", ".join(f"{count:,} {reason}" for reason, count in teacher["rejected"].items())
        usage = teacher["usage"]
        print(
            f"teacher: {made}; rejected: {rejected or 'nothing'}; {usage['requests']:,} requests, {usage['cached']:,} from the cache"
        )
    leak = audit["leak"]
    if leak["balanced_accuracy"] is None:
        print(f"leak check not made: {leak['reason']}")
    else:
        print(
            f"leak check: the text alone has {leak['balanced_accuracy']:.3f} balanced accuracy (at most {leak['most']})"
        )
    if leak["problem"]:
        print(f"warning: {leak['problem']}")
    files = ", ".join(f"{config.out}/{name} ({count:,})" for name, count in audit["rows"].items())
    print(f"wrote {files}; image root: {config.root}")
    return f"{len(audit['leaks']):,} leaks between the splits, e.g. {audit['leaks'][0]}" if audit["leaks"] else None


if __name__ == "__main__":
    with stop.listening():
        run_tool(make_parser(), run, show, AmbiguityBuild)
