"""Raw captions -> refined ones: a teacher puts in the names of detector and retrieval and what the descriptions say of them.

Takes the lines of tools/synth_caption.py, with the objects of synth_retrieve.py (or synth_detect.py) and, where there are some, the
descriptions of synth_describe.py, and adds to each
  "caption_fine", "used_objects", "dropped_claims"   or "refused" with the reason; then the raw caption stays
Facts may explain an object, never add one. A refined caption that names something detectable which neither the raw caption nor the
objects name is refused (added_object). Detectable is what driving_words.yaml lists as a class of a detector, and every name of --names:
give there the class list of an open-vocabulary detector, or the names of the data base. Other reasons: not_json, schema, refusal,
cut_off, unknown_object, no_answer, too_short, too_long, no_caption. --preview 10 shows ten lines before the whole run, --estimate says
what it takes, --max_cost stops before it costs more; a stopped run pays nothing twice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synth_paid import read_names, show_paid

from drive_vlm.builders.synthesis.paid import paid_flags, run_paid
from drive_vlm.builders.synthesis.refine import Added, Refinement, added_names
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.launch.stop import listening
from drive_vlm.rewards.text.driving_text import DEFAULT_MODEL, TextParser

EXAMPLES = """
python tools/synth_refine.py --data captions.jsonl --model Qwen/Qwen3-32B --base_url http://localhost:8000/v1 --out refined.jsonl --preview 10
python tools/synth_refine.py --data captions.jsonl --model Qwen/Qwen3-32B --base_url http://localhost:8000/v1 --names classes.txt --out refined.jsonl
python tools/synth_refine.py --data captions.jsonl --model big-model --price_in 0.6 --price_out 2.4 --out refined.jsonl --estimate
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/synth_refine.py", description=__doc__, examples=EXAMPLES)
    paid_flags(parser, "teacher", temperature=0.0, max_tokens=768)
    parser.flag("--words", [8, 300], "length of a refined caption", least=1, nargs=2, metavar=("MIN", "MAX"))
    parser.add_argument(
        "--names", type=Path, help="text file, a name a line: further things that a detector or a data base names"
    )
    parser.flag("--spacy_model", DEFAULT_MODEL, "name or folder of the spaCy model that finds objects in texts")
    return parser


def added_classes(spacy_model: str) -> Added:
    """An Added that knows the classes of driving_words.yaml. A label that the parser does not know counts by its own words.

    A general word ("vehicle") supports no particular one ("truck"), and is supported by each of its own. Raises ValueError where
    spaCy or its model is missing.
    """
    parser = TextParser(spacy_model)

    def added(caption: str, labels: Sequence[str], refined: str) -> list[str]:
        listed = [f"There is a {label}." for label in labels]
        *given, new = parser.parse([caption, *listed, refined])
        known = {name for parsed in given for name in parsed.classes}
        either = {name for parsed in given for term in parsed.groups if term.kind == "either" for name in term.classes}
        general = {term.phrase for parsed in given for term in parsed.groups}
        groups = [
            term.phrase for term in new.groups if term.phrase not in general and not term.classes & (known | either)
        ]
        return sorted({*(new.classes - known - either), *groups})

    return added


def run(args: Any) -> dict[str, Any] | None:
    """The audit, or the estimate. Raises ValueError."""
    least, most = args.words
    if least > most:
        raise ValueError(f"--words {least} {most}: give MIN and MAX with MIN <= MAX")
    names = read_names(args.names)
    # Neither joining files nor counting prompts needs spaCy.
    added = [] if args.merge or args.estimate else [added_classes(args.spacy_model)]
    added += [added_names(names)] if names else []
    prompts = args.prompts or Path(__file__).parent / "prompts" / "synthesis"
    settings = {"names": sorted(names), "spacy_model": Path(args.spacy_model).name}
    return run_paid(Refinement(prompts, (least, most), added, settings), args)


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show_paid)
