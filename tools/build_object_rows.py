"""Rows about the objects of a synthetic data set from its exact truth: what people would have written, and what stays unlabelled.

Reads a folder of tools/build_synthetic.py and writes next to its scenes, for each of its splits
  objects_{split}.jsonl    (--prefix) short questions with their answers (is there one, how many, where), as tools/synth_ask.py asks them
  pictures_{split}.jsonl   the pictures alone, {"id", "image", "group"}: unlabelled, for tools/synth_*.py
and with --crops the objects of all splits cut out: crops/NAME/*.png for tools/synth_database.py, and crops/captions.jsonl, which names
object and colour, for tools/train_clip.py. Crops where nothing is are among them, named "background": what an encoder has never been shown
apart from objects, it takes for one.
"""

import json
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/build_object_rows.py --data data/synthetic
python tools/build_object_rows.py --data data/other --crops
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_object_rows.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--data", type=Path, required=True, help="folder that tools/build_synthetic.py wrote, with pictures")
    add("--names", nargs="+", metavar="NAME", help="what is asked about (default: all names of the world)")
    flag("--prefix", "objects", "how the files of rows begin")
    for name, many in (("present", 2), ("absent", 2), ("count", 1), ("position", 2)):
        flag(
            f"--{name}", many, f"questions of this kind about a picture, at most (tools/synth_ask.py --{name})", least=0
        )
    flag("--crops", False, "cut the objects out as well")
    flag("--background", 2, "crops of a picture where nothing is", least=0)
    flag("--least_side", 4, "pixels of a crop's shorter side, at least", least=1)
    flag("--seed", 0, "of the choice of questions", least=0)
    add("--json", help="write the counts here")
    return parser


def run(args: Any) -> dict[str, int]:
    """{file: rows}. Raises ValueError for a folder that is none of tools/build_synthetic.py."""
    from drive_vlm.builders.row_writer import RowWriter
    from drive_vlm.builders.splits import assign_split
    from drive_vlm.builders.synthesis.truth import NAMES, read_scenes
    from drive_vlm.store.cache import read_json

    if unknown := sorted(set(args.names or ()) - set(NAMES)):
        raise ValueError(f"--names {unknown[0]}: the world has {', '.join(NAMES)}")
    scenes = read_scenes(args.data / "scenes.jsonl")
    build = read_json(args.data / "build.json")
    counts = {name: getattr(args, name) for name in ("present", "absent", "count", "position")}
    rows: dict[str, list[dict[str, Any]]] = {}
    for image, truth in scenes.items():
        split = assign_split(truth["group"], build["fractions"], build["seed"])
        rows.setdefault(f"pictures_{split}.jsonl", []).append(
            {"id": truth["id"], "image": image, "group": truth["group"]}
        )
        rows.setdefault(f"{args.prefix}_{split}.jsonl", []).extend(
            question_rows(image, truth, args.names or list(NAMES), counts, args.seed)
        )
    if args.crops:
        rows["crops/captions.jsonl"] = [row for image, truth in scenes.items() for row in cut_out(args, image, truth)]
    with RowWriter(args.data) as writer:
        for name, content in sorted(rows.items()):
            writer.add(name, content)
    return {name: len(content) for name, content in sorted(rows.items())}


def question_rows(
    image: str, truth: dict[str, Any], names: list[str], counts: dict[str, int], seed: int
) -> list[dict[str, Any]]:
    from drive_vlm.builders.synthesis.short_questions import short_questions
    from drive_vlm.builders.synthesis.truth import objects_of_scene

    asked = short_questions(objects_of_scene(truth), names, truth["size"][1], image, seed, counts)
    return [
        {
            "id": f"{truth['id']}-{number}",
            "image": image,
            "group": truth["group"],
            "category": one.kind,
            "template": one.kind,
            "messages": [
                {"role": "user", "content": f"<image>\n{one.question}"},
                {"role": "assistant", "content": one.answer},
            ],
        }
        for number, one in enumerate(asked)
    ]


def cut_out(args: Any, image: str, truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Write a picture of each object that is large enough; rows of them with their captions."""
    from drive_vlm.builders.synthesis.embed import crop_views
    from drive_vlm.builders.synthesis.truth import BACKGROUND, chance_of, nothing, objects_of_scene
    from drive_vlm.data.vision import load_image

    picture, rows = load_image(str(args.data / image), image), []
    named = objects_of_scene(truth)
    words = [f"a {thing['color']} {name}" for (name, _), thing in zip(named, truth["objects"], strict=True)]
    height, width = truth["size"]
    apart = nothing(chance_of(image, args.seed), [box for _, box in named], width, height, args.background)
    for number, (name, box, said) in enumerate(
        [
            *((*one, said) for one, said in zip(named, words, strict=True)),
            *((BACKGROUND, box, BACKGROUND) for box in apart),
        ]
    ):
        if min(box[2] - box[0], box[3] - box[1]) < args.least_side:
            continue
        path = Path("crops", name.replace(" ", "_"), f"{truth['id']}-{number}.png")
        (args.data / path).parent.mkdir(parents=True, exist_ok=True)
        crop_views(picture, box, None, 0.1)[0].save(args.data / path)
        place = {"id": path.stem, "image": str(path.relative_to("crops")), "group": truth["group"], "name": name}
        rows.append(place | {"caption_short": said, "caption_long": f"{said}."})
    return rows


def show(counts: dict[str, int], args: Any) -> None:
    print_table("rows", ("file", "rows"), [(str(args.data / name), f"{count:,}") for name, count in counts.items()])
    print(json.dumps(counts))


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
