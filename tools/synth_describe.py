"""Names of objects -> what they are and what they mean for a driver, looked up in a file of tools/synth_knowledge.py.

Takes the lines of tools/synth_retrieve.py (or of synth_detect.py, where nothing was retrieved) and adds to each
  "descriptions"  {name: {title, text, url, licence}, or null where the file has no page of that name}
  "found_by"      {name: title, alias, search; or why not: not_found, ambiguous, no_sentence}
Each name is looked up once. A page counts when its title or an alias is the name, or holds the whole name; never because its text
has the word. Sentences with years are left out.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from synth_steps import show_step

from drive_vlm.builders.synthesis.knowledge import Knowledge
from drive_vlm.builders.synthesis.pictures import Picture
from drive_vlm.builders.synthesis.scene import objects_of
from drive_vlm.builders.synthesis.step import Made, Step, merge_steps, run_step, step_flags
from drive_vlm.config import CommandParser, plain, run_tool
from drive_vlm.launch.stop import listening

EXAMPLES = """
python tools/synth_describe.py --data objects.jsonl --knowledge knowledge.sqlite --out described.jsonl
python tools/synth_describe.py --data objects.jsonl --knowledge knowledge.sqlite --out described.jsonl --shard 2/8
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/synth_describe.py", description=__doc__, examples=EXAMPLES)
    step_flags(parser, batch_size=64)
    parser.add_argument("--knowledge", required=True, help="file of tools/synth_knowledge.py")
    parser.flag("--sentences", 2, "sentences of a description, at most")
    return parser


def describe(knowledge: Knowledge, picture: Picture) -> Made:
    names = sorted({found.label for found in objects_of(picture.line, picture.where)})
    found = {name: knowledge.lookup(name) for name in names}
    missing = Counter(how for entry, how in found.values() if entry is None)
    fields = {
        "descriptions": {name: plain(entry) for name, (entry, _) in found.items()},
        "found_by": {name: how for name, (_, how) in found.items()},
    }
    return Made(fields, dict(missing))


def counts(line: dict[str, Any]) -> dict[str, int]:
    return {f"names by {how}": count for how, count in sorted(Counter(line["found_by"].values()).items())}


def run(args: Any) -> dict[str, Any] | None:
    """The audit. Raises ValueError."""
    knowledge = Knowledge(args.knowledge, args.sentences)
    settings = {"knowledge": knowledge.content, "sentences": args.sentences}
    step = Step("describe", settings, {}, ("descriptions", "found_by"), counts, pixels=False)
    if args.merge:
        return merge_steps(step, args.merge, args.out)

    def make(pictures: Sequence[Picture]) -> Iterator[Made]:
        return (describe(knowledge, picture) for picture in pictures)

    return run_step(step, args, lambda: make)


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show_step)
